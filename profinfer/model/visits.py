"""Layer 5: batches of operator records become visits: one thread's pass through one graph.

Owns flattening, splitting into visits and finding each visit's graph. Vectorised over operator
records; loops over distinct graph addresses only. Must not import pandas or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from profinfer.model.decode import Records
from profinfer.tracefile.schema import OpKind

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Events:
    """Operator records, flat, ordered by thread and then as they were written.

    Attributes:
        ts: nanoseconds, shape (n,).
        kind: OpKind, shape (n,).
        arg: 24-bit argument, shape (n,).
        visit: index into the visits, shape (n,).
    """

    ts: I64
    kind: npt.NDArray[np.uint8]
    arg: I32
    visit: I32


@dataclass(frozen=True)
class Visits:
    """One thread's pass through one graph, ENTER to LEAVE; a lost batch breaks it in pieces.

    Attributes:
        tid: thread, shape (v,).
        cgraph: graph address, 0 if not known, shape (v,).
        start: index of the first event, shape (v,).
        stop: index after the last event, shape (v,).
        enter: nanoseconds of ENTER, -1 if it is missing, shape (v,).
        leave: event index of LEAVE, -1 if it is missing, shape (v,).
        graph: graph_id, -1 if no graph fits, shape (v,).
        lost_batches: batches missing between the sequence numbers of a thread.
        backwards: events older than the one before them on the same thread.
    """

    tid: I64
    cgraph: npt.NDArray[np.uint64]
    start: I64
    stop: I64
    enter: I64
    leave: I64
    graph: I32
    lost_batches: int
    backwards: int

    @property
    def whole(self) -> Mask:
        """Mask of the visits with both their ENTER and their LEAVE, nothing lost in between."""
        return (self.enter >= 0) & (self.leave >= 0)


@dataclass(frozen=True)
class GraphSpans:
    """What assigning needs of the graphs; the index is the graph_id, ordered by begin.

    Attributes:
        cgraph: address, shape (g,).
        begin: nanoseconds, shape (g,).
        end: nanoseconds, the largest integer where the recording stopped first, shape (g,).
    """

    cgraph: npt.NDArray[np.uint64]
    begin: I64
    end: I64


def split(records: Records, graphs: GraphSpans) -> tuple[Events, Visits]:
    """Flatten the batches, cut them into visits and give each visit its graph."""
    head = records.batches[records.batches["n"] > 0]
    n = head["n"].astype(np.int64)
    out_start = np.cumsum(n) - n
    total = int(n.sum())
    ts = records.ops["dt"].astype(np.int64)
    kind = (records.ops["what"] >> 24).astype(np.uint8)
    arg = (records.ops["what"] & 0xFFFFFF).astype(np.int32)
    ts += np.repeat(head["ts"].astype(np.int64), n)

    tid = head["tid"].astype(np.int64)
    same_thread = np.r_[False, tid[1:] == tid[:-1]]
    step = np.diff(head["seq"].astype(np.int64), prepend=0)
    # A thread id that is used again starts its numbers again: not a loss.
    gap = same_thread & (step > 1)
    lost = int((step[gap] - 1).sum())
    cut = ~same_thread | (step != 1) | np.r_[False, head["cgraph"][1:] != head["cgraph"][:-1]]

    start = kind == OpKind.ENTER
    if total:
        after_leave = np.flatnonzero(kind[:-1] == OpKind.LEAVE) + 1
        opens = (kind[after_leave] == OpKind.BEGIN) | (kind[after_leave] == OpKind.END)
        start[after_leave[opens]] = True
        start[out_start[cut]] = True
    first = np.flatnonzero(start)
    visit = np.cumsum(start, dtype=np.int32)
    visit -= 1
    stop = np.r_[first[1:], total].astype(np.int64) if total else np.zeros(0, np.int64)
    batch = np.searchsorted(out_start, first, side="right") - 1

    leave = np.full(len(first), -1, np.int64)
    leaves = np.flatnonzero(kind == OpKind.LEAVE)
    leave[visit[leaves][::-1]] = leaves[::-1]  # the first one wins
    enter = np.where(kind[first] == OpKind.ENTER, ts[first], -1)
    back = np.diff(ts) < 0
    back &= visit[1:] == visit[:-1] if total else np.zeros(0, bool)

    useful = np.flatnonzero((kind == OpKind.END) | (kind == OpKind.BEGIN))
    at = np.searchsorted(useful, first)
    inside = at < len(useful)
    inside[inside] = useful[at[inside]] < stop[inside]
    when = ts[first]
    when[inside] = ts[useful[at[inside]]]
    # A graph of one operator has neither: LEAVE is its only sign of work.
    bare = ~inside & (leave >= 0)
    when[bare] = ts[leave[bare]]

    cgraph = head["cgraph"][batch]
    visits = Visits(
        tid=tid[batch],
        cgraph=cgraph,
        start=first,
        stop=stop,
        enter=enter,
        leave=leave,
        graph=assign(cgraph, when, graphs),
        lost_batches=lost,
        backwards=int(back.sum()),
    )
    return Events(ts, kind, arg, visit), visits


def assign(cgraph: npt.NDArray[np.uint64], when: I64, graphs: GraphSpans) -> I32:
    """Graph of each visit: the latest begun with the same address, if it was still running.

    Args:
        cgraph: address per visit; 0 is matched by time alone.
        when: nanoseconds of each visit's first sign of work.
        graphs: the graphs.
    """
    out = np.full(len(cgraph), -1, np.int32)
    for one in np.unique(cgraph):
        mine = np.flatnonzero(cgraph == one)
        ids = np.flatnonzero(graphs.cgraph == one) if one else np.arange(len(graphs.begin))
        if not len(ids):
            continue
        at = np.searchsorted(graphs.begin[ids], when[mine], side="right") - 1
        ok = at >= 0
        ok[ok] = when[mine][ok] <= graphs.end[ids[at[ok]]]
        out[mine[ok]] = ids[at[ok]]
    return out
