"""Layer 7: charts of what experts take: over reuse distance, and where disks were read.

Makes charts of what analyses found; draws nothing. Must not import the command line.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.analysis.expertreuse import group_of
from profinfer.analysis.expertuse import FIRST
from profinfer.render.html.charts import MUTED, TONES, Axis, Bars, Cells, Plot, Series
from profinfer.render.html.tokenfigures import thinned
from profinfer.units import format_bytes, format_ns, format_percent, format_things

F64 = npt.NDArray[np.float64]

PRODUCTS_MAX = 600  # executions drawn of one product
_COLUMNS, _ROWS = 36, 24  # cells of a density
_LEAST = 3  # passes that are worth a chart


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
