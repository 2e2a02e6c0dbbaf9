"""Layer 6: what is wrong with a run, as sentences with numbers, and what to try.

One function a finding; each says nothing in an undisturbed run. Must not import rich or above.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from profinfer.analysis import backendfindings, expertfindings, memoryfindings, surroundings
from profinfer.analysis.bandwidth import bandwidth_wall
from profinfer.analysis.finding import Finding, as_notes
from profinfer.analysis.result import Column, Result
from profinfer.analysis.scheduling import displacer, per_thread, priority
from profinfer.analysis.stragglers import straggler
from profinfer.model.opsched import within
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace
from profinfer.units import format_ns

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
        trace: the trace.
        selection: which operators.
        sums: ``per_thread`` of them.
        whole: their thread time, ns.
        threads: threads that computed them together.
        cpus: CPUs that the target may run on.
    """

    trace: Trace
    selection: Selection
    sums: pd.DataFrame
    whole: int
    threads: int
    cpus: int

    def part(self, column: str) -> float:
        """A column's part of the thread time."""
        return int(self.sums[column].to_numpy().sum()) / self.whole if self.whole else 0.0


def findings(trace: Trace, selection: Selection) -> list[Finding]:
    """Everything that is wrong with the selected operators, worst first."""
    limits = trace.meta.limits
    cgroup = limits.get("cgroup") or {}
    quota = None
    if cgroup.get("quota_us") and cgroup.get("period_us"):
        quota = cgroup["quota_us"] / cgroup["period_us"]
    found: list[Finding | None] = []
    if trace.has_sched and len(trace.ops):
        sums = per_thread(trace, selection)
        threads = int(trace.graphs["threads_seen"].to_numpy()[selection.graphs].max(initial=0))
        cpus = len(limits.get("cpus") or ()) or trace.meta.host.cpus_online or 1
        case = _Case(trace, selection, sums, int(sums["op_ns"].sum()), threads, cpus)
        found += [look(case) for look in _LOOKS]
        found += _preempted(case)
    found += memoryfindings.findings(trace)
    found += backendfindings.findings(trace, selection)
    found += expertfindings.findings(trace, selection)
    found += surroundings.findings(trace)
    wall = bandwidth_wall(trace)
    if wall is not None:
        found.append(Finding("bandwidth", None, wall[1]))
    known = [f for f in found if f is not None]
    # A quota explains the others.
    throttled = [_throttled(limits, quota)]
    return [
        *(f for f in throttled if f is not None),
        *sorted(known, key=lambda f: -(f.share or 0)),
    ]


def result(trace: Trace, selection: Selection) -> Result:
    """The findings as a view."""
    found = findings(trace, selection)
    columns = (
        Column("finding", "finding", "id", "Stable key."),
        Column("share", "share", "ratio", "Part of the operators' thread time."),
        Column("text", "what", "text", "What is wrong, with numbers, and what to try."),
    )
    frame = pd.DataFrame(
        [(f.name, f.share, f.text) for f in found], columns=[c.name for c in columns]
    )
    return Result("findings", "Findings", selection.description, columns, frame, as_notes(found))


def _oversubscribed(case: _Case) -> Finding | None:
    share = case.part("runnable_ns")
    if case.threads <= case.cpus or share < RUNNABLE_MIN:
        return None
    asleep = case.part("blocked_ns")
    also = f", and {_percent(asleep)} asleep" if asleep >= RUNNABLE_MIN else ""
    text = (
        f"{case.threads} threads share {_cpus(case.cpus)}: {_percent(share)} of op time runnable, "
        f"not running{also}; try -t {case.cpus}"
    )
    return Finding("oversubscribed", share, text)


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
        f"{case.threads} threads took turns although they may use {_cpus(case.cpus)}: "
        f"{_percent(share)} of op time runnable behind each other; {why}"
    )
    return Finding("shared", share, text)


def _spinning(case: _Case) -> Finding | None:
    share = case.part("spinning_ns")
    if share < SPINNING_MIN:
        return None
    text = (
        f"spinning in barriers: {_percent(share)} of op time is spent on a CPU, waiting for "
        "another thread"
    )
    return Finding("spinning", share, text)


def _migrations(case: _Case) -> Finding | None:
    moves = int(case.sums["migrations"].sum())
    wall = case.whole / max(case.threads, 1) / 1e9
    if moves < MOVES_MIN or moves / wall < MOVES_PER_S:
        return None
    text = (
        f"threads were moved between CPUs {moves:,} times, {moves / wall:,.0f} a second; caches "
        "start cold each time: taskset, or the engine's --cpu-mask, keeps them in place"
    )
    return Finding("migrations", None, text)


def _straggler(case: _Case) -> Finding | None:
    late = straggler(case.trace, case.selection)
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
    return Finding("straggler", late.share, text)


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
    ops = case.selection.rows(case.trace.ops)
    for tid in np.unique(taken["tid"]).tolist():
        mine = ops[ops["tid"].to_numpy() == tid].sort_values("begin_ns")
        at = taken["tid"].to_numpy() == tid
        ns[at] = within(
            *(mine[c].to_numpy() for c in ("begin_ns", "release_ns")),
            *(taken[c].to_numpy()[at] for c in ("begin_ns", "end_ns")),
        )
    taken = taken.assign(ns=ns)[ns > 0]
    out = []
    for pid, theirs in taken.groupby("by_pid"):
        share = int(theirs["ns"].to_numpy().sum()) / case.whole
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
        out.append(Finding("preempted", share, text))
    return sorted(out, key=lambda f: -(f.share or 0))[:3]


def _throttled(limits: dict[str, Any], quota: float | None) -> Finding | None:
    begin, end = limits.get("begin") or {}, limits.get("end") or {}
    times = end.get("throttled", 0) - begin.get("throttled", 0)
    if quota is None or times <= 0:
        return None
    periods = end.get("periods", 0) - begin.get("periods", 0)
    lost = end.get("throttled_ns", 0) - begin.get("throttled_ns", 0)
    name = "cpu.max" if limits["cgroup"].get("version") == 2 else "cpu.cfs_quota_us"
    text = (
        f"throttled by a cgroup quota of {quota:.3g} CPUs in {times:,} of {periods:,} periods, "
        f"{format_ns(lost)} in all; try -t {max(1, int(quota))}, or raise {name} of "
        f"{limits['cgroup'].get('path')}"
    )
    return Finding("throttled", None, text)


def _cpus(n: int) -> str:
    return f"{n} CPU{'' if n == 1 else 's'}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"
