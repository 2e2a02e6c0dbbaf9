"""Layer 6: two graphs compared: which operators one has that the other lacks, and what differs.

Layers are compared by the kind that is most common in each; what lies outside of layers by itself.
Must not import rich or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from profinfer.analysis.layerpattern import Item, Pair, aligned, groups, items_of, layer_places
from profinfer.analysis.opgraph import WEIGHT, OpGraph
from profinfer.analysis.result import Column, Note, Result
from profinfer.units import format_ns

_SIGNS = {"+": "added", "-": "removed", "~": "changed"}


@dataclass(frozen=True)
class Compared:
    """Two graphs side by side.

    Attributes:
        old: the first graph.
        new: the second graph.
        layers: operators of the most common layer of each; empty if one has no layers.
        outside: operators of no layer.
        said: which layers these are, of the first and of the second.
    """

    old: OpGraph
    new: OpGraph
    layers: list[Pair]
    outside: list[Pair]
    said: tuple[str, str]

    @property
    def same(self) -> bool:
        """No operator is missing or differs; how often layers repeat may."""
        return not any(pair.sign for pair in (*self.layers, *self.outside))


def compare(old: OpGraph, new: OpGraph) -> Compared:
    """Align two graphs."""
    found = [groups(graph) for graph in (old, new)]
    first: list[tuple[Item, ...]] = [g[0].items if g else () for g in found]
    outside = [items_of(graph, layer_places(graph).get(-1, []), -1) for graph in (old, new)]
    said = tuple(g[0].said if g else "none" for g in found)
    return Compared(old, new, aligned(*first), aligned(*outside), (said[0], said[1]))


def results(compared: Compared, names: tuple[str, str]) -> list[Result]:
    """Overview, operator by operator, and numbers of operators by type."""
    return [_overview(compared, names), _changes(compared), _counts(compared, names)]


def _facts(graph: OpGraph) -> dict[str, Any]:
    weights = graph.sources[graph.sources["kind"] == WEIGHT].drop_duplicates("src_name")
    layer = graph.nodes["layer"]
    types = weights["type"][weights["type"] != ""].value_counts()
    return {
        "nodes": f"{len(graph):,}",
        "operators": f"{int(graph.works.sum()):,}",
        "views": f"{int((~graph.works).sum()):,}",
        "layers": f"{int(layer[layer >= 0].nunique()):,}",
        "weights": f"{len(weights):,}",
        "types of weights": ", ".join(f"{n} {t}" for t, n in types.items()),
        "steps": f"{int(graph.level.max(initial=-1)) + 1:,}",
        "operators' time": format_ns(graph.total_ns),
        "critical path": format_ns(graph.paths.length),
    }


def _overview(compared: Compared, names: tuple[str, str]) -> Result:
    old, new = _facts(compared.old), _facts(compared.new)
    frame = pd.DataFrame(
        [(key, old[key], new[key], "" if old[key] == new[key] else "*") for key in old],
        columns=["what", "old", "new", "differs"],
    )
    columns = (
        Column("what", "", "text", "What is compared."),
        Column("old", names[0], "text", "Of the first trace."),
        Column("new", names[1], "text", "Of the second trace."),
        Column("differs", "", "text", "* where they differ."),
    )
    scopes = dict.fromkeys((compared.old.scope, compared.new.scope))
    return Result("graphs", "Two graphs", " / ".join(scopes), columns, frame)


def _changes(compared: Compared) -> Result:
    rows = []
    for where, pairs in (("layers", compared.layers), ("outside", compared.outside)):
        for number, pair in enumerate(pairs):
            if pair.sign:
                item = pair.new or pair.old
                assert item is not None
                about = pair.change or f"{item.shape} {item.type}"
                rows.append((where, number, _SIGNS[pair.sign], pair.sign, pair.label, about))
    names = ["where", "number", "change", "sign", "operator", "about"]
    columns = (
        Column("where", "where", "text", "In each layer, or outside of them."),
        Column("number", "#", "count", "Place among the operators of both."),
        Column("change", "change", "text", "added, removed or changed.", detail=True),
        Column("sign", "", "text", "+ only in the second, - only in the first, ~ differs."),
        Column("operator", "operator", "text", "Operator and tensor; N is the layer."),
        Column("about", "", "text", "What differs, or shape and type."),
    )
    frame = pd.DataFrame(rows, columns=names)[[c.name for c in columns]]
    same = sum(not pair.sign for pair in (*compared.layers, *compared.outside))
    notes = [Note("info", f"{same} operators of a layer and outside of layers are the same")]
    if compared.same:
        notes = [Note("info", "no operator is missing, and none differs")]
    elif compared.said != ("none", "none"):
        text = f"layers {compared.said[0]} of the first are held against {compared.said[1]}"
        notes.append(Note("info", f"{text} of the second"))
    return Result("graph_changes", "What differs", "the most common layer of each, and what is "
                  "outside of layers", columns, frame, tuple(notes))  # fmt: skip


def _counts(compared: Compared, names: tuple[str, str]) -> Result:
    sides = [
        pd.Series(graph.titles, dtype=str)[graph.works].value_counts()
        for graph in (compared.old, compared.new)
    ]
    frame = pd.concat(sides, axis=1, keys=["old", "new"]).fillna(0).astype(np.int64)
    frame["more"] = frame["new"] - frame["old"]
    frame = frame.sort_index().sort_values("new", ascending=False, kind="stable").reset_index()
    frame.columns = pd.Index(["op", "old", "new", "more"])
    columns = (
        Column("op", "operator", "text", "Operator type."),
        Column("old", names[0], "count", "In the first graph."),
        Column("new", names[1], "count", "In the second graph."),
        Column("more", "more", "count", "In the second than in the first."),
    )
    return Result("graph_counts", "Operators by type", "whole graphs", columns, frame)
