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
    budget = limit * _SPARE - fixed
    # States cost about as much a call everywhere.
    each += state_bytes / max(n, 1)
    for _ in range(4):
        kept, sentence = _chosen(timeline, budget, each)
        part = _with_states_of(timeline, kept)
        graphs = ints(timeline.graphs, "graph_id")[kept]
        part = part.with_ops(np.isin(ints(part.ops, "graph_id"), graphs))
        size = size_of(part)
        if size <= limit:
            return Fitted(part, sentence)
        budget *= 0.9 * limit / size
    return Fitted(states, "operators and thread states: all of them")


def _with_states_of(timeline: Timeline, kept: NDArray[np.bool_]) -> Timeline:
    """With the thread states that begin during some of the graphs."""
    sched, graphs = timeline.sched, timeline.graphs
    begin, end = ints(graphs, "begin_ns")[kept], ints(graphs, "end_ns")[kept]
    order = np.argsort(begin, kind="stable")
    begin, end = begin[order], np.maximum.accumulate(end[order]) if len(end) else end
    at = np.searchsorted(begin, ints(sched, "begin_ns"), side="right") - 1
    inside = np.zeros(len(sched), np.bool_)
    inside[at >= 0] = ints(sched, "begin_ns")[at >= 0] <= end[at[at >= 0]]
    return replace(timeline, sched=sched[inside])


def _chosen(timeline: Timeline, budget: float, each: float) -> tuple[NDArray[np.bool_], str]:
    """Graphs whose operators are kept, and the sentence that says which those are."""
    unit, begin, length, ops = _units(timeline)
    with_ops = np.flatnonzero(ops > 0)
    by_begin = with_ops[np.argsort(begin[with_ops], kind="stable")]
    slowest = with_ops[np.argsort(-length[with_ops], kind="stable")]
    lists = {"first": by_begin, "last": by_begin[::-1], "slowest": slowest}
    heads = {name: iter(rows.tolist()) for name, rows in lists.items()}
    taken: dict[int, str] = {}
    while heads:
        for name in list(heads):
            at = next((row for row in heads[name] if row not in taken), None)
            if at is None or ops[at] * each > budget:
                del heads[name]
                continue
            taken[at] = name
            budget -= ops[at] * each
    kept = np.isin(unit, np.array(sorted(taken), np.int64))
    counts = [(name, sum(t == name for t in taken.values())) for name in lists]
    which = ", ".join(f"the {n:,} {name}" for name, n in counts if n)
    has_calls = (ints(timeline.graphs, "call_id") >= 0).any()
    calls = format_things(len(with_ops), "call" if has_calls else "graph")
    kept_text = f"those of {len(taken):,} of {calls} are there ({which})" if taken else "all"
    return kept, f"operators and thread states: {kept_text}"


def _units(timeline: Timeline) -> tuple[Ints, Ints, Ints, Ints]:
    """The calls that have graphs; a graph without a call stands for itself.

    Returns:
        unit of each graph; begin, time and number of operators of each unit.
    """
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
    return unit, begin, length, ops
