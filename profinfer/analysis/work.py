"""Layer 6: operations and bytes of every node, and of the executions of a selection.

Owns the joining of the rules with a trace, and what fusion saves. Vectorised over problems and
nodes. Must not import rich or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from profinfer.analysis.work_cells import seen
from profinfer.analysis.work_formulas import Case
from profinfer.analysis.work_rules import RULES
from profinfer.model.operands import ACTIVATION, KV, WEIGHT
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

FUNCTIONS = {"UNARY": "unary_ops", "GLU": "glu_ops"}
MATMUL = ("MUL_MAT", "MUL_MAT_ID")


@dataclass(frozen=True)
class Work:
    """Operations and bytes per node; NaN where they are not known. Shapes (N,).

    Attributes:
        flops: operations.
        weights: bytes of weights read.
        kv: bytes of the KV cache read.
        activations: bytes of everything else read.
        written: bytes written.
        int8: a product with quantised weights, which the engine computes in 8-bit integers.
        at_most: index into ``reasons``: why the true work can be less; 0: it cannot.
        reasons: texts, the first is "".
    """

    flops: F64
    weights: F64
    kv: F64
    activations: F64
    written: F64
    int8: Mask
    at_most: npt.NDArray[np.int8]
    reasons: tuple[str, ...]

    @property
    def moved(self) -> F64:
        """Bytes read and written."""
        return self.weights + self.kv + self.activations + self.written


def per_execution(trace: Trace) -> Work:
    """Work of one execution of each node by itself; of attention in the mean over all of them."""
    return _with_cells(trace, None, _by_shapes(trace)[0])


def _by_shapes(trace: Trace) -> tuple[Work, F64]:
    """The same from shapes alone, and bytes read of each source, (N, S)."""
    o = trace.operands
    n, slots = len(o.op), o.kind.shape[1] if o.kind.ndim == 2 else 0
    flops, written = np.full(n, np.nan), np.full(n, np.nan)
    reads = np.full((n, slots), np.nan)
    at_most = np.zeros(n, np.int8)
    int8 = np.zeros(n, bool)
    engine = trace.meta.engine
    reasons = [""]
    for number in np.unique(o.op).tolist():
        name = engine.ops[number] if 0 <= number < len(engine.ops) else ""
        rule = RULES.get(name)
        if rule is None:
            continue
        rows = np.flatnonzero(o.op == number)
        known = np.array([*getattr(engine, FUNCTIONS.get(name, ""), ()), ""], object)
        param = np.where((o.param[rows] >= 0) & (o.param[rows] < len(known)), o.param[rows], -1)
        case = Case(o.ne[rows].astype(np.float64), o.size[rows], o.element[rows], known[param])
        flops[rows], reads[rows], written[rows] = (
            rule.flops(case),
            rule.reads(case),
            rule.writes(case),
        )
        flops[rows[np.isnan(o.size[rows]).any(axis=1)]] = np.nan  # a source was not read
        if name in MATMUL:
            int8[rows] = o.block[rows, 1] > 1
        if rule.at_most:
            if rule.at_most not in reasons:
                reasons.append(rule.at_most)
            exact = name == "MUL_MAT_ID" and case.ne(3, 1) <= 1
            at_most[rows] = np.where(exact, 0, reasons.index(rule.at_most))
    at = o.of_node  # -1, an unread node, takes the row added at the end
    nan = np.full(1, np.nan)
    reads = np.vstack([reads, np.full((1, slots), np.nan)])[at]
    kind = np.vstack([o.kind, np.zeros((1, slots), np.int8)])[at]

    def of(wanted: int) -> F64:
        out: F64 = np.where(kind == wanted, reads, 0.0).sum(axis=1)
        return out

    work = Work(
        flops=np.r_[flops, nan][at],
        weights=of(WEIGHT),
        kv=of(KV),
        activations=of(ACTIVATION),
        written=np.r_[written, nan][at],
        int8=np.r_[int8, False][at],
        at_most=np.r_[at_most, np.int8(0)][at],
        reasons=tuple(reasons),
    )
    return work, reads


def _with_experts(
    trace: Trace, selection: Selection, one: Work, calls: npt.NDArray[np.int64]
) -> Work:
    """The weights that MUL_MAT_ID really read: of the distinct experts of each graph, in the mean.

    Exact where the router's choices of all its executions are known; else it stays the most that
    can be.
    """
    table, places = trace.experts, trace.expert_places
    table = table[selection.graphs[table["graph_id"].to_numpy()]]
    if not len(table):
        return one
    seen = table[["graph_id", "node_id", "expert"]].drop_duplicates()
    distinct = seen.groupby("node_id").size().reindex(places.place, fill_value=0).to_numpy()
    graphs = seen.drop_duplicates(["graph_id", "node_id"]).groupby("node_id").size()
    graphs = graphs.reindex(places.place, fill_value=0).to_numpy()
    most = np.minimum(places.n_used * places.rows, places.n_experts)
    known = (graphs > 0) & (graphs >= calls[places.node]) & (most > 0)
    node = places.node[known]
    weights, at_most = one.weights.copy(), one.at_most.copy()
    weights[node] *= distinct[known] / graphs[known] / most[known]
    at_most[node] = 0
    return replace(one, weights=weights, at_most=at_most)


def _with_cells(trace: Trace, selection: Selection | None, one: Work) -> Work:
    """The scores that attention really computed, and the cells that it read, where that is known.

    Where it is not it stays what the padded shapes say, which is the most that can be.
    """
    part = seen(trace, selection)
    flops, kv, at_most = one.flops.copy(), one.kv.copy(), one.at_most.copy()
    flops[part.node] *= part.scores
    kv[part.node] *= part.cells
    at_most[part.node[part.exact]] = 0
    return replace(one, flops=flops, kv=kv, at_most=at_most)


# By what was selected of a trace: the roofline, its finding and the matrix products all ask.
_known: WeakKeyDictionary[Selection, Work] = WeakKeyDictionary()


def executed(trace: Trace, selection: Selection) -> Work:
    """Work of all selected executions of each node; kept as long as the selection is."""
    if selection not in _known:
        _known[selection] = _executed(trace, selection)
    return _known[selection]


def _executed(trace: Trace, selection: Selection) -> Work:
    """Work of all selected executions of each node.

    A fused operator does the work of the nodes that it covers. What one of them writes and the
    other reads stays in registers or the nearest cache: it counts neither as written nor as read.
    """
    one, reads = _by_shapes(trace)
    sums = trace.sums(selection)
    one = _with_experts(trace, selection, one, sums.calls)
    one = _with_cells(trace, selection, one)
    calls = sums.calls.astype(np.float64)
    total = {
        name: np.where(calls > 0, getattr(one, name) * calls, 0.0)
        for name in ("flops", "weights", "kv", "activations", "written")
    }
    works = np.flatnonzero(~trace.nodes["empty"].to_numpy())
    place = np.searchsorted(works, np.arange(len(calls)))  # of each node among those with work
    src_node = trace.operands.src_node
    left = sums.covered.astype(np.float64)
    back = 0
    while (left > 0).any():
        back += 1
        at = np.flatnonzero((left > 0) & (place >= back))
        if not len(at):
            break
        times = np.minimum(left[at], calls[at])
        before = works[place[at] - back]
        for name, values in total.items():
            values[at] += times * getattr(one, name)[before]
        total["written"][at] -= times * one.written[before]
        # The reader of the intermediate is one of the nodes between it and the end of the run.
        for step in range(back):
            reader = works[place[at] - step]
            handed = np.where(src_node[reader] == before[:, None], reads[reader], 0.0).sum(axis=1)
            total["activations"][at] -= times * handed
        left[at] -= times
        left[place < back] = 0
    return Work(int8=one.int8, at_most=one.at_most, reasons=one.reasons, **total)
