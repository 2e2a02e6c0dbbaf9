"""Layer 6: one graph of a trace with the times of its operators: what ran, what it read, how long.

Owns the joining of a definition with what was measured of it. Views, renderers and the comparison
of two graphs work on it alone. Must not import rich or anything above.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.analysis import counters, shapes
from profinfer.analysis.backends import chosen
from profinfer.analysis.dag import Dag, Paths
from profinfer.analysis.graphpieces import Piece, joined, made_before, said
from profinfer.analysis.graphtimes import measured, ran_into
from profinfer.analysis.tokensplits import Pass
from profinfer.analysis.work import per_execution
from profinfer.model.dependencies import Dependencies
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace
from profinfer.units import format_things

F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

NODE, WEIGHT, CACHE, INPUT = "node", "weight", "cache", "input"
COUNTED = "counted:"  # begin of the names of columns
_CACHE = "cache_"  # llama.cpp names its KV cache cache_k_l3


@dataclass(frozen=True)
class OpGraph:
    """A definition, and the mean over its executions.

    Attributes:
        def_id: the definition.
        scope: what the times are of, for a reader.
        executions: graphs that the times are of.
        nodes: rows of the trace's nodes table, by place in the graph; and per node wall_ns,
            compute_ns, wait_ns (means over executions and threads, 0 where it ran in another's),
            flops, bytes (least, NaN if not known), runs, and ``into``: place of the node that it
            ran fused into, else its own; and of each counter its mean (``COUNTED`` + name).
        sources: idx, slot, src_idx (-1: no node), src_name, kind (node, weight, cache, input),
            type and shape (of the first two sources only, else empty), src_unread.
        every: dependencies between all nodes.
        works: nodes that compute something, shape (n,).
        counters: names of what was counted, and the bytes that each of such an event moves.
        pieces: the definitions that it is made of, in the order in which they ran.
    """

    def_id: int
    scope: str
    executions: int
    nodes: pd.DataFrame
    sources: pd.DataFrame
    every: Dependencies
    works: Mask
    counters: dict[str, int | None] = field(default_factory=dict)
    pieces: tuple[Piece, ...] = ()

    def __len__(self) -> int:
        return len(self.nodes)

    @cached_property
    def folded(self) -> Dependencies:
        """Dependencies between nodes that compute, views looked through."""
        return self.every.through(self.works)

    @cached_property
    def whole(self) -> Dag:
        """All nodes."""
        return Dag(len(self), self.every.src, self.every.dst)

    @cached_property
    def dag(self) -> Dag:
        """Nodes that compute; the others are there without edges."""
        return Dag(len(self), self.folded.src, self.folded.dst)

    @cached_property
    def level(self) -> I32:
        """Level of each node among those that compute, -1 for the others, shape (n,)."""
        return np.where(self.works, self.dag.levels(), -1).astype(np.int32)

    @cached_property
    def paths(self) -> Paths:
        """Longest paths by measured time."""
        return self.dag.paths(self.nodes["wall_ns"].to_numpy(np.float64))

    @cached_property
    def critical(self) -> Mask:
        """Nodes on the longest path, shape (n,); none of pieces where nothing was measured."""
        out = np.zeros(len(self), bool)
        out[self.paths.nodes if self.timed else []] = True
        return out & self.works & self.seen[self.piece]

    @cached_property
    def leaves(self) -> dict[int, list[tuple[str, str]]]:
        """Weights, caches and inputs that each node reads: name, and type if it is a weight."""
        table = self.sources[self.sources["kind"] != NODE]
        out: dict[int, list[tuple[str, str]]] = {}
        columns = ("idx", "src_name", "kind", "type")
        for idx, name, kind, of in zip(*(table[c].tolist() for c in columns), strict=True):
            out.setdefault(idx, []).append((name, of if kind == WEIGHT else ""))
        return out

    @cached_property
    def titles(self) -> list[str]:
        """Operator of each node, with what its parameters say."""
        both = zip(self.texts("op"), self.texts("params"), strict=True)
        return [f"{op} {params}".rstrip() for op, params in both]

    @property
    def several(self) -> bool:
        """It was split over backends."""
        return len(self.pieces) > 1

    def spent(self, places: Sequence[int] | I32) -> float:
        """Time of some nodes, as far as it was measured; NaN if none of it was."""
        wall = self.wall_ns[places]
        known = wall[~np.isnan(wall)]
        return float(known.sum()) if len(known) else math.nan

    @cached_property
    def seen(self) -> Mask:
        """Pieces of which anything was measured; those of other backends may not be."""
        count = max(len(self.pieces), 1)
        return np.bincount(self.piece, self.nodes["wall_ns"], count) > 0

    @cached_property
    def piece(self) -> I32:
        """Number of the piece of each node, shape (n,)."""
        ends = [piece.end for piece in self.pieces]
        return np.searchsorted(ends, np.arange(len(self)), side="right").astype(np.int32)

    @property
    def title(self) -> str:
        """For a heading."""
        name = said(self.pieces) or f"graph {self.def_id}"
        return name[:1].upper() + name[1:]

    def backend(self, place: int) -> str:
        """Of a node; empty where there is but one piece."""
        return self.pieces[int(self.piece[place])].backend if self.several else ""

    def texts(self, column: str) -> list[str]:
        """A column of the nodes as strings."""
        return self.nodes[column].astype(str).tolist()

    @property
    def timed(self) -> bool:
        """Whether anything was measured."""
        return self.total_ns > 0

    @property
    def wall_ns(self) -> F64:
        """Time of each node, NaN where nothing of its piece was measured, shape (n,)."""
        wall = self.nodes["wall_ns"].to_numpy(np.float64)
        return np.where(self.seen[self.piece], wall, np.nan)

    @property
    def total_ns(self) -> float:
        """Time of all operators."""
        return float(self.nodes["wall_ns"].sum())


def definitions(trace: Trace, selection: Selection) -> pd.DataFrame:
    """Definitions that the selected graphs ran: def_id, graphs, time_ns; most of the time first."""
    graphs = trace.graphs[selection.graphs]
    graphs = graphs[graphs["def_id"] >= 0]
    spent = (graphs["end_ns"] - graphs["begin_ns"]).groupby(graphs["def_id"])
    out = spent.agg(graphs="size", time_ns="sum").reset_index()
    return out.sort_values(["time_ns", "def_id"], ascending=[False, True], ignore_index=True)


def op_graph(trace: Trace, which: int | Pass, selection: Selection) -> OpGraph:
    """What ran, with the times of its selected executions.

    Args:
        trace: what was recorded.
        which: a definition, which must be there; or all of those that made one pass over the model.
        selection: whose graphs count, as far as they ran it.
    """
    whole = which if isinstance(which, Pass) else Pass((which,), ("",), ((),), 0, 0)
    of_node = trace.nodes["def_id"].to_numpy()
    each = [np.flatnonzero(of_node == def_id) for def_id in whole.defs]
    rows, n = np.concatenate(each), sum(map(len, each))
    ends = np.cumsum([len(one) for one in each])
    pieces = tuple(
        Piece(def_id, backend, int(end) - len(one), int(end), handed)
        for def_id, backend, handed, one, end in zip(
            whole.defs, whole.backends, whole.handed, each, ends, strict=True
        )
    )
    nodes = shapes.with_problem(trace.nodes).iloc[rows].reset_index(drop=True)
    nodes["idx"] = np.arange(n)
    graphs = selection.graphs & trace.graphs["def_id"].isin(whole.defs).to_numpy()
    work = per_execution(trace)
    works = ~nodes["empty"].to_numpy() & ~(nodes["op"] == "?").to_numpy()
    place = np.full(len(of_node), -1, np.int64)
    place[rows] = np.arange(n)
    walls = trace.op_walls
    node = place[walls["node_id"].to_numpy()]
    kept = np.flatnonzero(graphs[walls["graph_id"].to_numpy()] & (node >= 0))
    walls, node = walls.iloc[kept], node[kept]
    nodes = nodes.assign(
        flops=work.flops[rows],
        bytes=work.moved[rows],
        **measured(walls, node, n),
        into=ran_into(walls, node, works),
    )
    counted = {c.name: c.bytes for c in trace.meta.plan.counters}
    if counted:
        means = counters.means(trace, graphs).iloc[rows].reset_index(drop=True)
        nodes = pd.concat([nodes, means.add_prefix(COUNTED)], axis=1)
    sources = _sources(trace, pieces, nodes)
    executions = whole.runs or int(graphs.sum())
    if not executions:  # of another backend: a split and no graph of the CPU
        executions = len(chosen(trace, trace.splits[trace.splits["def_id"] == which], selection))
    return OpGraph(
        def_id=whole.defs[0],
        scope=_scope(pieces, executions, selection),
        executions=executions,
        nodes=nodes,
        sources=sources,
        every=joined(
            [trace.dependencies(def_id) for def_id in whole.defs], pieces, nodes, works, sources
        ),
        works=works,
        counters=counted,
        pieces=pieces,
    )


def _scope(pieces: tuple[Piece, ...], executions: int, selection: Selection) -> str:
    """What the times are of: the selection ran other graphs, too."""
    runs = format_things(executions, "execution") if executions else "no execution"
    runs = f"means over {runs}" if executions > 1 else runs
    of = f"{selection.phase or 'all phases'}: {format_things(selection.n_graphs, 'graph')}"
    warm = ("warm-up excluded",) if selection.warmup_excluded else ()
    return ", ".join((f"{runs} of {said(pieces)} ({of})", *selection.filters, *warm))


def _sources(trace: Trace, pieces: tuple[Piece, ...], nodes: pd.DataFrame) -> pd.DataFrame:
    """What each node reads, and what kind of thing it is; places in the whole."""
    of_edge = trace.edges["def_id"].to_numpy()
    parts = []
    for piece in pieces:
        part = trace.edges[of_edge == piece.def_id]
        inside = (part["src_idx"] >= 0).to_numpy()
        parts.append(
            part.assign(
                idx=part["idx"] + piece.begin,
                src_idx=part["src_idx"].where(~inside, part["src_idx"] + piece.begin),
            )
        )
    edges: pd.DataFrame = pd.concat(parts, ignore_index=True)
    names = edges["src_name"].astype(str)
    if len(pieces) > 1:
        outside = ((edges["src_idx"] < 0) & ~edges["src_is_weight"]).to_numpy(bool)
        found = made_before(edges["idx"], names, outside, nodes["name"].astype(str), pieces)
        edges["src_idx"] = edges["src_idx"].where(found < 0, found)
    kind = np.where(
        edges["src_idx"] >= 0,
        NODE,
        np.where(
            edges["src_is_weight"],
            WEIGHT,
            np.where(names.str.startswith(_CACHE), CACHE, INPUT),
        ),
    )
    columns = ["idx", "slot", "src_idx", "src_unread"]
    out = edges[columns].assign(src_name=names, kind=kind)
    for name, column in (("type", "type"), ("shape", "ne")):
        told = [nodes[f"src{slot}_{column}"].astype(str).to_numpy() for slot in range(2)]
        idx = out["idx"].to_numpy()
        out[name] = np.where(
            out["slot"] == 0, told[0][idx], np.where(out["slot"] == 1, told[1][idx], "")
        )
    return out
