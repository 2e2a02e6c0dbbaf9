"""Layer 7: the operators of a timeline, a block of graphs at a time, fitted into their parents.

Owns the cutting into blocks and the guarantee that the operators of a thread follow one another.
May import numpy; must not import perfetto or the command line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profinfer.render.nesting import GRAPH, Containers
from profinfer.render.timeline import Timeline, ints
from profinfer.render.trackevent import Ints

VISIT_LEVEL = 60  # containers nest far less deep
OP_LEVEL = 64


@dataclass(frozen=True)
class OpBlock:
    """Operators of some consecutive graphs, by thread and time, fitted into their parents.

    Attributes:
        until_ns: no later block has anything that begins before this.
        row: (n,) row of the ops table.
        track: (n,) index into the sorted thread ids.
        graph: (n,) row of the graphs table.
        node_id: (n,) output node.
        fused: (n,) nodes covered; 0 for an empty node with a barrier after it.
        begin: (n,) ns, compute begins.
        end: (n,) ns, compute ends, wait begins.
        release: (n,) ns, wait ends.
        late: (n,) begins after its parent.
        visit_row: (v,) first row of each visit of a graph by a thread that does not own it.
        visit_end: (v,) ns.
        adjusted: operators whose times had to be cut to fit.
    """

    until_ns: int
    row: Ints
    track: Ints
    graph: Ints
    node_id: Ints
    fused: Ints
    begin: Ints
    end: Ints
    release: Ints
    late: NDArray[np.bool_]
    visit_row: Ints
    visit_end: Ints
    adjusted: int


def op_blocks(
    timeline: Timeline, containers: Containers, tids: Ints, last_ns: int, block_ops: int
) -> Iterator[OpBlock]:
    """The operators in blocks of whole graphs, in order of the graphs' begins.

    Args:
        timeline: the tables.
        containers: the nested graphs, from ``contain``.
        tids: every thread id of the timeline, sorted.
        last_ns: nothing is later.
        block_ops: about how many operators a block has.

    Yields:
        at least one block; the last one's ``until_ns`` is past ``last_ns``. Memory is that of
        one block, beside the tables.
    """
    ops, graphs = timeline.ops, timeline.graphs
    op_graph = ops["graph_id"].to_numpy()
    order: Ints | None = None
    if np.any(op_graph[1:] < op_graph[:-1]):
        order = np.argsort(op_graph, kind="stable")
        op_graph = op_graph[order]
    is_graph = containers.kind == GRAPH
    graph_row = containers.row[is_graph]  # by begin
    graph_begin, graph_end = containers.begin[is_graph], containers.end[is_graph]
    owner = containers.tid[is_graph]
    graph_id = ints(graphs, "graph_id")[graph_row].astype(op_graph.dtype)
    first = np.searchsorted(op_graph, graph_id, side="left")
    count = np.searchsorted(op_graph, graph_id, side="right") - first
    # Blocks are cut between graphs, as soon as there are enough operators.
    number = (np.cumsum(count) - count) // block_ops
    cuts = np.flatnonzero(np.diff(number, prepend=-1)).tolist() or [0]
    free_at = np.full(len(tids), np.iinfo(np.int64).min, np.int64)
    for lo, hi in zip(cuts, [*cuts[1:], len(graph_row)], strict=True):
        n = count[lo:hi]
        at = np.arange(int(n.sum()), dtype=np.int64)
        at += np.repeat(first[lo:hi] - (np.cumsum(n) - n), n)
        row = at if order is None else order[at]
        rows = ops.iloc[row]
        tid, begin, release = ints(rows, "tid"), ints(rows, "begin_ns"), ints(rows, "release_ns")
        track = np.searchsorted(tids, tid)
        by_thread = np.lexsort((release, begin, track))
        track, tid = track[by_thread], tid[by_thread]
        graph = np.repeat(np.arange(lo, hi, dtype=np.int64), n)[by_thread]
        times = (begin[by_thread], ints(rows, "end_ns")[by_thread], release[by_thread])
        fitted = _fit(
            track, graph, tid == owner[graph], times, graph_begin[graph], graph_end[graph], free_at
        )
        yield OpBlock(
            until_ns=int(graph_begin[hi]) if hi < len(graph_row) else last_ns + 1,
            row=row[by_thread],
            track=track,
            graph=graph_row[graph],
            node_id=ints(rows, "node_id")[by_thread],
            fused=ints(rows, "fused")[by_thread],
            begin=fitted.begin,
            end=fitted.end,
            release=fitted.release,
            late=fitted.late,
            visit_row=fitted.visit_row,
            visit_end=fitted.visit_end,
            adjusted=fitted.adjusted,
        )


@dataclass(frozen=True)
class _Fitted:
    begin: Ints
    end: Ints
    release: Ints
    late: NDArray[np.bool_]
    visit_row: Ints
    visit_end: Ints
    adjusted: int


def _fit(
    track: Ints,
    graph: Ints,
    owned: NDArray[np.bool_],
    times: tuple[Ints, Ints, Ints],
    graph_begin: Ints,
    graph_end: Ints,
    free_at: Ints,
) -> _Fitted:
    """Make operators follow one another on each thread, and lie within their graph.

    All arguments are one element an operator, by thread and time, but ``free_at``: for each
    thread, when its last operator of the blocks before ended; updated.
    """
    begin, end, release = times
    # The slice of the graph is on its owner's thread; the others get a slice made to measure.
    lower = np.where(owned, graph_begin, np.iinfo(np.int64).min)
    upper = np.where(owned, graph_end, np.iinfo(np.int64).max)
    b = np.clip(begin, lower, upper)
    e = np.clip(np.maximum(end, begin), lower, upper)
    r = np.clip(np.maximum(np.maximum(release, end), begin), lower, upper)
    new_visit = np.ones(len(b), np.bool_)
    if len(b):
        head = np.flatnonzero(np.diff(track, prepend=-1))
        free = free_at[track[head]]
        taken = r.copy()
        taken[head] = np.maximum(r[head], free)
        # A running maximum for each thread: lift each thread above the one before it.
        base = int(b.min())
        lift = track * (int(taken.max()) - base + 1)
        reached = np.maximum.accumulate(taken - base + lift) - lift + base
        before = np.empty_like(reached)
        before[1:] = reached[:-1]
        before[head] = free
        b = np.maximum(b, before)
        e = np.maximum(e, b)
        r = np.maximum(r, e)
        free_at[track[head]] = r[np.append(head[1:], len(b)) - 1]
        new_visit[1:] = (track[1:] != track[:-1]) | (graph[1:] != graph[:-1])
    starts = np.flatnonzero(new_visit)
    ends = np.append(starts[1:], len(b))[: len(starts)]
    parent_begin = np.where(owned, lower, np.repeat(b[starts], ends - starts))
    foreign = ~owned[starts]
    return _Fitted(
        begin=b,
        end=e,
        release=r,
        late=b > parent_begin,
        visit_row=starts[foreign],
        visit_end=r[ends[foreign] - 1],
        adjusted=int(((b != begin) | (e != end) | (r != release)).sum()),
    )
