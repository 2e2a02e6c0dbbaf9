"""Layer 5: which node each operator record speaks of.

Owns the two ways of capturing: one record at an operator's end ("site"), or one at its begin and
one at each barrier ("pair"). Vectorised over operator records. Must not import pandas or above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from profinfer.model.visits import Events, Visits
from profinfer.tracefile.metadata import OpsPlan
from profinfer.tracefile.schema import OpKind

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class NodeIndex:
    """The nodes of all definitions end to end; the row number is the node_id.

    Attributes:
        base: node_id of each definition's first node, shape (d,).
        count: nodes of each definition, shape (d,).
        works: the engine has work to do for this node, shape (n,).
        empty: its operator never does anything (views and their like), shape (n,).
        address: tensor address, shape (n,).
    """

    base: I64
    count: I64
    works: Mask
    empty: Mask
    address: npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Marks:
    """One row per operator and thread, in the order of the visits: when each thread was done.

    Attributes:
        visit: index into the visits.
        node: last node covered.
        before: nodes passed before, counted within the definition (``Ranks``); -1 if not known.
        arrival: when the thread was done, ns.
        begin: when it began, ns; None where the release before tells (mode "site").
    """

    visit: I32
    node: I32
    before: I32
    arrival: I64
    begin: I64 | None

    def take(self, at: I64) -> Marks:
        """Some of the rows."""
        begin = None if self.begin is None else self.begin[at]
        return Marks(self.visit[at], self.node[at], self.before[at], self.arrival[at], begin)


@dataclass(frozen=True)
class Ranks:
    """Place of each node among those of its definition that threads pass one by one.

    These are the nodes with work and, in older engines, empty nodes: there threads meet in a
    barrier after them too, so the operator after begins when that barrier opens.

    Attributes:
        upto: passed nodes up to and including this one, shape (n,).
        total: passed nodes of each definition, shape (d,).
        nth: node_id of each passed node, end to end, shape (w,).
        first: index into ``nth`` of each definition's first, shape (d,).
        empty: passed although its operator does nothing, shape (n,).
        skipped: empty ones before each of ``nth``, shape (w + 1,); None if there are none at all.
    """

    upto: I32
    total: I64
    nth: I32
    first: I64
    empty: Mask
    skipped: I32 | None


def _rank(index: NodeIndex, hit: Mask) -> Ranks:
    works = index.works | hit
    empty = hit & index.empty
    running = np.cumsum(works)
    before = np.r_[0, running][index.base]
    total = np.r_[0, running][index.base + index.count] - before
    upto = (running - np.repeat(before, index.count)).astype(np.int32)
    nth = np.flatnonzero(works).astype(np.int32)
    skipped = np.r_[0, np.cumsum(empty[nth])].astype(np.int32) if empty.any() else None
    return Ranks(upto, total, nth, np.cumsum(total) - total, empty, skipped)


@dataclass(frozen=True)
class Orphans:
    """Visits that no recorded graph fits, those without a record of an operator left out.

    Attributes:
        visit: index into the visits, ascending, shape (o,).
        records: operator records of each, shape (o,).
        first_ns: its first event, shape (o,).
    """

    visit: I64
    records: I64
    first_ns: I64


@dataclass(frozen=True)
class Collected:
    """What the events told, before the threads are brought together.

    Attributes:
        marks: per operator and thread.
        ranks: of the nodes.
        orphans: visits that no recorded graph fits.
        undefined: records of graphs whose definition is not known.
        bad_index: records that name a node the graph does not have.
        ambiguous: records whose 24-bit tensor address names several nodes.
    """

    marks: Marks
    ranks: Ranks
    orphans: Orphans
    undefined: int
    bad_index: int
    ambiguous: int


def collect(
    events: Events, visits: Visits, def_of_graph: I32, index: NodeIndex, plan: OpsPlan
) -> Collected:
    """Find out which node each record speaks of. The events are not needed afterwards.

    Args:
        events: flat operator records.
        visits: who passed through which graph.
        def_of_graph: def_id of each graph, -1 if not known.
        index: nodes of the definitions.
        plan: how operators were captured.
    """
    definition = np.r_[def_of_graph, -1].astype(np.int32)[visits.graph]  # -1 picks the last
    told = (events.kind == OpKind.END) | (events.kind == OpKind.BEGIN)
    orphans = _orphans(visits, told, events)
    without = (visits.graph >= 0) & (definition < 0)
    undefined = int((told & without[events.visit]).sum()) if without.any() else 0
    del told
    counts = {"bad_index": 0, "ambiguous": 0}
    rows = _pair_rows if plan.mode == "pair" else _site_rows
    marks, ranks = rows(events, visits, definition, index, plan, counts)
    return Collected(marks, ranks, orphans, undefined, counts["bad_index"], counts["ambiguous"])


def _orphans(visits: Visits, told: Mask, events: Events) -> Orphans:
    """Visits without a graph, and how many of their records tell of an operator."""
    lone = visits.graph < 0
    if not lone.any():
        return Orphans(*(np.zeros(0, np.int64) for _ in range(3)))
    theirs = events.visit[np.flatnonzero(told & lone[events.visit])]
    count = np.bincount(theirs, minlength=len(lone)).astype(np.int64)
    visit = np.flatnonzero(count)
    return Orphans(visit, count[visit], events.ts[visits.start[visit]])


def _leave_rows(last_done: I64, visits: Visits, definition: I32, ranks: Ranks) -> I64:
    """Visits whose LEAVE ends their last working node: it has no barrier of its own."""
    known = definition >= 0
    total = np.r_[ranks.total, 0][definition]
    return np.flatnonzero(known & (visits.leave >= 0) & (last_done < total))


def _site_rows(
    events: Events,
    visits: Visits,
    definition: I32,
    index: NodeIndex,
    plan: OpsPlan,
    counts: dict[str, int],
) -> tuple[Marks, Ranks]:
    """Mode "site": one record per operator, at the barrier call of the graph loop."""
    ends = events.kind == OpKind.END
    if (definition < 0).any():
        ends &= (definition >= 0)[events.visit]
    # Per visit, then spread: an event knows its visit only. Of every event, whatever its kind:
    # picking one kind takes longer.
    first = np.r_[index.base, 0].astype(np.int32)[definition]
    limit = np.r_[index.count, 0].astype(np.int32)[definition]
    node = events.arg - np.int32(plan.bias)
    bad = (node < 0) | (node >= limit[events.visit])
    bad &= ends
    counts["bad_index"] = int(bad.sum())
    ends &= ~bad
    node += first[events.visit]
    del bad
    hit = np.zeros(len(index.works), bool)
    # Older engines pass a barrier after empty nodes too; and a node without the flag that asks
    # for computing it is computed by an engine that knows no such flag.
    hit[node[ends]] = True
    ranks = _rank(index, hit)

    done = np.zeros(len(visits.tid), np.int64)
    at = np.flatnonzero(ends)
    final = at[np.flatnonzero(np.diff(events.visit[at], append=np.int32(-1)))]
    done[events.visit[final]] = ranks.upto[node[final]]
    del at
    by_leave = _leave_rows(done, visits, definition, ranks)
    d = definition[by_leave]
    # A visit's LEAVE lies after its last END.
    leave = visits.leave[by_leave]
    node[leave] = ranks.nth[ranks.first[d] + ranks.total[d] - 1]
    ends[leave] = True
    node, visit, arrival = node[ends], events.visit[ends], events.ts[ends]
    del ends
    before = np.zeros(len(node), np.int32)
    before[1:] = ranks.upto[node[:-1]]
    opens = np.flatnonzero(np.r_[True, visit[1:] != visit[:-1]][: len(visit)])
    before[opens] = np.where(visits.enter[visit[opens]] >= 0, 0, -1)
    return Marks(visit, node, before, arrival, None), ranks


def _pair_rows(
    events: Events,
    visits: Visits,
    definition: I32,
    index: NodeIndex,
    plan: OpsPlan,
    counts: dict[str, int],
) -> tuple[Marks, Ranks]:
    """Mode "pair": a record where an operator begins, and one at every barrier."""
    at = np.flatnonzero(events.kind == OpKind.BEGIN)
    at = at[definition[events.visit[at]] >= 0]
    d = definition[events.visit[at]].astype(np.int64)
    of_def = np.repeat(np.arange(len(index.base)), index.count)
    low = ((index.address >> np.uint64(4)) & np.uint64(0xFFFFFF)).astype(np.int64)
    keys, first = np.unique(of_def << 24 | low, return_index=True)
    wanted = d << 24 | events.arg[at]
    place = np.minimum(np.searchsorted(keys, wanted), max(len(keys) - 1, 0))
    good = keys[place] == wanted if len(keys) else np.zeros(len(at), bool)
    counts["bad_index"] = int((~good).sum())
    shared = np.bincount(np.searchsorted(keys, of_def << 24 | low), minlength=len(keys)) > 1
    counts["ambiguous"] = int(shared[place[good]].sum()) if len(keys) else 0
    at, node = at[good], first[place[good]].astype(np.int64)
    hit = np.zeros(len(index.works), bool)
    hit[node] = True
    ranks = _rank(index, hit)
    visit = events.visit[at]

    # The operator's stretch of records ends at the next BEGIN, or at LEAVE, or with the visit.
    final = np.r_[visit[1:] != visit[:-1], True][: len(visit)]
    leave = visits.leave[visit]
    stretch = np.where(final, np.where(leave >= 0, leave, visits.stop[visit]), np.r_[at[1:], 0])
    barriers = np.flatnonzero(events.kind == OpKind.BARRIER)
    inner = np.searchsorted(barriers, stretch) - 1
    has = inner >= 0
    has[has] = barriers[inner[has]] > at[has]
    left = final & (leave >= 0)
    d = definition[visit].astype(np.int64)
    # Without a barrier after it (the graph's last node, or one thread), LEAVE or the next
    # operator's begin ends it.
    bare = left & (node == (index.base + index.count)[d] - 1) & (not plan.barrier_always)
    by_barrier = has & ~bare
    ended = by_barrier | ~final | left
    stop = np.where(by_barrier, barriers[inner] if len(barriers) else 0, stretch)
    upto = ranks.upto[node]
    following = np.r_[upto[1:], 0]
    output = np.where(final, np.where(left, ranks.total[d], upto), following - 1)
    output = np.maximum(output, upto)
    keep = np.flatnonzero(ended)
    arrival = events.ts[np.minimum(stop[keep], len(events.ts) - 1)]
    last = ranks.nth[ranks.first[d[keep]] + output[keep] - 1]
    begin = events.ts[at[keep]]
    return Marks(visit[keep], last, (upto - 1)[keep], arrival, begin), ranks
