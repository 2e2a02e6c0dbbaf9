"""Layer 6: a graph as tables: what it is, its repeated layers, its operators, its critical path.

Must not import rich or anything above.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from profinfer.analysis.dagwidths import widths
from profinfer.analysis.graphpieces import said
from profinfer.analysis.layerpattern import Group, differences, groups, layer_places, steps_back
from profinfer.analysis.opgraph import CACHE, INPUT, WEIGHT, OpGraph
from profinfer.analysis.result import Column, Note, Result
from profinfer.units import format_things

_WEIGHT = re.compile(r"^(?:blk\.(?:N|\d+)\.)?(.*)\.weight\b")
_TIME = Column("wall_ns", "time", "ns", "Mean wall time of an execution, all threads together.")
_STEP = Column("step", "step", "count", "Operators of one step do not need each other.")
_SLACK = Column("slack_ns", "slack", "ns", "How much longer it could take before the longest path "
                "does; 0 on the critical path.")  # fmt: skip
_READS = Column("reads", "reads", "text", "Operators by number, weights and others by name.")


def overview(graph: OpGraph, others: int) -> Result:
    """One row: size, shape and times of a graph.

    Args:
        graph: the graph.
        others: further definitions that the selection ran.
    """
    nodes, works = graph.nodes, graph.works
    level = graph.level[works]
    paths = graph.paths
    size = np.bincount(level) if len(level) else np.zeros(1)
    leaves = graph.sources.drop_duplicates("src_name")
    kinds = leaves["kind"].value_counts()
    fused = int((nodes["into"] != np.arange(len(nodes)))[works].sum())
    dag = "yes" if graph.whole.acyclic else "NO: it has a cycle"
    if graph.whole.acyclic and bool((graph.every.src >= graph.every.dst).any()):
        dag = "yes, but it does not run in the order of its edges"
    longest = paths.length
    fields: list[tuple[Column, Any]] = [
        (Column("acyclic", "acyclic", "text", "Whether no node needs its own result."), dag),
        (Column("nodes", "nodes", "count", "All nodes."), len(graph)),
        (Column("operators", "operators", "count", "Nodes that compute."), int(works.sum())),
        (Column("views", "views, folded", "count", "Nodes that compute nothing."),
         int((~works).sum())),
        (Column("fused", "run fused", "count", "Operators that ran inside the one after them."),
         fused if graph.timed else None),
        (Column("edges", "edges", "count", "Between operators, views looked through."),
         len(graph.folded)),
        (Column("memory_edges", "by memory", "count", "Of those, by memory that both use: a "
                "cache that is written and read, or work in place."),
         int(graph.folded.memory.sum())),
        (Column("weights", "weights", "count", "Weight tensors read."), int(kinds.get(WEIGHT, 0))),
        (Column("inputs", "inputs", "count", "Other tensors from outside, caches included."),
         int(kinds.get(INPUT, 0) + kinds.get(CACHE, 0))),
        (Column("steps", "steps", "count", "Levels of the graph: how often something has to wait "
                "for something."), len(size)),
        (Column("widest", "widest step", "count", "Most operators that need nothing of each "
                "other."), int(size.max())),
        (Column("width", "mean width", "text", "Operators / steps."),
         f"{works.sum() / max(len(size), 1):.2f}"),
        (Column("total_ns", "operators' time", "ns", "Of one execution, summed."),
         graph.total_ns if graph.timed else None),
        (Column("critical_ns", "critical path", "ns", "The longest path, by time."),
         longest if graph.timed else None),
        (Column("critical_operators", "on it", "count", "Operators on the critical path."),
         int(graph.critical.sum()) if graph.timed else None),
        (Column("at_most", "gain at most", "ratio", "Time saved if all operators that do not need "
                "each other ran at once, each as fast as alone."),
         1 - longest / graph.total_ns if graph.total_ns else None),
    ]  # fmt: skip
    notes = []
    if others:
        text = f"{said(graph.pieces)}, which took most of the time; {others} more ran: --def N"
        notes.append(Note("info", text))
    if not graph.executions:
        notes.append(Note("warning", "no execution of it is selected: it has no times"))
    elif not graph.timed:
        notes.append(Note("warning", "its operators were not recorded: it has no times"))
    if not graph.whole.acyclic:
        notes.append(Note("error", "its edges contradict each other: steps and path are wrong"))
    unread = int(nodes["unread"].sum())
    if unread:
        notes.append(Note("warning", f"{format_things(unread, 'node')} could not be read"))
    if graph.several:
        notes += _of_pieces(graph)
    return _record("graph", graph.title, graph.scope, fields, notes)


def _of_pieces(graph: OpGraph) -> list[Note]:
    """What belongs to whom, and what has no times."""
    operators = np.bincount(graph.piece[graph.works], minlength=len(graph.pieces))
    spread: dict[str, list[int]] = {}
    for piece, count in zip(graph.pieces, operators.tolist(), strict=True):
        spread.setdefault(piece.backend, []).append(count)
    parts = [
        f"{format_things(sum(counts), 'operator')} on {backend} "
        f"({format_things(len(counts), 'split')})"
        for backend, counts in spread.items()
    ]
    out = [Note("info", f"split over backends: {', '.join(parts)}; one split: --def N")]
    without = {graph.pieces[number].backend for number in np.flatnonzero(~graph.seen).tolist()}
    if graph.timed and without:
        names = ", ".join(sorted(without))
        text = f"operators on {names} have no times here: times and path are of the rest"
        out.append(Note("info", text))
    return out


def _record(
    name: str, title: str, scope: str, fields: list[tuple[Column, Any]], notes: list[Note]
) -> Result:
    frame = pd.DataFrame([{c.name: v for c, v in fields}])
    columns = tuple(c for c, _ in fields)
    return Result(name, title, scope, columns, frame, tuple(notes), layout="record")


def layers(graph: OpGraph, found: list[Group]) -> Result:
    """The groups of layers that are alike, and what belongs to no layer."""
    rows = []
    for group in sorted(found, key=lambda g: g.layers):
        other = [] if group is found[0] else differences(found[0].items, group.items)
        spent = graph.spent(group.places)
        rows.append(
            (group.said, len(group.layers), len(group.items), spent / len(group.layers), spent,
             _differs(group is found[0], other))
        )  # fmt: skip
    outside = layer_places(graph).get(-1, [])
    if outside:
        spent = graph.spent(outside)
        rows.append(("none", 1, len(outside), spent, spent, "before, between and after the layers"))
    names = ["layers", "count", "operators", "each_ns", "wall_ns", "differs"]
    frame = pd.DataFrame(rows, columns=names)
    frame["share"] = frame["wall_ns"] / graph.total_ns if graph.total_ns else np.nan
    columns = (
        Column("layers", "layers", "text", "Layers that are built alike."),
        Column("count", "count", "count", "How many."),
        Column("operators", "operators", "count", "Of one of them."),
        Column("each_ns", "time each", "ns", "Of one of them, mean.", like="time"),
        Column("wall_ns", "time", "ns", "Of all of them.", like="time"),
        Column("share", "share", "ratio", "Part of the time of all operators."),
        Column("differs", "how they differ", "text", "From the most common: + more, - less, ~ "
               "other."),
    )  # fmt: skip
    alike = found[0] if found else None
    notes: list[Note] = []
    if alike is not None and len(alike.layers) > 1:
        text = f"layers {alike.said} have the same {format_things(len(alike.items), 'operator')}"
        notes.append(Note("info", text))
    frame = frame[[c.name for c in columns]]
    return Result("graph_layers", "Layers", graph.scope, columns, frame, tuple(notes))


def _differs(first: bool, words: list[str]) -> str:
    if first:
        return "the most common"
    return "; ".join(words) or "reads its operators in another way"


def pattern(graph: OpGraph, group: Group) -> Result:
    """The operators of a repeated layer, with the means over its layers."""
    wall = np.array([graph.spent(places) for places in group.places.T])
    wall /= np.maximum((~np.isnan(graph.wall_ns[group.places])).sum(axis=0), 1)
    on_path = graph.critical[group.places].mean(axis=0) if graph.timed else np.nan
    level = graph.level[group.places[0]]
    rows = [
        (number, item.op, item.name, item.type, item.shape, _reads(number, item.reads))
        for number, item in enumerate(group.items)
    ]
    frame = pd.DataFrame(rows, columns=["number", "op", "name", "type", "shape", "reads"])
    frame["step"] = level - level.min() + 1 if len(level) else []
    frame["wall_ns"] = wall
    frame["share"] = wall / np.nansum(wall) if graph.timed else np.nan
    frame["on_path"] = on_path
    columns = (
        Column("number", "#", "count", "Place in the layer."),
        Column("op", "operator", "text", "Operator."),
        Column("name", "tensor", "text", "Tensor that it makes; N is the layer."),
        Column("type", "type", "text", "Type of that tensor.", detail=True),
        Column("shape", "shape", "text", "Shape of that tensor."),
        _READS,
        _STEP,
        _TIME,
        Column("share", "share", "ratio", "Part of the layer's time."),
        Column("on_path", "on path", "ratio", "Part of the layers in which it is on the critical "
               "path."),
    )  # fmt: skip
    count = format_things(len(group.layers), "layer")
    frame = frame[[c.name for c in columns]]
    return Result(
        "graph_pattern",
        f"Operators of layers {group.said}" if len(group.layers) > 1 else f"Layer {group.said}",
        f"means over {count}" if len(group.layers) > 1 else graph.scope,
        columns,
        frame,
        (Note("info", "operators of one step need nothing of each other"),),
    )


def _reads(number: int, reads: Sequence[str]) -> str:
    """Steps back become numbers."""
    steps = [(r, steps_back(r)) for r in reads]
    return ", ".join(_brief(r) if back is None else f"#{number - back}" for r, back in steps)


def _brief(name: str) -> str:
    """A weight's name without what every weight's has: blk.N.attn_q.weight is attn_q."""
    return _WEIGHT.sub(r"\1", name)


def nodes(graph: OpGraph, places: Sequence[int], title: str) -> Result:
    """Operators at some places, one a row."""
    table = graph.nodes
    rows = [place for place in places if graph.works[place]]
    part = table.iloc[rows]
    before = graph.dag.before
    reads = [
        ", ".join(
            [
                *(f"#{b}" for b in before[place]),
                *(_brief(n) for n, _ in graph.leaves.get(place, ())),
            ]
        )
        for place in rows
    ]
    frame = pd.DataFrame(
        {
            "idx": part["idx"].to_numpy(),
            "op": [graph.titles[place] for place in rows],
            "name": part["name"].astype(str),
            "type": part["type"].astype(str),
            "shape": part["shape"].astype(str),
            "reads": reads,
            "step": graph.level[rows] + 1,
            "wall_ns": graph.wall_ns[rows],
            "slack_ns": graph.paths.slack[rows] if graph.timed else np.nan,
            "share": part["wall_ns"].to_numpy() / graph.total_ns if graph.total_ns else np.nan,
            "bytes": part["bytes"].to_numpy(),
            "flops": part["flops"].to_numpy(),
            "compute_ns": part["compute_ns"].to_numpy() if graph.timed else np.nan,
            "wait_ns": part["wait_ns"].to_numpy() if graph.timed else np.nan,
        }
    )
    columns = (
        Column("idx", "#", "count", "Place in the graph."),
        Column("op", "operator", "text", "Operator."),
        Column("name", "tensor", "text", "Tensor that it makes."),
        Column("type", "type", "text", "Type of that tensor.", detail=True),
        Column("shape", "shape", "text", "Shape of that tensor."),
        _READS,
        _STEP,
        _TIME,
        _SLACK,
        Column("share", "share", "ratio", "Part of the time of all operators.", detail=True),
        Column("bytes", "bytes", "bytes", "Least bytes read and written.", detail=True),
        Column("flops", "operations", "count", "Operations.", detail=True),
        Column("compute_ns", "compute", "ns", "Mean over threads.", detail=True),
        Column("wait_ns", "wait", "ns", "Mean over threads.", detail=True),
    )
    frame = frame[[c.name for c in columns]].reset_index(drop=True)
    total = {"wall_ns": float(part["wall_ns"].sum())} if graph.timed else None
    return Result("graph_nodes", title, graph.scope, columns, frame, (), total)


def path(graph: OpGraph) -> Result:
    """By role: time on the critical path, and beside it."""
    wall = graph.nodes["wall_ns"].to_numpy(np.float64)
    frame = pd.DataFrame(
        {
            "role": graph.nodes["role"].astype(str),
            "operators": graph.works.astype(np.int64),
            "wall_ns": wall,
            "path_ns": np.where(graph.critical, wall, 0.0),
            "beside_ns": np.where(graph.critical, 0.0, wall),
        }
    )[graph.works]
    out = frame.groupby("role", sort=True).sum().reset_index()
    out = out.sort_values("wall_ns", ascending=False, kind="stable").reset_index(drop=True)
    out["share"] = out["path_ns"] / graph.paths.length if graph.paths.length else np.nan
    columns = (
        Column("role", "role", "text", "What it does in the model."),
        Column("operators", "operators", "count", "How many."),
        Column("wall_ns", "time", "ns", "Of all of them.", like="time"),
        Column("beside_ns", "beside the path", "ns", "Of those not on the critical path: what "
               "could run at the same time as it.", like="time"),
        Column("path_ns", "on the path", "ns", "Of those on the critical path.", like="time"),
        Column("share", "share", "ratio", "Part of the critical path.", bar=True),
    )  # fmt: skip
    total = {c: float(out[c].sum()) for c in ("wall_ns", "path_ns", "beside_ns")}
    total |= {"operators": int(out["operators"].sum()), "share": 1.0}
    frame = out[[c.name for c in columns]]
    return Result("graph_path", "Critical path by role", graph.scope, columns, frame, (), total)


def summary(graph: OpGraph, others: int) -> list[Result]:
    """What there is to say of a graph, in the order to read it."""
    found = groups(graph)
    out = [overview(graph, others)]
    if found:
        out += [layers(graph, found), pattern(graph, found[0])]
    outside = layer_places(graph).get(-1, [])
    if outside:
        title = "Operators of no layer" if found else "Operators"
        out.append(nodes(graph, outside, title))
    out.append(widths(graph))
    return [*out, path(graph)] if graph.timed else out
