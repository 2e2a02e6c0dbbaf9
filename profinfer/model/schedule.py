"""Layer 5: the scheduler's events become what each thread was doing, from when to when.

Owns the states, how raw task states are decoded, and what cannot be known because an event is
missing. All times are int64 nanoseconds. Vectorised. Must not import pandas or anything above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from profinfer.tracefile.schema import (
    SCHED_IN,
    SCHED_KERNEL,
    SCHED_NEW,
    SCHED_OUT,
    SCHED_PREEMPT,
    SCHED_WAKE,
)

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U16 = npt.NDArray[np.uint16]
Mask = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.void]

RUNNING, RUNNABLE, BLOCKED, UNKNOWN = range(4)
STATES = ("running", "runnable", "blocked", "unknown")
# Why a thread does not run. Runnable: it woke up, or another thread was given its CPU (or it
# yielded). Blocked: the kernel's letter in words.
LETTERS = {
    "S": "sleep",
    "D": "uninterruptible",
    "T": "stopped",
    "t": "traced",
    "I": "idle",
    "P": "parked",
    "Z": "dead",
    "X": "dead",
}
REASONS = ("", "woken", "preempted", *dict.fromkeys(LETTERS.values()), "other")
_WOKEN, _PREEMPTED = 1, 2
_DEAD = REASONS.index("dead")


@dataclass(frozen=True)
class Schedule:
    """What the threads did; one row per stretch of time, ordered by thread, then time.

    The stretches of a thread follow each other without a gap.

    Attributes:
        tid: thread.
        begin: ns.
        end: ns.
        state: RUNNING, RUNNABLE, BLOCKED, or UNKNOWN where an event is missing.
        reason: index into REASONS.
        cpu: where it runs, or ran last; -1 not known.
        by: thread that was given the CPU, 0 the idle thread; -1 unless preempted.
        by_tgid: its process.
        by_prio: its kernel priority: 120 + nice, below 100 real time.
        by_name: its name.
        by_kernel: it is a thread of the kernel.
        moved: it runs here on another CPU than before.
        own: process id of the target, as the scheduler counts; -1 if it was never seen.
    """

    tid: I32
    begin: I64
    end: I64
    state: npt.NDArray[np.int8]
    reason: npt.NDArray[np.int8]
    cpu: I32
    by: I32
    by_tgid: I32
    by_prio: I32
    by_name: npt.NDArray[np.bytes_]
    by_kernel: Mask
    moved: Mask
    own: int

    def __len__(self) -> int:
        return len(self.tid)


def build(
    rows: Rows, rules: Sequence[Any], span: tuple[int, int], *, lost: bool = False
) -> Schedule:
    """Turn events into stretches.

    Args:
        rows: ``schema.SCHED`` rows in stream order.
        rules: ``sched.states`` of the metadata: pairs of mask and letter.
        span: first and last moment of the recording, ns.
        lost: events are missing: a sleep that nobody ended is not explained away.
    """
    rows = rows[np.lexsort((np.arange(len(rows)), rows["ts"], rows["tid"]))]
    kind: U16 = (rows["flags"] & (SCHED_OUT | SCHED_IN | SCHED_WAKE)).astype(np.uint16)
    came = rows["other_tgid"][kind == SCHED_IN]
    own = int(came[0]) if len(came) else -1
    reason = _reasons(rows, kind, rules)
    asleep = (kind == SCHED_OUT) & (reason != _PREEMPTED)
    # The kernel also tells of wake-ups of threads that are awake: only the first one that ends a
    # sleep is news.
    first = _changes(rows["tid"])
    news = (kind != SCHED_WAKE) | first | np.r_[False, asleep[:-1]]
    rows, kind, reason, asleep = rows[news], kind[news], reason[news], asleep[news]

    tid = rows["tid"].astype(np.int32)
    first, last = _changes(tid), np.r_[_changes(tid)[1:], True][: len(tid)]
    begin = rows["ts"].astype(np.int64)
    end = np.r_[begin[1:], 0][: len(begin)]
    end[last] = np.maximum(span[1], begin[last])
    after = np.r_[kind[1:], 0][: len(kind)]
    after[last] = 0
    state = np.select(
        [kind == SCHED_IN, asleep], [np.int8(RUNNING), np.int8(BLOCKED)], np.int8(RUNNABLE)
    ).astype(np.int8)
    if not lost:
        # It was about to sleep when a signal came: it never slept, and nobody woke it.
        awake = asleep & (after == SCHED_IN)
        state[awake], reason[awake] = RUNNABLE, _WOKEN
    fits = np.select(
        [kind == SCHED_IN, asleep & (state == BLOCKED)],
        [after == SCHED_OUT, after == SCHED_WAKE],
        after == SCHED_IN,
    )
    state[~fits & (after != 0)] = UNKNOWN
    cpu = rows["cpu"].astype(np.int32)
    cpu, moved = _cpus(cpu, kind, first)
    taken = (state == RUNNABLE) & (reason == _PREEMPTED)
    by, by_tgid, by_prio = (
        np.where(taken, rows[name].astype(np.int32), np.int32(-1))
        for name in ("other", "other_tgid", "prio")
    )
    by_name = np.where(taken, rows["comm"], b"")
    by_kernel = taken & ((rows["flags"] & SCHED_KERNEL) != 0)
    whole = Schedule(
        tid, begin, end, state, reason, cpu, by, by_tgid, by_prio, by_name, by_kernel, moved, own
    )
    return _with_openings(whole, rows, kind, first, span[0])


def _reasons(rows: Rows, kind: U16, rules: Sequence[Any]) -> npt.NDArray[np.int8]:
    """Why a thread that leaves, leaves; why one that wakes, waits; nothing for one that runs."""
    raw = rows["state"].astype(np.int64)
    out = np.full(len(rows), REASONS.index("other"), np.int8)
    for mask, letter in reversed([tuple(rule) for rule in rules]):
        name = LETTERS.get(str(letter), "other")
        out[raw & int(mask) == int(mask)] = REASONS.index(name)
    forced = (rows["flags"] & SCHED_PREEMPT) != 0
    out[(raw == 0) | forced] = _PREEMPTED
    out[kind == SCHED_WAKE] = _WOKEN
    out[kind == SCHED_IN] = 0
    return out


def _changes(values: npt.NDArray[Any]) -> Mask:
    """True at the first row of each run of equal values."""
    if not len(values):
        return np.zeros(0, bool)
    out: Mask = np.r_[True, values[1:] != values[:-1]]
    return out


def _cpus(cpu: I32, kind: U16, first: Mask) -> tuple[I32, Mask]:
    """CPU that a thread runs on or ran on last, and where it begins to run on another one.

    The CPU of a wake-up is the waker's and tells nothing.
    """
    known = kind != SCHED_WAKE
    at = np.where(known, np.arange(len(cpu)), -1)
    at[first & ~known] = -2 - np.arange(len(cpu))[first & ~known]  # do not look past a first row
    # The last known row of the same thread: positions only grow, so a running maximum finds it.
    place = np.maximum.accumulate(np.where(at < -1, -at - 2, at)) if len(at) else at
    cpu = np.where(known[place], cpu[place], np.int32(-1)) if len(at) else cpu
    before = np.r_[np.int32(-1), cpu[:-1]][: len(cpu)]
    before[first] = -1
    moved = (kind == SCHED_IN) & (before >= 0) & (before != cpu)
    return cpu, moved


def _with_openings(whole: Schedule, rows: Rows, kind: U16, first: Mask, start: int) -> Schedule:
    """Add what each thread did before its first event, and leave out the dead.

    A thread that leaves had been running, one that gets a CPU had waited for it, one that wakes had
    slept; one that was just made had not been.
    """
    alive = (whole.reason != _DEAD) & (whole.end >= whole.begin)
    opens = np.flatnonzero(first & ((rows["flags"] & SCHED_NEW) == 0) & (whole.begin > start))
    n = len(opens)
    did = np.select(
        [kind[opens] == SCHED_OUT, kind[opens] == SCHED_IN],
        [np.int8(RUNNING), np.int8(RUNNABLE)],
        np.int8(BLOCKED),
    ).astype(np.int8)
    none = np.full(n, -1, np.int32)
    extra = {
        "tid": whole.tid[opens],
        "begin": np.full(n, start, np.int64),
        "end": whole.begin[opens],
        "state": did,
        "reason": np.zeros(n, np.int8),
        "cpu": np.where(did == RUNNING, whole.cpu[opens], np.int32(-1)),
        "by": none,
        "by_tgid": none,
        "by_prio": none,
        "by_name": np.full(n, b"", whole.by_name.dtype),
        "by_kernel": np.zeros(n, bool),
        "moved": np.zeros(n, bool),
    }
    joined = {f: np.concatenate([new, getattr(whole, f)[alive]]) for f, new in extra.items()}
    order = np.lexsort((np.arange(len(joined["tid"])), joined["begin"], joined["tid"]))
    return Schedule(**{f: values[order] for f, values in joined.items()}, own=whole.own)
