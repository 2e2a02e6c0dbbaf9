"""Layer 5: operator records become operators: who computed which node, from when to when.

Owns arrival, release, compute and wait (``docs/metrics.md`` defines them), fusion, and the
recognition of what is incomplete. All times are int64 nanoseconds. Vectorised over operator
records; no loop over them. Must not import pandas or anything above.
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
        address: tensor address, shape (n,).
    """

    base: I64
    count: I64
    works: Mask
    address: npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Rows:
    """One row per operator and thread, ordered by graph, then node, then thread."""

    graph: I32
    node: I32
    fused: npt.NDArray[np.int16]
    tid: I32
    begin: I64
    end: I64
    release: I64
    complete: Mask


@dataclass(frozen=True)
class Walls:
    """One row per operator of a graph, all threads together, in order of execution."""

    graph: I32
    node: I32
    fused: npt.NDArray[np.int16]
    begin: I64
    release: I64
    threads: npt.NDArray[np.int16]
    compute_max: I64
    compute_sum: I64
    wait_sum: I64
    complete: Mask


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
        graphs: per graph.
        orphans: records of visits that no recorded graph fits.
        undefined: records of graphs whose definition is not known.
        bad_index: records that name a node the graph does not have.
        disorder: records that do not move forward in their graph.
        clipped: operators that ended before they could have begun (clock or loss).
        ambiguous: records whose 24-bit tensor address names several nodes.
    """

    rows: Rows
    walls: Walls
    graphs: PerGraph
    orphans: int
    undefined: int
    bad_index: int
    disorder: int
    clipped: int
    ambiguous: int


@dataclass(frozen=True)
class _Raw:
    """Rows in the order of the visits, before threads are brought together."""

    visit: I32
    node: I64  # last node covered
    before: I64  # working nodes done before this row, within the definition; -1: not known
    arrival: I64
    begin: I64 | None  # mode "pair" only


@dataclass(frozen=True)
class _Ranks:
    """Place of each node among those of its definition that do work.

    Attributes:
        upto: working nodes up to and including this one, shape (n,).
        total: working nodes of each definition, shape (d,).
        nth: node_id of each working node, end to end, shape (w,).
        first: index into ``nth`` of each definition's first, shape (d,).
    """

    upto: I64
    total: I64
    nth: I64
    first: I64


def _rank(index: NodeIndex, hit: Mask) -> _Ranks:
    works = index.works | hit
    running = np.cumsum(works)
    before = np.r_[0, running][index.base]
    total = np.r_[0, running][index.base + index.count] - before
    upto = running - np.repeat(before, index.count)
    return _Ranks(upto, total, np.flatnonzero(works), np.cumsum(total) - total)


def build(
    events: Events, visits: Visits, def_of_graph: I32, index: NodeIndex, plan: OpsPlan
) -> Operators:
    """Rebuild the operators.

    Args:
        events: flat operator records.
        visits: who passed through which graph.
        def_of_graph: def_id of each graph, -1 if not known.
        index: nodes of the definitions.
        plan: how operators were captured.
    """
    definition = np.r_[def_of_graph, -1][visits.graph]  # -1 picks the appended -1
    told = np.isin(events.kind, (OpKind.END, OpKind.BEGIN))
    undefined = (visits.graph >= 0) & (definition < 0)
    orphans = int((told & (visits.graph < 0)[events.visit]).sum())
    lost_defs = int((told & undefined[events.visit]).sum())
    counts = {"bad_index": 0, "ambiguous": 0}
    if plan.mode == "pair":
        raw, ranks = _pair_rows(events, visits, definition, index, plan, counts)
    else:
        raw, ranks = _site_rows(events, visits, definition, index, plan, counts)
    rows, walls, graphs, disorder, clipped = _together(raw, visits, def_of_graph, index, ranks)
    return Operators(
        rows,
        walls,
        graphs,
        orphans=orphans,
        undefined=lost_defs,
        bad_index=counts["bad_index"],
        disorder=disorder,
        clipped=clipped,
        ambiguous=counts["ambiguous"],
    )


def _leave_rows(last_done: I64, visits: Visits, definition: I32, ranks: _Ranks) -> I64:
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
) -> tuple[_Raw, _Ranks]:
    """Mode "site": one record per operator, at the barrier call of the graph loop."""
    at = np.flatnonzero(events.kind == OpKind.END)
    at = at[definition[events.visit[at]] >= 0]
    d = definition[events.visit[at]]
    idx = events.arg[at].astype(np.int64) - plan.bias
    good = (idx >= 0) & (idx < index.count[d])
    counts["bad_index"] = int((~good).sum())
    at, node = at[good], (idx + index.base[d])[good]
    hit = np.zeros(len(index.works), bool)
    # Older engines pass a barrier after nodes without work too: those then count as operators.
    hit[node] = True
    ranks = _rank(index, hit)

    visit = events.visit[at]
    done = np.zeros(len(visits.tid), np.int64)
    stop = np.searchsorted(visit, np.arange(len(done)), side="right") - 1
    some = stop >= 0
    some[some] = visit[stop[some]] == np.flatnonzero(some)
    done[some] = ranks.upto[node[stop[some]]]
    by_leave = _leave_rows(done, visits, definition, ranks)

    where = np.r_[at, visits.leave[by_leave]]
    d = definition[by_leave]
    last = ranks.nth[ranks.first[d] + ranks.total[d] - 1]
    order = np.argsort(where, kind="stable")
    where = where[order]
    node = np.r_[node, last][order]
    visit = events.visit[where]
    upto = ranks.upto[node]
    before = np.r_[0, upto[:-1]].astype(np.int64)
    opens = np.r_[True, visit[1:] != visit[:-1]][: len(visit)]
    before[opens] = np.where(visits.enter[visit[opens]] >= 0, 0, -1)
    return _Raw(visit, node, before, events.ts[where], None), ranks


def _pair_rows(
    events: Events,
    visits: Visits,
    definition: I32,
    index: NodeIndex,
    plan: OpsPlan,
    counts: dict[str, int],
) -> tuple[_Raw, _Ranks]:
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
    raw = _Raw(visit[keep], last, (upto - 1)[keep], arrival, events.ts[at[keep]])
    return raw, ranks


def _together(
    raw: _Raw, visits: Visits, def_of_graph: I32, index: NodeIndex, ranks: _Ranks
) -> tuple[Rows, Walls, PerGraph, int, int]:
    """Bring the threads together: who released whom."""
    n_graphs = len(def_of_graph)
    per_graph = np.r_[ranks.total, 0][def_of_graph]
    base = np.cumsum(per_graph) - per_graph
    visit_graph = visits.graph
    seen = np.unique(
        visit_graph[visit_graph >= 0].astype(np.int64) << 32 | visits.tid[visit_graph >= 0]
    )
    threads = np.bincount(seen >> 32, minlength=n_graphs).astype(np.int16)

    graph = visit_graph[raw.visit]
    upto = ranks.upto[raw.node]
    known = raw.before >= 0
    fused = np.where(known, upto - raw.before, 1)
    forward = fused >= 1
    fused = np.maximum(fused, 1).astype(np.int16)

    # Slots: one per graph and working node, dense. Rows of one slot are the threads of one op.
    slot = base[graph] + upto - 1
    order = np.argsort(slot, kind="stable")
    sorted_slot = slot[order]
    starts = np.flatnonzero(np.r_[True, sorted_slot[1:] != sorted_slot[:-1]][: len(order)])
    size = np.diff(np.r_[starts, len(order)])
    group = np.repeat(np.arange(len(starts), dtype=np.int32), size)
    arrival = raw.arrival[order]
    release = np.maximum.reduceat(arrival, starts) if len(starts) else arrival[:0]
    slots = sorted_slot[starts]
    del sorted_slot, slot

    if raw.begin is not None:
        begin = raw.begin[order]
        hurt = np.zeros(len(order), bool)
    else:
        begin, hurt = _begins(raw, visits, graph, order, release, group, slots, base, upto)
    clipped = begin > arrival
    begin[clipped] = arrival[clipped]

    row_graph = graph[order]
    complete = np.repeat(size, size) == threads[row_graph]
    complete &= forward[order] & ~hurt & ~clipped
    if raw.begin is None:
        complete &= known[order]
    whole = np.ones(len(starts), bool)
    whole[group[~complete]] = False
    complete = whole[group]
    rows = Rows(
        row_graph,
        raw.node[order].astype(np.int32),
        fused[order],
        visits.tid[raw.visit[order]].astype(np.int32),
        begin,
        arrival,
        release[group],
        complete,
    )
    enter = _earliest(visits, n_graphs)
    walls = _walls(rows, starts, size, release, whole, enter)
    last = np.full(n_graphs, -1, np.int64)
    last[walls.graph] = walls.release  # rows are in order: the last one stays
    covered = _covered(raw, visits, fused, forward, graph, per_graph, threads, def_of_graph)
    graphs = PerGraph(threads, enter, last, covered)
    return rows, walls, graphs, int((~forward).sum()), int(clipped.sum())


def _begins(
    raw: _Raw,
    visits: Visits,
    graph: I32,
    order: I64,
    release: I64,
    group: I32,
    slots: I64,
    base: I64,
    upto: I64,
) -> tuple[I64, Mask]:
    """Begin of each sorted row: release of what its thread did before, or its ENTER."""
    by_visit = np.empty(len(order), np.int64)
    by_visit[order] = release[group]
    begin = np.r_[0, by_visit[:-1]].astype(np.int64)[: len(order)]
    opens = np.flatnonzero(np.r_[True, raw.visit[1:] != raw.visit[:-1]][: len(order)])
    begin[opens] = visits.enter[raw.visit[opens]]
    hurt = np.zeros(len(order), bool)
    torn = opens[begin[opens] < 0]
    if len(torn):
        # What came before is lost. Another thread may have recorded the release it waited for.
        hurt[torn] = True
        wanted = base[graph[torn]] + upto[torn] - 2
        at = np.maximum(np.searchsorted(slots, wanted, side="right") - 1, 0)
        found = (slots[at] <= wanted) & (slots[at] >= base[graph[torn]])
        begin[torn] = np.where(found, release[at], raw.arrival[torn])
    return begin[order], hurt[order]


def _earliest(visits: Visits, n_graphs: int) -> I64:
    """Earliest ENTER of each graph, -1 if none."""
    big = np.iinfo(np.int64).max
    out = np.full(n_graphs, big, np.int64)
    ok = (visits.graph >= 0) & (visits.enter >= 0)
    np.minimum.at(out, visits.graph[ok], visits.enter[ok])
    out[out == big] = -1
    return out


def _walls(rows: Rows, starts: I64, size: I64, release: I64, whole: Mask, enter: I64) -> Walls:
    """One row per operator: from the previous operator's release to its own."""
    graph = rows.graph[starts]
    first = np.r_[True, graph[1:] != graph[:-1]][: len(graph)]
    begin = np.r_[0, release[:-1]].astype(np.int64)[: len(graph)]
    earliest = np.minimum.reduceat(rows.begin, starts) if len(starts) else release
    opened = enter[graph]
    begin[first] = np.where(opened >= 0, opened, earliest)[first]
    compute = rows.end - rows.begin
    wait = rows.release - rows.end
    if not len(starts):
        compute_max = compute_sum = wait_sum = compute
    else:
        compute_max = np.maximum.reduceat(compute, starts)
        compute_sum = np.add.reduceat(compute, starts)
        wait_sum = np.add.reduceat(wait, starts)
    return Walls(
        graph,
        rows.node[starts],
        rows.fused[starts],
        begin,
        release,
        size.astype(np.int16),
        compute_max,
        compute_sum,
        wait_sum,
        whole,
    )


def _covered(
    raw: _Raw,
    visits: Visits,
    fused: npt.NDArray[np.int16],
    forward: Mask,
    graph: I32,
    per_graph: I64,
    threads: npt.NDArray[np.int16],
    def_of_graph: I32,
) -> Mask:
    """Graphs whose every working node was seen once per thread, by whole visits."""
    done = np.zeros(len(visits.tid), np.int64)
    np.add.at(done, raw.visit, fused.astype(np.int64))
    torn = np.zeros(len(visits.tid), bool)
    torn[raw.visit[~forward]] = True
    ours = visits.graph >= 0
    fine = ours & visits.whole & ~torn
    fine[ours] &= done[ours] == per_graph[visits.graph[ours]]
    out = (threads > 0) & (def_of_graph >= 0)
    out[visits.graph[ours & ~fine]] = False
    return out
