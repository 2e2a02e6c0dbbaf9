"""Layer 6: what one side's graph has that the other's lacks.

Must not import rich or anything above.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from profinfer.analysis.compare.changes import Changes
from profinfer.analysis.compare.runs import Run
from profinfer.analysis.result import Column, Note, Result
from profinfer.units import format_things

COLUMNS = (
    Column("role", "role", "text", "Part that the operators play in the transformer."),
    Column("op", "operator", "text", "Operator type."),
    Column("nodes_a", "nodes a", "count", "Nodes of a's usual graph that are computed."),
    Column("nodes_b", "nodes b", "count", "Nodes of b's usual graph that are computed."),
    Column("only_a", "gone", "count", "Of those of a, nodes that b has not."),
    Column("only_b", "new", "count", "Of those of b, nodes that a has not."),
    Column("a_ns", "a", "ns", "Time per token.", like="time"),
    Column("b_ns", "b", "ns", "Time per token.", like="time"),
    Column("diff_ns", "b - a", "ns", "Difference per token.", like="time", signed=True),
)


def _nodes(run: Run) -> pd.Series:
    """Computed nodes of the usual graph, by role and operator, on whatever backend they ran."""
    nodes = run.trace.nodes
    mine = nodes[nodes["def_id"].isin(_usual(run)) & ~nodes["empty"]]
    sizes: pd.Series = mine.astype({"role": str, "op": str}).groupby(["role", "op"]).size()
    return sizes


def _usual(run: Run) -> list[int]:
    """Definitions that most graphs ran; of a graph cut into splits, those of all of them."""
    graphs, splits = run.trace.graphs, run.trace.splits
    graphs = graphs[run.samples.owner >= 0]
    mine = np.r_[run.samples.owner_of_call, -1][splits["call_id"].to_numpy()] >= 0
    splits = splits[mine & (splits["def_id"] >= 0).to_numpy()]
    if not len(splits):
        return list(graphs["def_id"][graphs["def_id"] >= 0].value_counts().index[:1])
    both = pd.concat([t.loc[t["def_id"] >= 0, ["call_id", "def_id"]] for t in (graphs, splits)])
    parts = both.groupby("call_id")["def_id"].agg(frozenset)
    return sorted(parts.value_counts().index[0])


def structure(changes: Changes, scope: str) -> Result:
    """Roles and operators of which the sides have different numbers of nodes, or others."""
    of = changes.of
    a, b = _nodes(of.a[0]), _nodes(of.b[0])
    units = of.units.assign(n=1)
    # Of a backend that does not tell its operators, neither what it computes together with others.
    units = units[~(units["away_a"] & ~units["in_b"]) & ~(units["away_b"] & ~units["in_a"])]
    keys = ["role", "op"]
    only_a = units[~units["in_b"]].groupby(keys)["n"].sum()
    only_b = units[~units["in_a"]].groupby(keys)["n"].sum()
    times = _times(changes)
    frame = pd.concat(
        {"nodes_a": a, "nodes_b": b, "only_a": only_a, "only_b": only_b}, axis=1
    ).fillna(0).astype(np.int64)  # fmt: skip
    differs = (frame["nodes_a"] != frame["nodes_b"]) | (frame["only_a"] + frame["only_b"] > 0)
    frame = frame[differs].rename_axis(keys).join(times, how="left").reset_index()
    # The engine computes some nodes together with the next one: they have no time of their own.
    frame[["a_ns", "b_ns"]] = frame[["a_ns", "b_ns"]].fillna(0.0)
    frame["diff_ns"] = frame["b_ns"] - frame["a_ns"]
    order = frame["diff_ns"].abs().sort_values(ascending=False, kind="stable").index
    frame = frame.loc[order].reset_index(drop=True)
    names = [c.name for c in COLUMNS]
    total = {c: float(frame[c].sum()) for c in names[2:]}
    title = "Graph: operators that only one side has" if len(frame) else "Graph: no difference"
    return Result("graph", title, scope, COLUMNS, frame[names], tuple(_pairing(units)), total)


def _times(changes: Changes) -> pd.DataFrame:
    kinds = changes.by("kind")
    return kinds.groupby(["role", "op"])[["a_ns", "b_ns"]].sum()


def _pairing(units: pd.DataFrame) -> list[Note]:
    """How much of both graphs was paired, if not all."""
    both = int((units["in_a"] & units["in_b"]).sum())
    of_a, of_b = int(units["in_a"].sum()), int(units["in_b"].sum())
    out = []
    if both < of_a or both < of_b:
        text = f"{both:,} operators are paired, of {of_a:,} in a and {of_b:,} in b"
        few = both < 0.5 * min(of_a, of_b)
        more = ": these are different models; compare roles, not operators" if few else ""
        out.append(Note("warning" if few else "info", text + more))
    renamed = units["by"].value_counts()
    if n := int(renamed.get("weight", 0)) + int(renamed.get("place", 0)):
        text = f"{format_things(n, 'operator')} of other names are paired by weight or place"
        out.append(Note("info", text))
    return out
