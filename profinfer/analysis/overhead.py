"""Layer 6: what recording is estimated to have cost the recorded run: all of it, and by phase.

Must not import rich or anything above.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from profinfer.model.hits import hits as counted_hits
from profinfer.model.hits import sched_records
from profinfer.model.trace import Trace
from profinfer.model.windows import inside

F64 = npt.NDArray[np.float64]


def estimated_share(trace: Trace) -> float | None:
    """Part of the calls' time (or the graphs', where there are no calls) that went to recording.

    Hits of one thread times the measured cost of a hit, plus the time spent reading graphs and on
    thread states. Threads pay at the same time and meet at the next barrier, so the hits of one
    thread, and not of all, lie on the path that the token waits for; graphs in which threads differ
    count their mean. A hit inside a call costs the same whether the operator is short or long.

    Returns:
        A ratio, or None if the recording machine's cost of a hit is not in the trace (older
        traces) or nothing ran.
    """
    costs = _costs(trace)
    return None if costs is None else _ratio(*costs, np.ones(len(costs[0]), bool))


def share_by_phase(trace: Trace) -> dict[str, float]:
    """``estimated_share`` of the calls of each phase; empty where it is None or no calls are."""
    costs = _costs(trace) if len(trace.calls) else None
    if costs is None:
        return {}
    phase = trace.calls["phase"].to_numpy()
    whole = ~trace.calls["cut"].to_numpy()
    shares = {str(p): _ratio(*costs, (phase == p) & whole) for p in np.unique(phase)}
    return {p: share for p, share in shares.items() if share is not None}


def _ratio(cost: F64, took: F64, mine: npt.NDArray[np.bool_]) -> float | None:
    total = took[mine].sum()
    return float(cost[mine].sum() / total) if total else None


def _costs(trace: Trace) -> tuple[F64, F64] | None:
    """Cost and length, ns, of each call, or graph where there are no calls."""
    hit_ns = trace.meta.plan.ops.extra.get("hit_ns")
    graphs, calls = trace.graphs, trace.calls
    if not isinstance(hit_ns, int):
        return None
    # Beside the operators': entering and leaving the loop, begin and end of the graph.
    per_graph = (_operator_hits(trace) + 4) * hit_ns + graphs["walk_ns"].to_numpy()
    spans = calls if len(calls) else graphs
    ends = spans["done_ns" if len(calls) else "end_ns"]
    took = (ends - spans["begin_ns"]).to_numpy().astype(float)
    if not took.sum():
        return None
    if not len(calls):
        cost = per_graph
    else:
        owner = graphs["call_id"].to_numpy()
        cost = np.bincount(owner[owner >= 0], per_graph[owner >= 0], len(calls)).astype(float)
        marks = 2 * (len(trace.splits) + len(calls) + len(trace.samples)) * hit_ns
        # Graphs outside of calls, splits and samples: on every call alike.
        cost += (marks + per_graph[owner < 0].sum()) / len(calls)
    return cost + _sched_costs(trace, spans["begin_ns"].to_numpy(), took), took


def _operator_hits(trace: Trace) -> F64:
    """Hits of the operators' probes in each graph, on one thread."""
    graphs = trace.graphs
    pair = 2 if trace.meta.plan.ops.mode == "pair" else 1
    if not trace.narrowed and trace.hits_passed == 0 and "steps" not in trace.meta.options:
        # A barrier after an empty node is a hit like any other.
        told = trace.op_health
        threads = graphs["threads_seen"].to_numpy().clip(min=1)
        rows = sum(
            np.bincount(walls.graph.astype(np.int64), walls.threads, len(graphs))
            for walls in (told.walls, told.empty_walls)
        )
        return np.asarray(rows / threads * pair)
    # Not all hits left records. A graph is hit as often as it has nodes with work; fewer where some
    # are computed together, more where empty ones have barriers, and that the kernel has counted.
    nodes = trace.nodes
    working = np.bincount(nodes["def_id"][~nodes["empty"]], minlength=1)
    known = graphs["def_id"].to_numpy()
    hits = np.where(known >= 0, np.r_[working, 0][known], 0.0) * pair
    begin, end = (graphs[c].to_numpy() for c in ("begin_ns", "end_ns"))
    hits[~inside(begin, end, trace.windows)] = 0
    threads = graphs["n_threads"].to_numpy().clip(min=1)
    expected = float((hits * threads).sum())
    if trace.hits_passed and expected:
        # ENTER and LEAVE are among both, and counted by the caller.
        seen = counted_hits(trace.reader) - 2 * threads[hits > 0].sum()
        hits *= max(seen, 0) / expected
    return np.asarray(hits)


def _sched_costs(trace: Trace, begin: npt.NDArray[np.int64], took: F64) -> F64:
    """What recording thread states cost in each span: its records, at the mean of all.

    In full: threads are hit at the same time, but sleep and wake one after the other, and the one
    that opens a barrier wakes all.
    """
    seen, record_ns = sched_records(trace.reader)
    records = np.searchsorted(seen, begin + took.astype(np.int64)) - np.searchsorted(seen, begin)
    return np.asarray(records * record_ns)
