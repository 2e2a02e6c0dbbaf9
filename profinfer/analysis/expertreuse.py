"""Layer 6: what it costs that an expert was not needed for long, and what a cache would save.

Must not import rich or anything above.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from profinfer.analysis import notes
from profinfer.analysis.expertcosts import needed_experts, passes, sizes
from profinfer.analysis.expertuse import FIRST, accesses
from profinfer.analysis.result import Column, Note, Result
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace

# Upper ends of the groups of mean reuse distances, in passes.
GROUPS = (1, 2, 4, 8, 16, 32, 64, 128)
_ENOUGH = 20  # passes, for a correlation
_CACHES = 12  # sizes when a person reads it


def by_reuse(trace: Trace, selection: Selection) -> Result:
    """One row for each range of reuse distances: the time of the operators with experts."""
    done = passes(trace, selection)
    group = group_of(done)
    rows = []
    for label in [*dict.fromkeys(_label(i) for i in range(len(GROUPS) + 1)), _FIRST]:
        mine = done[(group == label).to_numpy()]
        if not len(mine):
            continue
        took = mine["op_ns"].dropna()
        rows.append(
            (label, len(mine), len(mine) / len(done), mine["op_ns"].mean(), took.median(),
             took.quantile(0.9), int(mine["majors"].sum()), int(mine["majors"].sum()) / len(mine),
             int(mine["held_ns"].sum()) / len(mine))
        )  # fmt: skip
    names = ["group", "passes", "share", "mean_ns", "p50_ns", "p90_ns", "majors", "majors_each",
             "held_each"]  # fmt: skip
    columns: tuple[Column, ...] = (
        Column(
            "group", "reuse", "text", "Passes since its experts were needed before; their mean."
        ),
        Column("passes", "passes", "count", "Passes of a layer."),
        Column("share", "share", "ratio", "Part of all.", bar=True),
        Column("mean_ns", "mean", "ns", "Time of its operators with experts, a pass.", like="op"),
        Column("p50_ns", "median", "ns", "Median of these.", like="op"),
        Column("p90_ns", "p90", "ns", "90th percentile of these.", like="op"),
    )
    if trace.has_faults:
        columns += (
            Column("majors", "major", "count", "Major faults on experts' weights."),
            Column("majors_each", "a pass", "number", "Of these, a pass."),
            Column("held_each", "held up", "ns", "Time of threads inside them, a pass."),
        )
    extra: list[Note] = []
    found = correlation(done)
    if found is not None:
        text = f"rank correlation of reuse distance and time within a layer: {found[0]:.2f}"
        extra = [Note("info", f"{text} (Spearman, {found[1]:,} passes)")]
    frame = pd.DataFrame(rows, columns=names)[[c.name for c in columns]]
    every = (*extra, *notes.of(trace, selection))
    title = "Time by reuse distance"
    return Result("experts_by_reuse", title, selection.description, columns, frame, every)


_FIRST = "first use"


def group_of(done: pd.DataFrame) -> pd.Series:
    """The name of each pass' range; those with an expert that was never needed before apart."""
    at = np.searchsorted(GROUPS, done["gap"].to_numpy(), side="left")
    label = np.array([_label(i) for i in range(len(GROUPS) + 1)], object)
    name = np.where(done["first"] > 0, _FIRST, label[np.minimum(at, len(GROUPS))])
    return pd.Series(name, done.index)


def _label(i: int) -> str:
    if i == 0:
        return "1"
    if i == len(GROUPS):
        return f"> {GROUPS[-1]}"
    return f"to {GROUPS[i]}"


def correlation(done: pd.DataFrame) -> tuple[float, int] | None:
    """Spearman's rank correlation of ``gap`` and ``op_ns``, ranks within each layer; and passes.

    None with too few passes, or where one of them does not vary.
    """
    known = done.dropna(subset=["gap", "op_ns"])
    known = known[known["first"] == 0]
    if len(known) < _ENOUGH:
        return None
    ranks = known.groupby("layer")[["gap", "op_ns"]].rank(pct=True)
    gap, took = ranks["gap"].to_numpy(), ranks["op_ns"].to_numpy()
    if gap.std() == 0 or took.std() == 0:
        return None
    return float(np.corrcoef(gap, took)[0, 1]), len(known)


def by_cache(trace: Trace, selection: Selection, *, brief: bool) -> Result:
    """One row for each size of an LRU cache of experts, one cache a layer.

    Args:
        trace: what was recorded.
        selection: accesses that count; the caches are filled by all that came before.
        brief: some sizes only.
    """
    size, mine = sizes(trace), needed_experts(trace, selection)
    most = max(size.experts.values(), default=0)
    distance = mine["distance"].to_numpy()
    cost = size.bytes_of(mine["layer"].to_numpy())
    first = distance == FIRST
    known = np.where(first, most, np.minimum(distance, most))
    hits = np.cumsum(np.bincount(known, minlength=most + 1)[:most])
    saved = np.cumsum(np.bincount(known, weights=cost, minlength=most + 1)[:most])
    tokens = selection.n_tokens
    one = sum(size.size.get(layer, 0) for layer in size.experts)
    k = np.arange(1, most + 1)
    frame = pd.DataFrame(
        {
            "cached": k,
            "memory": k * one,
            "hits": hits / len(mine) if len(mine) else np.nan,
            "loads": (len(mine) - hits) / tokens if tokens else np.nan,
            "loaded": (cost.sum() - saved) / tokens if tokens else np.nan,
        }
    )
    if brief and most > _CACHES:
        used = max(size.used.values(), default=1)
        steps = np.unique(np.r_[used, np.geomspace(used, most, _CACHES - 1).round().astype(int)])
        frame = frame[frame["cached"].isin(steps)]
    columns = (
        Column("cached", "experts", "count", "Experts of each layer that are kept."),
        Column("memory", "memory", "bytes", "Their size, all layers."),
        Column("hits", "hits", "ratio", "Accesses to an expert that is there.", bar=True),
        Column("loads", "loads/tok", "number", "Experts to be loaded / tokens."),
        Column("loaded", "a token", "bytes", "Bytes to be loaded / tokens."),
    )
    extra = []
    if first.any():
        text = f"{int(first.sum()):,} of {len(mine):,} accesses are first uses, which no cache has"
        extra = [Note("info", text)]
    every = (*extra, *notes.of(trace, selection))
    title = "An LRU cache of experts in each layer"
    frame = frame.reset_index(drop=True)
    return Result("experts_by_cache", title, selection.description, columns, frame, every)


def cache_for(trace: Trace, share: float) -> int | None:
    """Experts of each layer that an LRU cache must keep for this share of repeated accesses."""
    distance = accesses(trace)["distance"].to_numpy()
    again = np.sort(distance[distance != FIRST])
    if not len(again):
        return None
    return int(again[min(int(np.ceil(share * len(again))), len(again)) - 1]) + 1
