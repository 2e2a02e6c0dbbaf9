"""Layer 7: calls, samplings, splits and graphs as slices that lie within one another.

Owns the nesting by time on each thread. May import numpy; must not import perfetto or the
command line.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profinfer.render.timeline import Timeline, ints
from profinfer.render.trackevent import Ints

CALL, SAMPLE, SPLIT, WALK, GRAPH = range(5)
_RANK = (0, 0, 1, 2, 2)  # of two containers that begin together, the lower rank is the parent


@dataclass(frozen=True)
class Containers:
    """Slices that hold other slices, properly nested on each thread, ordered by begin.

    Attributes:
        kind: CALL, SAMPLE, SPLIT, WALK or GRAPH.
        row: position in the table of that kind (the graphs table for WALK).
        begin: ns.
        end: ns.
        tid: thread.
        level: number of slices around it on its thread.
        late: begins after its parent.
        open: its end was not recorded; ``end`` is the latest it can be.
        adjusted: number of slices that were cut to fit into the one around them.
    """

    kind: Ints
    row: Ints
    begin: Ints
    end: Ints
    tid: Ints
    level: Ints
    late: NDArray[np.bool_]
    open: NDArray[np.bool_]
    adjusted: int

    def __len__(self) -> int:
        return len(self.begin)


def _close(begin: Ints, end: Ints, tid: Ints, last_ns: int) -> tuple[Ints, NDArray[np.bool_]]:
    """Give spans without an end the begin of the next one on their thread, or the last time."""
    is_open = end < begin
    if not is_open.any():
        return end, is_open
    order = np.lexsort((begin, tid))
    following = np.full(len(begin), last_ns, np.int64)
    same = tid[order][1:] == tid[order][:-1]
    following[order[:-1][same]] = begin[order][1:][same]
    return np.where(is_open, np.maximum(following, begin), end), is_open


def contain(timeline: Timeline, last_ns: int) -> Containers:
    """Calls, samplings, splits and graphs, nested by time on each thread.

    Nesting goes by time and not by the ids of the tables, so that whatever was lost, every slice
    lies within the one around it. A slice that would cross the end of the one around it is cut
    there, and counted.
    """
    tables = {
        CALL: timeline.calls,
        SAMPLE: timeline.samples,
        SPLIT: timeline.splits,
        GRAPH: timeline.graphs,
    }
    parts: list[tuple[Ints, ...]] = []
    for kind, table in tables.items():
        begin, tid = ints(table, "begin_ns"), ints(table, "tid")
        end, is_open = _close(begin, ints(table, "end_ns"), tid, last_ns)
        if "cut" in table:
            is_open |= table["cut"].to_numpy(dtype=bool)
        row = np.arange(len(table), dtype=np.int64)
        parts.append((np.full(len(row), kind), row, begin, end, tid, is_open.astype(np.int64)))
        if kind == GRAPH:
            walk = np.maximum(ints(table, "walk_ns"), 0)
            has = walk > 0
            none = np.zeros(int(has.sum()), np.int64)
            parts.append((none + WALK, row[has], (begin - walk)[has], begin[has], tid[has], none))
    kind_, row, begin, end, tid, opened = (
        np.concatenate([part[i] for part in parts]).astype(np.int64) for i in range(6)
    )
    rank = np.array(_RANK)[kind_]
    # The walk that read a graph's nodes ends where the graph begins: the walk comes first.
    order = np.lexsort((kind_, -end, rank, begin, tid))
    level = np.zeros(len(order), np.int64)
    late = np.ones(len(order), np.bool_)
    adjusted = 0
    stack: list[tuple[int, int]] = []  # (begin, end) of what is open
    on = None
    # One turn a call, split or graph; operators never come here.
    for i in order.tolist():
        if tid[i] != on:
            on, stack = tid[i], []
        b, e = int(begin[i]), int(end[i])
        while stack and stack[-1][1] <= b:
            stack.pop()
        if stack:
            if e > stack[-1][1]:
                adjusted += 0 if opened[i] else 1
                e = stack[-1][1]
                end[i] = e
            late[i] = b > stack[-1][0]
        level[i] = len(stack)
        stack.append((b, e))
    by_begin = np.lexsort((level, begin))
    return Containers(
        kind=kind_[by_begin],
        row=row[by_begin],
        begin=begin[by_begin],
        end=end[by_begin],
        tid=tid[by_begin],
        level=level[by_begin],
        late=late[by_begin],
        open=opened[by_begin] > 0,
        adjusted=adjusted,
    )
