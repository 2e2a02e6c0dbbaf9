"""Layer 5: operator records become operators: who computed which node, from when to when.

Owns arrival, release, compute and wait (``docs/metrics.md`` defines them), fusion, and the
recognition of what is incomplete. All times are int64 nanoseconds. Vectorised over operator
records, in blocks of whole graphs that fit into a CPU's cache. Must not import pandas or above.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from profinfer.model.ahead import ahead
from profinfer.model.opmarks import Collected, Marks, Orphans, Ranks
from profinfer.model.oprows import Rows, Walls, chosen, piece, put, room
from profinfer.model.visits import Visits

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

BLOCK = 1 << 16  # rows brought together at once


@dataclass(frozen=True)
class PerGraph:
    """What the operators say of each graph; the index is the graph_id.

    Attributes:
        threads: threads that were seen in it.
        enter: earliest ENTER, -1 if none.
        release: release of its last operator, -1 if none.
        covered: every node with work was seen exactly once on every thread that was seen.
    """

    threads: npt.NDArray[np.int16]
    enter: I64
    release: I64
    covered: Mask


@dataclass(frozen=True)
class Operators:
    """Everything rebuilt from the operator records, and what could not be.

    Attributes:
        rows: per operator and thread.
        walls: per operator.
        empty_rows: per empty node that threads passed a barrier after (older engines), and
            thread; like ``rows``, ``fused`` is 0.
        empty_walls: per such node; like ``walls``.
        graphs: per graph.
        tids: threads that have any of these, ascending.
        orphans: visits that no recorded graph fits.
        undefined: records of graphs whose definition is not known.
        bad_index: records that name a node the graph does not have.
        disorder: records that do not move forward in their graph.
        clipped: operators that ended before they could have begun (clock or loss).
        ambiguous: records whose 24-bit tensor address names several nodes.
    """

    rows: Rows
    walls: Walls
    empty_rows: Rows
    empty_walls: Walls
    graphs: PerGraph
    tids: I32
    orphans: Orphans
    undefined: int
    bad_index: int
    disorder: int
    clipped: int
    ambiguous: int

    def rows_of(self, tid: int) -> I64:
        """Which of ``rows`` are of a thread, in the order of their begin."""
        mine = np.flatnonzero(self.rows.tid == tid)
        begin = self.rows.begin[mine]
        # They are in the order of the graphs; two graphs of a thread hardly ever overlap.
        return mine[np.argsort(begin, kind="stable")] if (np.diff(begin) < 0).any() else mine


@dataclass(frozen=True)
class _Graphs:
    """What every block needs to know of all graphs and visits.

    Attributes:
        first: index into ``Ranks.nth`` of each graph's first node that was passed.
        working: nodes of each graph that were passed: those with work, and empty ones where the
            engine has a barrier after them.
        threads: threads seen in each graph.
        enter: earliest ENTER of each graph, -1 if none.
        tid: thread of each visit.
        done: of these, how many each visit covered; filled in block by block.
        torn: visits that do not only move forward; likewise.
    """

    first: I64
    working: I64
    threads: npt.NDArray[np.int16]
    enter: I64
    tid: I32
    done: I64
    torn: Mask


def build(
    collected: Collected, visits: Visits, def_of_graph: I32, wanted: Mask | None = None
) -> Operators:
    """Rebuild the operators.

    Args:
        collected: which node each record speaks of.
        visits: who passed through which graph.
        def_of_graph: def_id of each graph, -1 if not known.
        wanted: by node, whether its operator was to be recorded; None for all. A record of another
            one only tells when the operator after it began.
    """
    marks, ranks = collected.marks, collected.ranks
    n_graphs, n_visits = len(def_of_graph), len(visits.tid)
    ours = visits.graph >= 0
    seen = np.unique(visits.graph[ours].astype(np.int64) << 32 | visits.tid[ours])
    about = _Graphs(
        first=np.r_[ranks.first, 0][def_of_graph],
        working=np.r_[ranks.total, 0][def_of_graph],
        threads=np.bincount(seen >> 32, minlength=n_graphs).astype(np.int16),
        enter=_earliest(visits, n_graphs),
        tid=visits.tid.astype(np.int32),
        done=np.zeros(n_visits, np.int64),
        torn=np.zeros(n_visits, bool),
    )
    n_empty = int(ranks.empty[marks.node].sum()) if ranks.skipped is not None else 0
    every, passed = room(Rows, len(marks.visit)), room(Rows, n_empty)
    walls, passed_walls = room(Walls, len(marks.visit)), room(Walls, n_empty)
    at = [0, 0, 0, 0]
    last = np.full(n_graphs, -1, np.int64)
    disorder = clipped = 0
    together = partial(_together, marks, visits=visits, about=about, ranks=ranks)
    for some, some_walls, late, torn in ahead(together, _blocks(marks, visits, n_graphs)):
        last[some_walls.graph] = some_walls.release  # in order of time: the last one stays
        if wanted is not None:
            some = chosen(some, wanted[some.node])
            some_walls = chosen(some_walls, wanted[some_walls.node])
        empty, empty_wall = some.fused == 0, some_walls.fused == 0
        if empty.any():
            at[2] = put(passed, at[2], chosen(some, empty))
            at[3] = put(passed_walls, at[3], chosen(some_walls, empty_wall))
            some, some_walls = chosen(some, ~empty), chosen(some_walls, ~empty_wall)
        at[0] = put(every, at[0], some)
        at[1] = put(walls, at[1], some_walls)
        disorder += late
        clipped += torn
    fine = ours & visits.whole & ~about.torn
    fine[ours] &= about.done[ours] == about.working[visits.graph[ours]]
    covered = (about.threads > 0) & (def_of_graph >= 0)
    covered[visits.graph[ours & ~fine]] = False
    return Operators(
        piece(every, slice(at[0])),
        piece(walls, slice(at[1])),
        piece(passed, slice(at[2])),
        piece(passed_walls, slice(at[3])),
        PerGraph(about.threads, about.enter, last, covered),
        tids=np.unique(about.tid),
        orphans=collected.orphans,
        undefined=collected.undefined,
        bad_index=collected.bad_index,
        disorder=disorder,
        clipped=clipped,
        ambiguous=collected.ambiguous,
    )


def _blocks(marks: Marks, visits: Visits, n_graphs: int) -> Iterator[I64]:
    """Rows of whole graphs, about BLOCK a time, in the order of the graphs."""
    # In the type of the rows: for another one all of them would be copied.
    edge = np.searchsorted(marks.visit, np.arange(len(visits.tid) + 1, dtype=marks.visit.dtype))
    count = np.diff(edge)
    busy = np.flatnonzero(count)
    if not len(busy):
        return
    per_graph = np.zeros(n_graphs, np.int64)
    np.add.at(per_graph, visits.graph[busy], count[busy])
    block = (np.cumsum(per_graph) // BLOCK)[visits.graph[busy]]
    for mine in np.split(busy[np.argsort(block, kind="stable")],
                         np.flatnonzero(np.diff(np.sort(block))) + 1):  # fmt: skip
        n = count[mine]
        yield np.repeat(edge[mine] - np.cumsum(n) + n, n) + np.arange(int(n.sum()))


def _together(
    every: Marks, block: I64, visits: Visits, about: _Graphs, ranks: Ranks
) -> tuple[Rows, Walls, int, int]:
    """Bring the threads of some whole graphs together: who released whom.

    Blocks are worked on side by side: no two of them have a visit or a graph in common.

    Returns:
        Rows, walls, rows out of order, rows that ended before they began.
    """
    marks = every.take(block)
    graph = visits.graph[marks.visit]
    upto = ranks.upto[marks.node]
    known = marks.before >= 0
    covered = np.where(known, upto - marks.before, 1)
    forward = covered >= 1
    covered = np.maximum(covered, 1)
    np.add.at(about.done, marks.visit, covered.astype(np.int64))
    about.torn[marks.visit[~forward]] = True

    # Slots: one per graph and node passed, dense within the block. The rows of one slot are
    # the threads of one operator.
    low = int(graph.min())
    base = np.cumsum(about.working[low : int(graph.max()) + 1])
    base = np.r_[0, base]
    slot = base[graph - low] + upto - 1
    order = _by_slot(slot, about.tid[marks.visit], int(base[-1]))
    slots = slot[order]
    starts = np.flatnonzero(np.r_[True, slots[1:] != slots[:-1]])
    slots = slots[starts]
    size = np.diff(np.r_[starts, len(order)])
    arrival = marks.arrival[order]
    even = bool((size == size[0]).all())
    release = _reduced(np.maximum, arrival, starts, even)
    group = np.repeat(np.arange(len(starts), dtype=np.int32), size)
    if marks.begin is not None:
        begin = marks.begin[order]
        hurt = np.zeros(len(order), bool)
    else:
        before = _Slots(slots, base[graph - low], upto, release)
        begin, hurt = _begins(marks, visits, order, group, before)
        hurt |= ~known[order]
    clipped = begin > arrival
    begin[clipped] = arrival[clipped]

    row_graph = graph[order]
    complete = np.repeat(size, size) == about.threads[row_graph]
    complete &= forward[order] & ~hurt & ~clipped
    fused = covered.astype(np.int16)[order]
    if ranks.skipped is not None:
        end = about.first[graph] + upto
        fused -= (ranks.skipped[end] - ranks.skipped[end - covered])[order]
        # An empty node's record that covers work (some thread's record is lost) is its operator's.
        some_work = _reduced(np.maximum, fused, starts, even) > 0
        fused = np.maximum(fused, np.repeat(some_work, size))
    whole = np.ones(len(starts), bool)
    whole[group[~complete]] = False
    rows = Rows(
        row_graph,
        marks.node[order],
        fused,
        about.tid[marks.visit[order]],
        begin,
        arrival,
        np.repeat(release, size),
        np.repeat(whole, size),
    )
    walls = _walls(rows, starts, size, even, release, whole, about.enter)
    return rows, walls, int((~forward).sum()), int(clipped.sum())


@dataclass(frozen=True)
class _Slots:
    """Where the release of an earlier operator is found.

    Attributes:
        slots: slot of each operator, ascending.
        base: first slot of each row's graph.
        upto: place of each row's node among those passed.
        release: of each operator.
    """

    slots: I64
    base: I64
    upto: I32
    release: I64


def _by_slot(slot: I64, tid: I32, slots: int) -> I64:
    """Order of the rows by slot, threads of one slot in the order of their ids.

    The rows come thread by thread, and a thread passes its slots upwards: then every row's place
    is known without sorting.
    """
    edges = np.flatnonzero(np.r_[True, tid[1:] != tid[:-1]])
    parts = [slice(a, b) for a, b in zip(edges, [*edges[1:], len(slot)], strict=True)]
    if any((np.diff(slot[part]) <= 0).any() for part in parts):
        return np.argsort(slot, kind="stable")
    free = np.bincount(slot, minlength=slots)
    free = np.cumsum(free) - free  # the next free place of each slot
    order = np.empty(len(slot), np.int64)
    for part in parts:
        mine = slot[part]
        order[free[mine]] = np.arange(part.start, part.stop)
        free[mine] += 1
    return order


def _begins(
    marks: Marks, visits: Visits, order: I64, group: I32, before: _Slots
) -> tuple[I64, Mask]:
    """Begin of each sorted row: release of what its thread did before, or its ENTER.

    Returns:
        Begins, and which of them are not certain because what came before is lost.
    """
    by_visit = np.empty(len(order), np.int64)
    by_visit[order] = before.release[group]
    begin = np.r_[0, by_visit[:-1]]
    opens = np.flatnonzero(np.r_[True, marks.visit[1:] != marks.visit[:-1]])
    begin[opens] = visits.enter[marks.visit[opens]]
    hurt = np.zeros(len(order), bool)
    torn = opens[begin[opens] < 0]
    if len(torn):
        # Another thread may have recorded the release that this one waited for.
        hurt[torn] = True
        wanted = before.base[torn] + before.upto[torn] - 2
        at = np.maximum(np.searchsorted(before.slots, wanted, side="right") - 1, 0)
        found = (before.slots[at] <= wanted) & (before.slots[at] >= before.base[torn])
        begin[torn] = np.where(found, before.release[at], marks.arrival[torn])
    return begin[order], hurt[order]


def _earliest(visits: Visits, n_graphs: int) -> I64:
    """Earliest ENTER of each graph, -1 if none."""
    big = np.iinfo(np.int64).max
    out = np.full(n_graphs, big, np.int64)
    ok = (visits.graph >= 0) & (visits.enter >= 0)
    np.minimum.at(out, visits.graph[ok], visits.enter[ok])
    out[out == big] = -1
    return out


def _walls(
    rows: Rows, starts: I64, size: I64, even: bool, release: I64, whole: Mask, enter: I64
) -> Walls:
    """One row per operator: from the previous operator's release to its own."""
    graph = rows.graph[starts]
    first = np.r_[True, graph[1:] != graph[:-1]]
    begin = np.r_[0, release[:-1]]
    earliest = _reduced(np.minimum, rows.begin, starts, even)
    opened = enter[graph]
    begin[first] = np.where(opened >= 0, opened, earliest)[first]
    compute = rows.end - rows.begin
    return Walls(
        graph,
        rows.node[starts],
        rows.fused[starts],
        begin,
        release,
        size.astype(np.int16),
        _reduced(np.maximum, compute, starts, even),
        _reduced(np.add, compute, starts, even),
        _reduced(np.add, rows.release - rows.end, starts, even),
        whole,
    )


def _reduced(how: np.ufunc, values: npt.NDArray[Any], starts: I64, even: bool) -> npt.NDArray[Any]:
    """``how.reduceat(values, starts)``.

    Args:
        how: maximum, minimum or add.
        values: one per row, ordered by operator.
        starts: where each operator begins.
        even: all operators have as many rows, which is the rule and several times faster.
    """
    if not even:
        return np.asarray(how.reduceat(values, starts))
    each = len(values) // len(starts)
    out = values[::each].copy()
    for nth in range(1, each):
        how(out, values[nth::each], out=out)
    return out
