"""Layer 5: what the scheduler did to each operator of each thread.

Nearly all operators lie within one stretch of running: nothing happened to them, and they take no
room here. Of the others, stretches of a thread follow each other without a gap, so the time it
spent in a state up to any moment is one look-up in a running sum; an operator is the difference of
two. The only loop is over threads. Must not import pandas or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from profinfer.model.oprows import Rows, chosen
from profinfer.model.schedule import BLOCKED, REASONS, RUNNABLE, RUNNING, Schedule

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
_PREEMPTED = REASONS.index("preempted")


@dataclass(frozen=True)
class OpSched:
    """Operators of threads that were not on a CPU all the time, or not known to be; all int64.

    Nanoseconds from begin to release, what is not known left out:

    Attributes:
        at: their rows in ``operators.Rows``, ascending.
        rows: these rows.
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

    at: I64
    rows: Rows
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

    def values_at(self, rows: I64, column: str) -> I64:
        """A column of the chosen rows.

        Args:
            rows: of ``operators.Rows``, ascending.
            column: one that is zero of whoever was on a CPU all the time: none of ``ON_CPU``.
        """
        assert column not in ON_CPU
        out = np.zeros(len(rows), np.int64)
        if not len(rows):
            return out
        near = slice(*np.searchsorted(self.at, [rows[0], rows[-1] + 1]).tolist())
        place = np.searchsorted(rows, self.at[near])
        found = rows[place] == self.at[near]
        out[place[found]] = getattr(self, column)[near][found]
        return out


# Columns that are the operator's own time where nothing happened to it: (from, to).
ON_CPU = {
    "running": ("begin", "release"),
    "compute_running": ("begin", "end"),
    "spinning": ("end", "release"),
}
COLUMNS = tuple(field.name for field in fields(OpSched) if field.name not in ("at", "rows"))


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


def per_operator(rows: Rows, tids: I32, schedule: Schedule) -> OpSched:
    """Join operators and stretches.

    Args:
        rows: the operators.
        tids: threads that they are of.
        schedule: what the threads did; a thread that is not in it was never switched and ran all
            the time.
    """
    parts: list[dict[str, I64]] = [dict.fromkeys(("at", *COLUMNS), np.zeros(0, np.int64))]
    for tid in np.intersect1d(tids, schedule.tid).tolist():
        which = np.flatnonzero(rows.tid == tid)
        first, last = np.searchsorted(schedule.tid, [tid, tid + 1])
        parts.append(_of_thread(rows, which, schedule, slice(int(first), int(last))))
    order = np.argsort(np.concatenate([part["at"] for part in parts]))
    whole = {name: np.concatenate([part[name] for part in parts])[order] for name in parts[0]}
    return OpSched(rows=chosen(rows, whole["at"]), **whole)


def _of_thread(rows: Rows, which: I64, schedule: Schedule, part: slice) -> dict[str, I64]:
    """The same of one thread, by the names of ``OpSched``.

    Args:
        rows: the operators.
        which: those of the thread.
        schedule: what the threads did.
        part: its stretches.
    """
    since, until, state = schedule.begin[part], schedule.end[part], schedule.state[part]
    begin, release = rows.begin[which], rows.release[which]
    at_begin, at_release = _stretch_at(since, begin), _stretch_at(since, release)
    calm = (at_begin == at_release) & (at_begin >= 0)
    calm &= (state == RUNNING)[at_begin] & (release <= until[at_begin])
    left = np.flatnonzero(~calm)
    which, at_begin, at_release = which[left], at_begin[left], at_release[left]
    begin, end, release = begin[left], rows.end[which], release[left]
    at_end = _stretch_at(since, end)

    def spent(these: Mask) -> tuple[I64, I64]:
        """In these stretches, from begin to end and from begin to release."""
        clock = Clock(since, until, these)
        upto = clock.read(at_begin, begin)
        return clock.read(at_end, end) - upto, clock.read(at_release, release) - upto

    def times(flag: Mask) -> I64:
        """Stretches that have this flag and begin between begin and release."""
        upto: I64 = np.r_[0, np.cumsum(flag)]
        passed: I64 = upto[at_release + 1] - upto[at_begin + 1]
        return passed

    preempted = (state == RUNNABLE) & (schedule.reason[part] == _PREEMPTED)
    mine = schedule.by_tgid[part] == schedule.own
    compute_running, running = spent(state == RUNNING)
    compute_runnable, runnable = spent(state == RUNNABLE)
    return {
        "at": which,
        "running": running,
        "runnable": runnable,
        "behind_own": spent(preempted & mine)[1],
        "behind_other": spent(preempted & ~mine)[1],
        "blocked": spent(state == BLOCKED)[1],
        "compute_running": compute_running,
        "compute_runnable": compute_runnable,
        "spinning": running - compute_running,
        "migrations": times(schedule.moved[part]),
        "involuntary": times((schedule.reason[part] == _PREEMPTED) & (state != RUNNING)),
    }


def _stretch_at(since: I64, moment: I64) -> I64:
    """Number of the stretch that each moment lies in, -1 before the first one."""
    if (moment[1:] < moment[:-1]).any():
        return np.searchsorted(since, moment, side="right") - 1
    # A thread has far more operators than stretches: look up the fewer ones.
    first = np.searchsorted(moment, since, side="left")
    return np.repeat(np.arange(-1, len(since)), np.diff(np.r_[0, first, len(moment)]))


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
