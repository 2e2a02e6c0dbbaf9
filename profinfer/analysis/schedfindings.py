"""Layer 6: what the scheduler, a quota and other processes did to a run, as findings.

One function a finding; each says nothing in an undisturbed run. Must not import rich or above.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from profinfer.analysis import scopes
from profinfer.analysis.finding import Finding, Number
from profinfer.analysis.scheduling import displacer, per_thread, priority
from profinfer.analysis.scopes import Scope
from profinfer.analysis.stragglers import straggler
from profinfer.model.opsched import within
from profinfer.model.trace import Trace
from profinfer.units import format_ns, format_things

# Below these parts of the operators' thread time a disturbance is not worth a line.
RUNNABLE_MIN = 0.05
TAKEN_MIN = 0.02
SPINNING_MIN = 0.15
# Migrations of all threads per second of operator time.
MOVES_MIN = 20
MOVES_PER_S = 20.0


@dataclass(frozen=True)
class _Case:
    """What every finding looks at.

    Attributes:
        scope: which operators.
        sums: ``per_thread`` of them.
        whole: their thread time, ns.
        cpus: CPUs that the target may run on.
        quota: CPUs that its cgroup allows it, None without a limit.
    """

    scope: Scope
    sums: pd.DataFrame
    whole: int
    cpus: int
    quota: float | None

    @property
    def trace(self) -> Trace:
        """The trace."""
        return self.scope.trace

    @property
    def threads(self) -> int:
        """Threads that computed together."""
        return self.scope.threads

    def total(self, column: str) -> int:
        """A column over all threads."""
        return int(self.sums[column].to_numpy().sum())

    def part(self, column: str) -> float:
        """A column's part of the thread time."""
        return self.total(column) / self.whole if self.whole else 0.0

    @cached_property
    def usable(self) -> float:
        """CPUs that the threads can have at a time."""
        return min(self.cpus, self.threads, self.quota or self.cpus)

    @cached_property
    def crowding_ns(self) -> float:
        """The operators' wall time less what their computing takes on the usable CPUs."""
        return self.scope.wall_ns - self.total("compute_running_ns") / max(self.usable, 0.01)

    @cached_property
    def crowding_how(self) -> str:
        """``crowding_ns`` in words."""
        return (
            "operators' wall time less the CPU time of their computing, spread evenly over "
            f"{self.usable:.3g} CPUs"
        )

    def finding(
        self,
        name: str,
        share: float | None,
        text: str,
        tries: str,
        evidence: dict[str, Number],
        prize_ns: float = 0,
        how: str = "",
    ) -> Finding:
        """A finding of this scope."""
        prize = self.scope.prize(prize_ns, how)
        return Finding(name, share, text, tries, self.scope.name, evidence, prize)


_LONGEST = "of each operator the longest that any thread stood still so, summed"


def findings(scope: Scope) -> list[Finding]:
    """What the scheduler did to the selected operators; a quota, which explains others, first."""
    trace = scope.trace
    case = None
    if trace.has_sched and len(trace.ops):
        sums = per_thread(trace, scope.selection)
        whole = int(sums["op_ns"].sum())
        case = _Case(scope, sums, whole, scopes.cpus(trace), scopes.quota(trace))
    found = [_throttled(scope, case)]
    if case is not None:
        found += [look(case) for look in _LOOKS]
        found += _preempted(case)
    return [f for f in found if f is not None]


def _oversubscribed(case: _Case) -> Finding | None:
    share = case.part("runnable_ns")
    if case.threads <= case.cpus or share < RUNNABLE_MIN:
        return None
    asleep = case.part("blocked_ns")
    also = f", and {_percent(asleep)} asleep" if asleep >= RUNNABLE_MIN else ""
    text = (
        f"{case.threads} threads share {format_things(case.cpus, 'CPU')}: {_percent(share)} of op "
        f"time runnable, not running{also}"
    )
    evidence = {
        "threads": Number(case.threads, "count", "Threads that computed together."),
        "cpus": Number(case.cpus, "count", "CPUs that they may run on."),
        "runnable": Number(share, "ratio", "Of the operators' thread time, without a CPU."),
        "blocked": Number(asleep, "ratio", "Of it, asleep."),
        "op_wall_ns": Number(case.scope.wall_ns, "ns", "Wall time of the operators."),
        "computing_cpu_ns": Number(
            case.total("compute_running_ns"), "ns", "CPU time of their computing, all threads."
        ),
    }
    return case.finding("oversubscribed", share, text, f"-t {case.cpus}", evidence,
                        case.crowding_ns, case.crowding_how)  # fmt: skip


def _shared(case: _Case) -> Finding | None:
    """As many CPUs as threads, and yet they take each other's."""
    share = case.part("behind_own_ns")
    if case.threads > case.cpus or case.threads < 2 or share < RUNNABLE_MIN:
        return None
    who = displacer(case.trace)
    why = "something else keeps a CPU busy"
    if who is not None:
        why = f"the longest after {who.name} ({who.about}) took CPU {who.cpu}"
    text = (
        f"{case.threads} threads took turns although they may use "
        f"{format_things(case.cpus, 'CPU')}: {_percent(share)} of op time runnable behind each "
        f"other; {why}"
    )
    evidence = {
        "threads": Number(case.threads, "count", "Threads that computed together."),
        "cpus": Number(case.cpus, "count", "CPUs that they may run on."),
        "behind_own": Number(share, "ratio", "Of the thread time, behind each other."),
    }
    tries = "keeping other work off these CPUs (taskset, cpuset), or a thread fewer"
    longest = scopes.longest_ns(case.trace, case.scope.selection, "behind_own_ns")
    return case.finding("shared", share, text, tries, evidence, longest, _LONGEST)


def _spinning(case: _Case) -> Finding | None:
    share = case.part("spinning_ns")
    if share < SPINNING_MIN:
        return None
    text = (
        f"spinning in barriers: {_percent(share)} of op time is spent on a CPU, waiting for "
        "another thread"
    )
    evidence = {
        "spinning": Number(share, "ratio", "Of the thread time, on a CPU in a barrier."),
        "waiting_ns": Number(case.scope.waiting_ns, "ns", "Operators' wall less mean computing."),
        "threads": Number(case.threads, "count", "Threads that computed together."),
    }
    tries = "profinfer report --by thread: who comes last, and why"
    how = "operators' wall time less their computing, mean over the threads"
    return case.finding("spinning", share, text, tries, evidence, case.scope.waiting_ns, how)


def _migrations(case: _Case) -> Finding | None:
    moves = case.total("migrations")
    wall = case.whole / max(case.threads, 1) / 1e9
    if moves < MOVES_MIN or moves / wall < MOVES_PER_S:
        return None
    text = (
        f"threads were moved between CPUs {moves:,} times, {moves / wall:,.0f} a second; caches "
        "start cold each time"
    )
    evidence = {
        "migrations": Number(moves, "count", "Times that a thread went on on another CPU."),
        "per_s": Number(moves / wall, "per_s", "The same per second of operator time."),
    }
    tries = "taskset, or the engine's --cpu-mask, which keep them in place"
    return case.finding("migrations", None, text, tries, evidence)


def _straggler(case: _Case) -> Finding | None:
    late = straggler(case.trace, case.scope.selection)
    if late is None:
        return None
    mine = case.sums.index == late.tid
    computing, ran = (
        int(case.sums[name].to_numpy()[mine].sum()) for name in ("compute_ns", "compute_running_ns")
    )
    away = 1 - ran / computing if computing else 0.0
    why = (
        f"it had no CPU {_percent(away)} of the time it should have computed"
        if away >= RUNNABLE_MIN
        else "it was on a CPU all the time: a slower core, or a larger part of the work"
    )
    names = dict(zip(case.trace.threads["tid"], case.trace.threads["name"], strict=True))
    text = (
        f"one straggler: thread {late.tid} ({names.get(late.tid) or 'unnamed'}) is what "
        f"{_percent(late.blame)} of all waiting in barriers waits for, {_percent(late.share)} of "
        f"op time; {why}"
    )
    evidence = {
        "tid": Number(late.tid, "id", "The thread."),
        "blame": Number(late.blame, "ratio", "Of all waiting, at operators where it came last."),
        "waited": Number(late.share, "ratio", "That waiting, of the operators' thread time."),
        "away": Number(away, "ratio", "Of its computing, without a CPU."),
    }
    tries = (
        "finding who takes its CPU: profinfer report --by thread"
        if away >= RUNNABLE_MIN
        else "threads on cores of one kind only: --cpu-mask, taskset"
    )
    how = "waiting, mean over the threads, at operators where it came last"
    saved = late.blame * case.scope.waiting_ns
    return case.finding("straggler", late.share, text, tries, evidence, saved, how)


_LOOKS: tuple[Callable[[_Case], Finding | None], ...] = (
    _oversubscribed, _shared, _spinning, _migrations, _straggler,
)  # fmt: skip


def _preempted(case: _Case) -> list[Finding]:
    """Other processes that were given the target's CPUs; the three that took most."""
    sched = case.trace.sched
    taken = sched[(sched["by_tid"] > 0) & (sched["by_pid"] != case.trace.schedule.own)]
    if not len(taken) or not case.whole:
        return []
    ns = np.zeros(len(taken), np.int64)
    ops = case.scope.selection.rows(case.trace.ops)
    for tid in np.unique(taken["tid"]).tolist():
        mine = ops[ops["tid"].to_numpy() == tid].sort_values("begin_ns")
        at = taken["tid"].to_numpy() == tid
        ns[at] = within(
            *(mine[c].to_numpy() for c in ("begin_ns", "release_ns")),
            *(taken[c].to_numpy()[at] for c in ("begin_ns", "end_ns")),
        )
    taken = taken.assign(ns=ns)[ns > 0]
    total = int(taken["ns"].sum())
    longest = 0  # looked for when there is something to say
    out = []
    for pid in np.unique(taken["by_pid"]).tolist():
        theirs = taken[taken["by_pid"] == pid]
        lost = int(theirs["ns"].to_numpy().sum())
        share = lost / case.whole
        if share < TAKEN_MIN:
            continue
        main = theirs.iloc[int(theirs["ns"].to_numpy().argmax())]
        ours = pid == case.trace.meta.sched.recorder
        who = "profinfer's own recorder" if ours else str(main["by_name"])
        text = (
            f"preempted by {who} (pid {pid}, {priority(int(main['by_prio']))}): it "
            f"was given the target's CPU {len(theirs):,} times, {_percent(share)} of op time "
            "runnable behind it"
        )
        evidence = {
            "by": Number(who, "text", "Process that was given the CPUs."),
            "pid": Number(pid, "id", "Its id."),
            "times": Number(len(theirs), "count", "Times that it was given one during operators."),
            "behind": Number(share, "ratio", "Of the operators' thread time, behind it."),
        }
        longest = longest or scopes.longest_ns(case.trace, case.scope.selection, "behind_other_ns")
        tries = (
            "--max-overhead 2%, or a CPU that the target does not use for profinfer"
            if ours
            else f"another CPU for {who}, or a lower priority: taskset -p, renice"
        )
        saved = min(longest * lost / max(total, 1), lost)
        out.append(case.finding("preempted", share, text, tries, evidence, saved, _LONGEST))
    return sorted(out, key=lambda f: -(f.share or 0))[:3]


def _throttled(scope: Scope, case: _Case | None) -> Finding | None:
    limits = scope.trace.meta.limits
    allowed = scopes.quota(scope.trace)
    begin, end = limits.get("begin") or {}, limits.get("end") or {}
    times = end.get("throttled", 0) - begin.get("throttled", 0)
    if allowed is None or times <= 0:
        return None
    periods = end.get("periods", 0) - begin.get("periods", 0)
    lost = end.get("throttled_ns", 0) - begin.get("throttled_ns", 0)
    name = "cpu.max" if limits["cgroup"].get("version") == 2 else "cpu.cfs_quota_us"
    text = (
        f"throttled by a cgroup quota of {allowed:.3g} CPUs in {times:,} of {periods:,} periods, "
        f"{format_ns(lost)} in all"
    )
    tries = f"-t {max(1, int(allowed))}, or raise {name} of {limits['cgroup'].get('path')}"
    evidence = {
        "quota": Number(allowed, "count", "CPUs that the cgroup allows."),
        "throttled": Number(times, "count", "Periods in which it was stopped."),
        "periods": Number(periods, "count", "Periods of the recording."),
        "throttled_ns": Number(lost, "ns", "Time stopped, summed over CPUs."),
    }
    prize = None if case is None else scope.prize(case.crowding_ns, case.crowding_how)
    return Finding("throttled", None, text, tries, scope.name, evidence, prize)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"
