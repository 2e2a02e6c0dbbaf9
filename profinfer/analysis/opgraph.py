"""Layer 6: one graph of a trace with the times of its operators: what ran, what it read, how long.

Owns the joining of a definition with what was measured of it. Views, renderers and the comparison
of two graphs work on it alone. Must not import rich or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.analysis import counters, shapes
from profinfer.analysis.dag import Dag, Paths
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
            type and shape (of the first two sources only, else empty).
        every: dependencies between all nodes.
        works: nodes that compute something, shape (n,).
        counters: names of what was counted, and the bytes that each of such an event moves.
    """

    def_id: int
    scope: str
    executions: int
    nodes: pd.DataFrame
    sources: pd.DataFrame
    every: Dependencies
    works: Mask
    counters: dict[str, int | None] = field(default_factory=dict)

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
        """Nodes on the longest path, shape (n,); none where nothing was measured."""
        out = np.zeros(len(self), bool)
        out[self.paths.nodes if self.timed else []] = True
        return out & self.works

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

    def texts(self, column: str) -> list[str]:
        """A column of the nodes as strings."""
        return self.nodes[column].astype(str).tolist()

    @property
    def timed(self) -> bool:
        """Whether anything was measured."""
        return self.total_ns > 0

    @property
    def wall_ns(self) -> F64:
        """Time of each node, NaN where nothing was measured at all, shape (n,)."""
        wall = self.nodes["wall_ns"].to_numpy(np.float64)
        return wall if self.timed else np.full(len(self), np.nan)

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


def op_graph(trace: Trace, def_id: int, selection: Selection) -> OpGraph:
    """One definition, with the times of its selected executions.

    Args:
        trace: what was recorded.
        def_id: the definition; must be there.
        selection: whose graphs count, as far as they ran this definition.
    """
    rows = np.flatnonzero((trace.nodes["def_id"] == def_id).to_numpy())
    base, n = int(rows[0]), len(rows)
    nodes = shapes.with_problem(trace.nodes).iloc[rows].reset_index(drop=True)
    graphs = selection.graphs & (trace.graphs["def_id"] == def_id).to_numpy()
    work = per_execution(trace)
    works = ~nodes["empty"].to_numpy() & ~(nodes["op"] == "?").to_numpy()
    walls = trace.op_walls
    node = walls["node_id"].to_numpy() - base
    kept = np.flatnonzero(graphs[walls["graph_id"].to_numpy()] & (node >= 0) & (node < n))
    walls, node = walls.iloc[kept], node[kept]
    nodes = nodes.assign(
        flops=work.flops[rows],
        bytes=work.moved[rows],
        **_measured(walls, node, n),
        into=_into(walls, node, works),
    )
    counted = {c.name: c.bytes for c in trace.meta.plan.counters}
    if counted:
        means = counters.means(trace, graphs).iloc[rows].reset_index(drop=True)
        nodes = pd.concat([nodes, means.add_prefix(COUNTED)], axis=1)
    return OpGraph(
        def_id=def_id,
        scope=_scope(def_id, int(graphs.sum()), selection),
        executions=int(graphs.sum()),
        nodes=nodes,
        sources=_sources(trace, def_id, nodes),
        every=trace.dependencies(def_id),
        works=works,
        counters=counted,
    )


def _scope(def_id: int, executions: int, selection: Selection) -> str:
    """What the times are of: the selection ran other graphs, too."""
    runs = format_things(executions, "execution") if executions else "no execution"
    runs = f"means over {runs}" if executions > 1 else runs
    of = f"{selection.phase or 'all phases'}: {format_things(selection.n_graphs, 'graph')}"
    warm = ("warm-up excluded",) if selection.warmup_excluded else ()
    return ", ".join((f"{runs} of graph {def_id} ({of})", *selection.filters, *warm))


def _measured(walls: pd.DataFrame, node: I64, n: int) -> dict[str, F64]:
    """Means of each node's executions; ``node`` is the place of each."""
    threads = walls["threads"].to_numpy(np.float64)
    runs = np.bincount(node, minlength=n).astype(np.float64)

    def mean(values: F64) -> F64:
        total = np.bincount(node, values, n)
        return np.divide(total, runs, out=np.zeros(n), where=runs > 0)

    length = (walls["release_ns"] - walls["begin_ns"]).to_numpy(np.float64)
    return {
        "runs": runs,
        "wall_ns": mean(length),
        "compute_ns": mean(walls["compute_sum"].to_numpy() / threads),
        "wait_ns": mean(walls["wait_sum"].to_numpy() / threads),
    }


def _into(walls: pd.DataFrame, node: I64, works: Mask) -> I32:
    """Node that each node ran fused into, as in most of the executions."""
    fused = walls["fused"].to_numpy()
    kept = fused > 1
    out = np.arange(len(works), dtype=np.int32)
    places = np.flatnonzero(works)
    for at, covers in np.unique(np.stack([node[kept], fused[kept]]), axis=1).T.tolist():
        where = int(np.searchsorted(places, at))
        out[places[max(where - covers + 1, 0) : where]] = at
    return out


def _sources(trace: Trace, def_id: int, nodes: pd.DataFrame) -> pd.DataFrame:
    """What each node reads, and what kind of thing it is."""
    edges = trace.edges[(trace.edges["def_id"] == def_id).to_numpy()].reset_index(drop=True)
    names = edges["src_name"].astype(str)
    kind = np.where(
        edges["src_idx"] >= 0,
        NODE,
        np.where(
            edges["src_is_weight"],
            WEIGHT,
            np.where(names.str.startswith(_CACHE), CACHE, INPUT),
        ),
    )
    out = edges[["idx", "slot", "src_idx"]].assign(src_name=names, kind=kind)
    for name, column in (("type", "type"), ("shape", "ne")):
        told = [nodes[f"src{slot}_{column}"].astype(str).to_numpy() for slot in range(2)]
        idx = out["idx"].to_numpy()
        out[name] = np.where(
            out["slot"] == 0, told[0][idx], np.where(out["slot"] == 1, told[1][idx], "")
        )
    return out
