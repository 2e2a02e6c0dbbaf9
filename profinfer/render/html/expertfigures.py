"""Layer 7: charts of experts: which one each token needed, after how long, and what that took.

Makes charts of what analyses found; draws nothing. Must not import the command line.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.analysis.expertreuse import group_of
from profinfer.analysis.expertuse import FIRST
from profinfer.render.html.charts import ACCENT, MUTED, TONES, Axis, Bars, Cells, Plot, Series
from profinfer.render.html.tokenfigures import thinned
from profinfer.units import format_bytes, format_ns, format_percent, format_things

F64 = npt.NDArray[np.float64]

# Passes that are drawn of a layer: beyond, those from the middle of the run.
PASSES_MAX = 400
DOTS_MAX = 2500
PRODUCTS_MAX = 600  # executions drawn of one product
_COLUMNS, _ROWS = 36, 24  # cells of a density
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


def reuse(uses: pd.DataFrame) -> Bars | None:
    """How the reuse distances of all accesses spread."""
    if len(uses) < _LEAST:
        return None
    told = pd.DataFrame(
        {"gap": uses["gap"].where(uses["gap"] != FIRST), "first": uses["gap"] == FIRST}
    )
    label = group_of(told)
    order = uses["gap"].where(uses["gap"] != FIRST, 1 << 62).groupby(label).min().sort_values()
    counts = label.value_counts().reindex(order.index)
    share = (counts / len(uses)).tolist()
    labels = order.index.tolist()
    tips = [[f"{name}: {n:,} uses, {format_percent(s)}"]
            for name, n, s in zip(labels, counts.tolist(), share, strict=True)]  # fmt: skip
    return Bars(
        "expert-reuse",
        "How long ago experts were needed before",
        "Of every use of an expert by a pass, all layers. What is needed soon again is worth "
        "keeping in memory.",
        labels,
        ["uses"],
        [[s] for s in share],
        Axis("of all uses", "ratio"),
        [0],
        tips,
        upright=True,
        order="passes since it was needed before",
    )


def density(done: pd.DataFrame) -> Plot | None:
    """Time of passes over the mean reuse distance, as counts in a grid, and its median."""
    known = done.dropna(subset=["op_ns", "gap"])
    known = known[(known["op_ns"] > 0) & (known["first"] == 0)]
    if len(known) < 2 * _LEAST or known["gap"].nunique() < _LEAST:
        return None
    x, y = known["gap"].to_numpy(np.float64), known["op_ns"].to_numpy(np.float64)
    across = _edges(x, _COLUMNS)
    up = _edges(y, _ROWS)
    counts = np.histogram2d(x, y, [across, up])[0].astype(np.int64)
    column, row = np.nonzero(counts)
    places = list(zip(across[column].tolist(), across[column + 1].tolist(),
                      up[row].tolist(), up[row + 1].tolist(), strict=True))  # fmt: skip
    found = counts[column, row].tolist()
    tips = [
        f"{format_things(n, 'pass')}: {a:.1f} to {b:.1f} passes ago, "
        f"{format_ns(c)} to {format_ns(d)}"
        for n, (a, b, c, d) in zip(found, places, strict=True)
    ]
    at = np.clip(np.searchsorted(across, x, side="right") - 1, 0, len(across) - 2)
    middle = pd.Series(y).groupby(at).agg(["median", "size"])
    middle = middle[middle["size"] >= _LEAST]
    centre = np.sqrt(across[:-1] * across[1:])[middle.index.to_numpy()]
    return Plot(
        "expert-density",
        "Time over reuse distance",
        f"{format_things(len(known), 'pass')} of all layers whose experts had all been needed "
        "before. A line that rises: experts that were away have to be fetched again.",
        Axis("passes since its experts were needed before, mean", log=True),
        Axis("time of a pass", "ns", log=True),
        [Series("median", centre.tolist(), middle["median"].tolist(), "line", 1)],
        cells=Cells(f"passes: 1 to {max(found):,}", places, found, tips),
    )


def _edges(values: F64, count: int) -> F64:
    """Edges of cells that grow by the same factor."""
    low, high = float(values.min()), float(values.max())
    return np.geomspace(low * 0.999, max(high, low * 1.1) * 1.001, count + 1)


def disk(products: pd.DataFrame) -> Plot | None:
    """Time of an execution over what disks read meanwhile, or over its major faults."""
    read = bool(products["read"].any())
    if not read and not products["majors"].any():
        return None
    column = "read" if read else "majors"
    series, drawn = [], 0
    for tone, (name, rows) in enumerate(products.groupby("product")):
        away = rows[rows[column] > 0]
        away = away.iloc[thinned(len(away), PRODUCTS_MAX)]
        drawn += len(away)
        x, y = away[column].astype(float).tolist(), away["op_ns"].astype(float).tolist()
        told = zip(x, y, away["layer"].tolist(), away["majors"].tolist(), strict=True)
        tips = [
            f"{name}, layer {layer}: {format_ns(b)}\n"
            + (f"{format_bytes(a)} read, " if read else "")
            + format_things(majors, "major fault")
            for a, b, layer, majors in told
        ]
        series.append(Series(str(name), x, y, "points", tone % TONES, tips=tips, size=2.5))
    calm = products["op_ns"][products[column] == 0]
    what = "what disks read meanwhile" if read else "the major faults of its threads"
    about = f"Each execution of a product with experts: its time over {what}."
    if len(calm):
        usual = float(calm.median())
        about += f" {format_things(len(calm), 'execution')} without: {format_ns(usual)} (median)."
        ends = [float(products[column][products[column] > 0].min()), float(products[column].max())]
        name = f"median of those {'that read nothing' if read else 'without'}"
        series.append(Series(name, ends, [usual, usual], "line", MUTED, dashed=True))
    held = int((products[column] > 0).sum())
    about += f" {drawn:,} of {held:,} drawn." if drawn < held else ""
    return Plot(
        "expert-disk",
        "Time of products over bytes read" if read else "Time of products over faults",
        about,
        Axis("read from disk" if read else "major faults", "bytes" if read else "count", log=True),
        Axis("time of one", "ns", log=True),
        [s for s in series if len(s.x)],
    )
