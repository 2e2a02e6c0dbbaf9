"""Layer 6: how much of the KV cache attention really looks at, from the positions of its tokens.

Graphs are built for a padded number of cells, and FLASH_ATTN_EXT of the CPU backend passes over
those whose mask is -inf (``ggml-cpu/ops.cpp``: ``if (mv == -INFINITY) continue``, and whole tiles
for prompts). A token at position p sees the p + 1 cells of its sequence. Vectorised over graphs
and nodes. Must not import rich or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.model.operands import KV
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

ATTENTION = "FLASH_ATTN_EXT"
_Q, _K = 1, 2  # slots of the operands, the output being 0


@dataclass(frozen=True)
class Seen:
    """Of attention nodes, in the mean over their executions, as parts of what the shapes say.

    Attributes:
        node: node_id, shape (n,). Only nodes of which every execution is known.
        scores: products of a query and a key, shape (n,).
        cells: cells that any query looks at, shape (n,).
        exact: whether it is what was computed; else it is the most, shape (n,).
    """

    node: npt.NDArray[np.int64]
    scores: F64
    cells: F64
    exact: Mask


def seen(trace: Trace, selection: Selection | None = None) -> Seen:
    """Which part of scores and cells is not masked.

    Args:
        trace: what was recorded.
        selection: the executions to average over; None for all.
    """
    walls = trace.op_walls
    kept = _nodes(trace)
    wanted_nodes = kept if selection is None else kept & selection.nodes
    chosen = np.flatnonzero(wanted_nodes[walls["node_id"].to_numpy()])
    graph, node = (walls[c].to_numpy()[chosen].astype(np.int64) for c in ("graph_id", "node_id"))
    if selection is not None:
        asked = selection.graphs[graph]
        graph, node = graph[asked], node[asked]
    known = _executions(trace, kept)
    width = len(kept)
    keys = (known["graph_id"] * width + known["node_id"]).to_numpy()
    wanted = graph * width + node
    order = np.argsort(keys)
    at = np.searchsorted(keys[order], wanted)
    hit = at < len(keys)
    hit[hit] = keys[order][at[hit]] == wanted[hit]
    row = order[at[hit]]
    told = known.iloc[row].assign(node_id=node[hit])
    mean = told.groupby("node_id").agg({"scores": "mean", "cells": "mean", "exact": "all"})
    counts = told["node_id"].value_counts().reindex(mean.index).to_numpy()
    whole = counts == np.bincount(node, minlength=width)[mean.index.to_numpy(np.int64)]
    mean = mean[whole]
    return Seen(
        mean.index.to_numpy(np.int64),
        mean["scores"].to_numpy(np.float64),
        mean["cells"].to_numpy(np.float64),
        mean["exact"].to_numpy(np.bool_),
    )


def _nodes(trace: Trace) -> Mask:
    """Nodes of attention whose keys are in the KV cache, shape (N,)."""
    o = trace.operands
    if o.kind.ndim != 2 or not len(o.op):
        return np.zeros(len(o.of_node), np.bool_)
    cached = np.r_[o.kind[:, _K - 1] == KV, False]
    out: Mask = (trace.nodes["op"] == ATTENTION).to_numpy(np.bool_) & cached[o.of_node]
    return out


def _executions(trace: Trace, kept: Mask) -> pd.DataFrame:
    """A row per execution whose positions are known: graph_id, node_id, scores, cells, exact.

    Calls are cut into micro-batches, a graph or, on several backends, some graphs each; a layer's
    attention runs once a micro-batch.
    """
    node = np.flatnonzero(kept)
    o, table = trace.operands, trace.nodes
    ne = o.ne[o.of_node[node]].astype(np.float64)
    nodes = pd.DataFrame(
        {
            "node_id": node,
            "def_id": table["def_id"].to_numpy()[node],
            "cache": table["src1_name"].astype(str).to_numpy()[node],
            "tokens": ne[:, _Q, 1] * ne[:, _Q, 3],
            "room": ne[:, _K, 1],
            "streams": ne[:, _K, 3],
        }
    )
    # Layers whose cache is smaller than others' have a window, which the shapes do not tell.
    nodes["window"] = nodes["room"] < nodes.groupby("def_id")["room"].transform("max")
    graphs = trace.graphs.loc[trace.graphs["call_id"] >= 0, ["graph_id", "call_id", "def_id"]]
    runs = graphs.merge(nodes, on="def_id").sort_values("graph_id", kind="stable")
    runs = runs.merge(_batches(trace), on="call_id")
    of_layer = runs.groupby(["call_id", "cache"])["tokens"]
    before = of_layer.cumsum() - runs["tokens"]
    whole = of_layer.transform("sum") == runs["n_tokens"]
    alone = runs["tokens"] == runs["n_tokens"]  # the whole batch in one graph
    # Of one sequence the tokens come in order, and each micro-batch has its part of them.
    first = runs["pos_first"] + before
    n = runs["tokens"]
    scores = runs["scores"].where(alone, n * first + n * (n + 1) / 2)
    cells = runs["cells"].where(alone, first + n)
    room = runs["room"] * runs["streams"]
    most = n * runs["room"]
    known = runs.assign(
        exact=(scores <= most) & (cells <= room) & ~runs["window"],
        scores=np.minimum(scores / most, 1.0),
        cells=np.minimum(cells / room, 1.0),
    )
    keep = whole & (alone | runs["one"]) & (most > 0)
    return known.loc[keep, ["graph_id", "node_id", "scores", "cells", "exact"]]


def _batches(trace: Trace) -> pd.DataFrame:
    """A row per call whose sequences and positions are known.

    Returns:
        call_id, n_tokens, pos_first, one (it has one sequence), scores and cells of the batch.
    """
    s = trace.sequences
    s = s[["call_id", "seq", "n_tokens", "pos_first"]].astype(np.int64)
    n, first = s["n_tokens"], s["pos_first"]
    calls = trace.calls.set_index("call_id")
    last = calls["pos_last"].reindex(s["call_id"]).to_numpy(np.int64)
    one = s.groupby("call_id")["seq"].transform("size") == 1
    # Pictures have positions that do not count up, and a batch may skip some.
    told = (s["seq"] >= 0) & (first >= 0) & (n > 0) & (~one | (last - first + 1 == n))
    s = s.assign(scores=n * first + n * (n + 1) // 2, cells=first + n, told=told, one=one)
    out = s.groupby("call_id").agg(
        {
            "n_tokens": "sum", "pos_first": "first", "scores": "sum", "cells": "sum",
            "told": "all", "one": "all",
        }
    )  # fmt: skip
    return out[out["told"]].drop(columns="told").reset_index()
