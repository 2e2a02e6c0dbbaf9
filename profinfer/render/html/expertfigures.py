"""Layer 7: charts of experts: which one each token needed, after how long, and what that took.

Makes charts of what analyses found; draws nothing. Must not import the command line.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from profinfer.analysis.expertuse import FIRST
from profinfer.render.html.charts import ACCENT, Axis, Cells, Plot, Series
from profinfer.units import format_ns, format_things

# Passes that are drawn of a layer: beyond, those from the middle of the run.
PASSES_MAX = 400
DOTS_MAX = 2500
LOADS_MAX = 2500  # cells of experts and layers
_LEAST = 3  # passes that are worth a chart

# Reuse distances that are told apart: name, least, most, colour.
_RANGES = (
    ("needed by the pass before", 1, 1, 5),
    ("2 to 4 passes ago", 2, 4, 0),
    ("5 to 16", 5, 16, 6),
    ("17 and more", 17, 1 << 62, 1),
)
_NEW = "never before"


def _window(steps: pd.Series) -> tuple[int, int]:
    """First and last pass to draw: those from the middle."""
    low, high = int(steps.min()), int(steps.max())
    begin = low + max(high - low + 1 - PASSES_MAX, 0) // 2
    return begin, min(begin + PASSES_MAX, high + 1)


def _left_out(drawn: int, every: int) -> str:
    if drawn == every:
        return ""
    return f" {drawn:,} of {format_things(every, 'pass')}, from the middle."


def routes(uses: pd.DataFrame, layer: int, experts: int) -> Plot | None:
    """Each expert that a pass of one layer needed, by how long ago it was needed before.

    Args:
        uses: all accesses, of ``expertpasses.needed``.
        layer: number of the layer.
        experts: how many it has.
    """
    mine = uses[uses["layer"] == layer]
    every = mine["step"].nunique()
    if every < _LEAST:
        return None
    begin, end = _window(mine["step"])
    end = min(end, begin + max(DOTS_MAX * every // len(mine), _LEAST))
    mine = mine[(mine["step"] >= begin) & (mine["step"] < end)]
    gap = mine["gap"].to_numpy()
    series = []
    for name, least, most, tone in (*_RANGES, (_NEW, FIRST, FIRST, ACCENT)):
        rows = mine[(gap >= least) & (gap <= most)]
        if not len(rows):
            continue
        x, y = rows["step"].tolist(), rows["expert"].tolist()
        ago = [name if g == FIRST else f"{g:,} ago" for g in rows["gap"].tolist()]
        tips = [f"pass {a:,}: expert {b}, {c}" for a, b, c in zip(x, y, ago, strict=True)]
        series.append(Series(name, x, y, "points", tone, tips=tips, size=2.5,
                             mark="diamond" if name == _NEW else "circle"))  # fmt: skip
    used = mine["expert"].nunique()
    return Plot(
        f"expert-routes-{layer}",
        f"Experts over tokens, layer {layer}",
        f"Each point: a pass of the layer needed this expert; colour: passes since one needed it "
        f"before. {used} of {experts} experts are needed."
        f"{_left_out(mine['step'].nunique(), every)}",
        Axis("pass of the layer, in order of time", tight=True),
        Axis("expert", zero=True, most=float(experts)),
        series,
    )


def times(done: pd.DataFrame, layer: int) -> list[Plot]:
    """Mean reuse distance, and time, of each pass of one layer."""
    mine = done[(done["layer"] == layer) & done["op_ns"].notna()]
    if len(mine) < _LEAST:
        return []
    every = len(mine)
    begin, end = _window(mine["step"])
    mine = mine[(mine["step"] >= begin) & (mine["step"] < end)]
    x = mine["step"].tolist()
    out = _left_out(len(mine), every)
    gap, took = mine["gap"].astype(float).tolist(), mine["op_ns"].astype(float).tolist()
    fresh = mine["first"].to_numpy() > 0
    tips = [
        f"pass {a:,}: {format_ns(t)}\n"
        + (f"its experts were needed {g:.1f} passes ago" if np.isfinite(g) else "")
        + (f"\n{n} never before" if n else "")
        for a, t, g, n in zip(x, took, gap, mine["first"].tolist(), strict=True)
    ]
    axis = Axis("pass of the layer, in order of time", tight=True)
    series = []
    for name, tone, rows in (
        ("all needed before", 0, np.flatnonzero(~fresh)),
        ("one or more never before", ACCENT, np.flatnonzero(fresh)),
    ):
        series.append(Series(name, [x[i] for i in rows], [took[i] for i in rows], "points", tone,
                             tips=[tips[i] for i in rows], size=2.5,
                             mark="circle" if tone == 0 else "diamond"))  # fmt: skip
    known = [i for i, g in enumerate(gap) if np.isfinite(g)]
    return [
        Plot(
            f"expert-distance-{layer}",
            f"Mean reuse distance, layer {layer}",
            f"Passes since the experts of a pass were needed before, mean of these.{out}",
            axis,
            Axis("passes ago"),
            [Series("", [x[i] for i in known], [gap[i] for i in known], "line", 6,
                    tips=[tips[i] for i in known])],
        ),
        Plot(
            f"expert-time-{layer}",
            f"Time of the products with experts, layer {layer}",
            f"Up, gate and down of a pass together.{out}",
            axis,
            Axis("time of a pass", "ns", log=True),
            [s for s in series if len(s.x)],
        ),
    ]  # fmt: skip


def loads(uses: pd.DataFrame, known: dict[int, int]) -> Plot | None:
    """How many passes needed each expert of each layer.

    Args:
        uses: all accesses, of ``expertpasses.needed``.
        known: layer -> experts to choose from.
    """
    if not len(uses):
        return None
    wide = max(known.values())
    # Neighbours share a cell where there are too many for one each.
    step = max(1, -(-wide * len(known) // LOADS_MAX))
    cells = uses.assign(cell=uses["expert"] // step).groupby(["layer", "cell"])
    counts: pd.DataFrame = cells.size().rename("n").reset_index()
    places, tips = [], []
    for layer, cell, n in counts.to_numpy().tolist():
        first, after = cell * step, min((cell + 1) * step, known[layer])
        places.append((float(first), float(after), layer - 0.5, layer + 0.5))
        which = f"expert {first}" if after == first + 1 else f"experts {first} to {after - 1}"
        tips.append(f"layer {layer}, {which}: needed {format_things(n, 'time')}")
    counted = counts["n"]
    about = "How many passes needed each expert; what is blank was not needed."
    if step > 1:
        about += f" {step} neighbours share a cell."
    return Plot(
        "expert-loads",
        "Experts of each layer",
        about,
        Axis("expert", "id", tight=True),
        Axis("layer", "id", tight=True),
        [],
        cells=Cells(
            f"passes: {counted.min():,} to {counted.max():,}",
            places,
            counted.tolist(),
            tips,
        ),
    )
