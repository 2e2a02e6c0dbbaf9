"""Layer 7: a part of a timeline, for traces that are too long to look at whole.

Owns what may be left out and what stays: calls and graphs always do, operators, waits and states
go. May import numpy and pandas; must not import perfetto or the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from profinfer.render.timeline import Timeline, ints
from profinfer.render.trackevent import Ints
from profinfer.units import format_things

_SAMPLE = 20_000  # operators that are encoded to learn how large one is
_UNSURE = 1.2  # an estimate may be that much too high
_SPARE = 0.97  # of a limit; what is estimated may be a little more
_ENOUGH = 0.9  # of a limit: more is not looked for
_TRIES = 8


class TooLarge(Exception):
    """A timeline without any operator is larger than the limit.

    Attributes:
        least: its size, bytes.
    """

    def __init__(self, least: int) -> None:
        super().__init__(least)
        self.least = least


@dataclass(frozen=True)
class Fitted:
    """A timeline that fits a limit.

    Attributes:
        timeline: what is left.
        left_out: a sentence, None if nothing is missing.
    """

    timeline: Timeline
    left_out: str | None


def of_threads(timeline: Timeline, tids: Iterable[int]) -> Timeline:
    """Operators, waits and states of some threads."""
    wanted = np.array(sorted(tids), np.int64)
    sched = timeline.sched
    part = replace(timeline, sched=sched[np.isin(ints(sched, "tid"), wanted)])
    return part.with_ops(np.isin(ints(part.ops, "tid"), wanted))


def fit(timeline: Timeline, limit: int, size_of: Callable[[Timeline], int]) -> Fitted:
    """Leave out the operators of as many calls as it takes.

    The first calls stay, the last ones, and the slowest, in turn.

    Args:
        timeline: what is wanted.
        limit: bytes.
        size_of: bytes of the file that a timeline becomes.

    Raises:
        TooLarge: the calls alone are larger.
    """
    n = len(timeline.ops)
    bare = timeline.with_ops(np.zeros(n, np.bool_))
    states = _with_states_of(bare, np.zeros(len(timeline.graphs), np.bool_))
    fixed = size_of(states)
    if fixed > limit:
        raise TooLarge(fixed)
    sample = np.arange(n) < _SAMPLE
    each = (size_of(timeline.with_ops(sample)) - size_of(bare)) / max(1, min(n, _SAMPLE))
    state_bytes = size_of(bare) - fixed
    if fixed + state_bytes + n * each <= limit * _UNSURE and size_of(timeline) <= limit:
        return Fitted(timeline, None)
    units = _units(timeline)
    costs = _Costs(each, state_bytes / max(len(timeline.sched) - len(states.sched), 1))
    best = Fitted(states, "operators and thread states: all of them")
    room = limit * _SPARE - fixed
    budget, fits, exceeds, most = room, 0.0, np.inf, 0
    tried: dict[bytes, int] = {}
    for _ in range(_TRIES):
        kept, sentence = _chosen(timeline, units, budget, costs)
        if kept.tobytes() not in tried:
            part = _with_states_of(timeline, kept)
            graphs = ints(timeline.graphs, "graph_id")[kept]
            part = part.with_ops(np.isin(ints(part.ops, "graph_id"), graphs))
            size = tried[kept.tobytes()] = size_of(part)
            if most < size <= limit:
                best, most = Fitted(part, sentence), size
        size = tried[kept.tobytes()]
        again = np.isfinite(exceeds)
        if size > limit:
            exceeds = budget
        elif size >= limit * _ENOUGH or kept[units.with_ops].all():
            break
        else:
            fits = budget
        # As if all of it were as much dearer, or cheaper, than it was taken for.
        budget *= min(room / max(size - fixed, 1), 4.0)
        if again or not fits < budget < exceeds:
            budget = (fits + exceeds) / 2
    # What was measured may say that the whole is not as large as it was taken for.
    likely = fixed + (most - fixed) * n / max(len(best.timeline.ops), 1)
    if most and likely <= limit * _UNSURE and size_of(timeline) <= limit:
        return Fitted(timeline, None)
    return best


@dataclass(frozen=True)
class _Costs:
    """Bytes that an operator, and a stretch of a thread's time, take in the file."""

    operator: float
    state: float


def _with_states_of(timeline: Timeline, kept: NDArray[np.bool_]) -> Timeline:
    """With the thread states that begin during some of the graphs."""
    at = _graph_of_states(timeline, kept)
    return replace(timeline, sched=timeline.sched[at >= 0])


def _graph_of_states(timeline: Timeline, kept: NDArray[np.bool_]) -> Ints:
    """Row of the graph, among some, during which each thread state begins; -1 for none."""
    rows = np.flatnonzero(kept)
    begin, end = (ints(timeline.graphs, c)[rows] for c in ("begin_ns", "end_ns"))
    order = np.argsort(begin, kind="stable")
    rows, begin = rows[order], begin[order]
    end = np.maximum.accumulate(end[order]) if len(end) else end
    since = ints(timeline.sched, "begin_ns")
    at = np.searchsorted(begin, since, side="right") - 1
    found = np.full(len(since), -1, np.int64)
    inside = at >= 0
    inside[inside] = since[inside] <= end[at[inside]]
    found[inside] = rows[at[inside]]
    return found


def _chosen(
    timeline: Timeline, units: _Units, budget: float, costs: _Costs
) -> tuple[NDArray[np.bool_], str]:
    """Graphs whose operators are kept, and the sentence that says which those are."""
    unit, begin, length, ops = units.of_graph, units.begin, units.length, units.ops
    size = ops * costs.operator + units.states * costs.state
    with_ops = np.flatnonzero(ops > 0)
    by_begin = with_ops[np.argsort(begin[with_ops], kind="stable")]
    slowest = with_ops[np.argsort(-length[with_ops], kind="stable")]
    lists = {"first": by_begin, "last": by_begin[::-1], "slowest": slowest}
    heads = {name: iter(rows.tolist()) for name, rows in lists.items()}
    taken: dict[int, str] = {}
    while heads:
        for name in list(heads):
            at = next((row for row in heads[name] if row not in taken), None)
            if at is None or size[at] > budget:
                del heads[name]
                continue
            taken[at] = name
            budget -= size[at]
    kept = np.isin(unit, np.array(sorted(taken), np.int64))
    counts = [(name, sum(t == name for t in taken.values())) for name in lists]
    which = ", ".join(f"the {n:,} {name}" for name, n in counts if n)
    has_calls = (ints(timeline.graphs, "call_id") >= 0).any()
    calls = format_things(len(with_ops), "call" if has_calls else "graph")
    if len(taken) == len(with_ops):
        return kept, "thread states that begin outside of graphs"
    kept_text = f"those of {len(taken):,} of {calls} are there ({which})" if taken else "all"
    return kept, f"operators and thread states: {kept_text}"


@dataclass(frozen=True)
class _Units:
    """The calls that have graphs; a graph without a call stands for itself.

    Attributes:
        of_graph: unit of each graph, shape (graphs,).
        begin: of each unit, ns, shape (units,).
        length: time of its graphs, ns.
        ops: operators of its graphs.
        states: thread states that begin during its graphs.
    """

    of_graph: Ints
    begin: Ints
    length: Ints
    ops: Ints
    states: Ints

    @property
    def with_ops(self) -> NDArray[np.bool_]:
        """Graphs whose unit has operators, shape (graphs,)."""
        return self.ops[self.of_graph] > 0


def _units(timeline: Timeline) -> _Units:
    graphs = timeline.graphs
    call = ints(graphs, "call_id")
    alone = -2 - np.arange(len(call))
    _, unit = np.unique(np.where(call >= 0, call, alone), return_inverse=True)
    unit = unit.reshape(-1).astype(np.int64)
    n = int(unit.max()) + 1 if len(unit) else 0
    begin = np.full(n, np.iinfo(np.int64).max)
    np.minimum.at(begin, unit, ints(graphs, "begin_ns"))
    length = np.zeros(n, np.int64)
    np.add.at(length, unit, ints(graphs, "end_ns") - ints(graphs, "begin_ns"))
    ids = ints(graphs, "graph_id")
    order = np.argsort(ids, kind="stable")
    op_graph = ints(timeline.ops, "graph_id")
    at = np.minimum(np.searchsorted(ids[order], op_graph), max(len(ids) - 1, 0))
    ops = np.zeros(n, np.int64)
    if len(ids):
        row = order[at]
        hit = ids[row] == op_graph
        np.add.at(ops, unit[row[hit]], 1)
    at = _graph_of_states(timeline, np.ones(len(graphs), np.bool_))
    states = np.bincount(unit[at[at >= 0]], minlength=n).astype(np.int64)
    return _Units(unit, begin, length, ops, states)
