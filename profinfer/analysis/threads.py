"""Layer 6: what each thread did: computing, waiting, neither.

Must not import rich or anything above.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.analysis import notes, scheduling
from profinfer.analysis.result import Column, Note, Result
from profinfer.model.selection import Selection
from profinfer.model.sums import ThreadSums
from profinfer.model.trace import Trace

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

COLUMNS = (
    Column("thread", "thread", "text", "Name of the thread."),
    Column("tid", "tid", "id", "Thread id."),
    Column("ops", "operators", "count", "Operators that it took part in."),
    Column("compute_ns", "compute", "ns", "Computing."),
    Column("wait_ns", "wait", "ns", "Waiting in barriers for other threads."),
    Column("gap_ns", "gap", "ns", "In complete graphs, but in no operator: starting and leaving."),
    Column("wait_share", "wait", "ratio", "Waiting as a part of computing and waiting."),
    Column("share", "share", "ratio", "Part of all threads' computing.", bar=True),
)
# Only where the engine has such barriers.
EMPTY = Column("empty_ns", "empty nodes", "ns", "At nodes without work, their barriers included.")


def threads(trace: Trace, selection: Selection, *, states: bool = True) -> Result:
    """One row per thread that computed in the selection.

    Args:
        trace: the trace.
        selection: which operators.
        states: with the columns of the thread states, where they were recorded.
    """
    every = trace.threads["tid"].to_numpy()
    sums = trace.thread_sums(selection)
    # Gaps of torn graphs are not gaps but what is missing.
    sound = trace.graphs["complete"].to_numpy() & selection.graphs
    whole = trace.thread_sums(selection.with_graphs(sound))
    counts, compute = _spread(sums, sums.ops, every), _spread(sums, sums.compute, every)
    wait = _spread(sums, sums.time, every) - compute
    spent = _spread(whole, whole.spent, every)
    ran = counts > 0
    # Empty nodes are no operators: views of operators leave them out.
    empty = _at_empty_nodes(trace, every, selection.graphs & (not selection.narrowed))
    spent += _at_empty_nodes(trace, every, sound)
    ids, counts, spent, compute, wait, empty = (
        a[ran] for a in (every, counts, spent, compute, wait, empty)
    )
    frame = pd.DataFrame({"tid": ids, "ops": counts})
    names = dict(zip(trace.threads["tid"], trace.threads["name"], strict=True))
    frame["thread"] = [names.get(t, "") or f"thread {t}" for t in ids.tolist()]
    frame["compute_ns"], frame["wait_ns"] = compute, wait
    gap = np.zeros(len(ids), np.int64)
    if not selection.narrowed:
        visits = trace.visits
        mine = (visits.graph >= 0) & np.r_[sound, False][visits.graph]
        seen = np.unique(np.c_[visits.tid, visits.graph][mine], axis=0)
        length = (trace.graphs["end_ns"] - trace.graphs["begin_ns"]).to_numpy()
        known = np.isin(seen[:, 0], ids)
        np.add.at(gap, np.searchsorted(ids, seen[known, 0]), length[seen[known, 1]])
        gap -= spent
    frame["gap_ns"] = pd.Series(gap, dtype="Int64")
    if selection.narrowed:
        frame["gap_ns"] = pd.NA
    columns = list(COLUMNS)
    if empty.any():
        frame["empty_ns"] = empty
        columns.insert(5, EMPTY)
    both = frame["compute_ns"] + frame["wait_ns"]
    frame["wait_share"] = (frame["wait_ns"] / both).where(both > 0)
    busy = int(compute.sum())
    frame["share"] = frame["compute_ns"] / busy if busy else np.nan
    nodes = trace.sums(selection)
    extra: list[Note] = []
    if nodes.whole_wall and len(ids) > 1:
        lost = 100 * (nodes.compute_max - int(nodes.compute.sum())) / nodes.whole_wall
        text = f"imbalance: the slowest thread of each operator costs {lost:.1f} % of its time"
        extra.append(Note("info", text))
    if states and trace.has_sched:
        columns += scheduling.STATE_COLUMNS
        told = scheduling.shares(scheduling.per_thread(trace, selection)).reindex(ids)
        for column in scheduling.STATE_COLUMNS:
            frame[column.name] = told[column.name].to_numpy()
    total = {
        "ops": int(counts.sum()),
        "compute_ns": busy,
        "wait_ns": int(wait.sum()),
        "empty_ns": int(empty.sum()),
        "gap_ns": None if selection.narrowed else int(gap.sum()),
        "wait_share": int(wait.sum()) / int(both.sum()) if both.sum() else None,
        "share": 1.0 if busy else None,
    }
    return Result(
        "threads",
        "Threads",
        selection.description,
        tuple(columns),
        frame[[c.name for c in columns]],
        (*notes.of(trace, selection), *extra),
        {k: v for k, v in total.items() if k in frame},
    )


def _spread(sums: ThreadSums, values: I64, every: I64) -> I64:
    """Values of some threads, in the order of all of them; 0 for the others."""
    out = np.zeros(len(every), np.int64)
    out[np.searchsorted(every, sums.tids)] = values
    return out


def _at_empty_nodes(trace: Trace, every: I64, graphs: Mask) -> I64:
    """Nanoseconds of each thread at the empty nodes of some graphs, barriers included."""
    ops = trace.empty_ops
    length = (ops["release_ns"] - ops["begin_ns"]).to_numpy(copy=True)
    length[~graphs[ops["graph_id"].to_numpy()]] = 0
    out = np.zeros(len(every), np.int64)
    np.add.at(out, np.searchsorted(every, ops["tid"].to_numpy()), length)
    return out
