"""Layer 5: what the scheduler did to each operator of each thread.

Stretches of a thread follow each other without a gap, so the time it spent in a state up to any
moment is one look-up in a running sum; an operator is the difference of two. The only loop is over
threads. Must not import pandas or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from profinfer.model.oprows import Rows
from profinfer.model.schedule import BLOCKED, REASONS, RUNNABLE, RUNNING, Schedule

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
_PREEMPTED = REASONS.index("preempted")


@dataclass(frozen=True)
class OpSched:
    """One row per operator and thread, in the order of ``operators.Rows``; all int64.

    Nanoseconds from begin to release, what is not known left out:

    Attributes:
        running: on a CPU.
        runnable: waiting for a CPU.
        behind_own: of that, after a thread of the same process was given the CPU.
        behind_other: of that, after another process was.
        blocked: asleep.
        compute_running: on a CPU, from begin to end.
        compute_runnable: waiting for a CPU, from begin to end.
        spinning: on a CPU in the barrier, from end to release.
        migrations: times it went on on another CPU.
        involuntary: times it lost its CPU although it wanted to go on.
    """

    running: I64
    runnable: I64
    behind_own: I64
    behind_other: I64
    blocked: I64
    compute_running: I64
    compute_runnable: I64
    spinning: I64
    migrations: I64
    involuntary: I64


class Clock:
    """Of one thread: nanoseconds in the chosen stretches up to a moment.

    Args:
        begin: of its stretches, ascending, without a gap between them.
        end: likewise.
        chosen: which stretches count.
    """

    def __init__(self, begin: I64, end: I64, chosen: Mask) -> None:
        self._begin, self._end, self._chosen = begin, end, chosen
        self._upto = np.cumsum(np.where(chosen, end - begin, 0)) - np.where(chosen, end - begin, 0)

    def read(self, at: I64, moment: I64) -> I64:
        """Sum up to ``moment``, which lies in the stretch ``at``, -1 before the first one."""
        inside = np.minimum(moment, self._end[at]) - self._begin[at]
        total = self._upto[at] + np.where(self._chosen[at], inside, 0)
        return np.where(at >= 0, total, 0)


def per_operator(rows: Rows, schedule: Schedule) -> OpSched:
    """Join operators and stretches.

    Args:
        rows: the operators.
        schedule: what the threads did; a thread that is not in it was never switched and ran all
            the time.
    """
    n = len(rows.tid)
    out = OpSched(*(np.zeros(n, np.int64) for _ in OpSched.__annotations__))
    if not len(schedule):
        return out
    preempted = (schedule.state == RUNNABLE) & (schedule.reason == _PREEMPTED)
    mine = schedule.by_tgid == schedule.own
    switched_off = (schedule.reason == _PREEMPTED) & (schedule.state != RUNNING)
    order = np.argsort(rows.tid, kind="stable")
    tids, starts = np.unique(rows.tid[order], return_index=True)
    edges = [*starts.tolist(), n]
    for number, tid in enumerate(tids.tolist()):
        which = order[edges[number] : edges[number + 1]]
        begin, end, release = rows.begin[which], rows.end[which], rows.release[which]
        first, last = np.searchsorted(schedule.tid, [tid, tid + 1])
        part = slice(int(first), int(last))
        if first == last:
            out.running[which] = release - begin
            out.compute_running[which] = end - begin
            out.spinning[which] = release - end
            continue
        since, until = schedule.begin[part], schedule.end[part]
        state = schedule.state[part]
        at_begin, at_end, at_release = (
            np.searchsorted(since, moment, side="right") - 1 for moment in (begin, end, release)
        )
        clock = Clock(since, until, state == RUNNING)
        ran_begin, ran_end = clock.read(at_begin, begin), clock.read(at_end, end)
        ran_release = clock.read(at_release, release)
        out.running[which] = ran_release - ran_begin
        out.compute_running[which] = ran_end - ran_begin
        out.spinning[which] = ran_release - ran_end
        for chosen, into in (
            (state == RUNNABLE, out.runnable),
            (preempted[part] & mine[part], out.behind_own),
            (preempted[part] & ~mine[part], out.behind_other),
            (state == BLOCKED, out.blocked),
        ):
            clock = Clock(since, until, chosen)
            into[which] = clock.read(at_release, release) - clock.read(at_begin, begin)
            if into is out.runnable:
                waited = clock.read(at_end, end) - clock.read(at_begin, begin)
                out.compute_runnable[which] = waited
        for flag, into in (
            (schedule.moved[part], out.migrations),
            (switched_off[part], out.involuntary),
        ):
            upto = np.r_[0, np.cumsum(flag)]
            into[which] = upto[at_release + 1] - upto[at_begin + 1]
    return out


def running_during(schedule: Schedule, begin: I64, end: I64) -> I64:
    """Time that the target's threads were on CPUs, all of them summed, in each stretch.

    Args:
        schedule: of the target.
        begin: of the stretches, ns.
        end: of the stretches, ns.
    """
    ran = schedule.state == RUNNING
    total = np.zeros(len(begin), np.int64)
    # Up to a moment t, what began before contributes t - begin, and what ended, t - end too much.
    for edge, sign in ((schedule.begin[ran], 1), (schedule.end[ran], -1)):
        edge = np.sort(edge)
        summed = np.r_[0, np.cumsum(edge - edge[:1].sum())]
        for moment, side in ((end, sign), (begin, -sign)):
            n = np.searchsorted(edge, moment, side="right")
            total += side * (n * (moment - edge[:1].sum()) - summed[n])
    return total


def within(begin: I64, end: I64, since: I64, until: I64) -> I64:
    """How much of each stretch lies inside the operators of its thread.

    Args:
        begin: of the operators, ascending, no two at the same time.
        end: likewise, of their release.
        since: begin of the stretches.
        until: end of the stretches.
    """
    if not len(begin):
        return np.zeros(len(since), np.int64)
    before = np.cumsum(end - begin) - (end - begin)

    def upto(moment: I64) -> I64:
        at = np.searchsorted(begin, moment, side="right") - 1
        inside = np.clip(moment, begin[at], end[at]) - begin[at]
        return np.where(at >= 0, before[at] + inside, 0)

    return upto(until) - upto(since)
