"""Layer 6: what the scheduler did to a run's threads, as findings.

One function a finding; each says nothing in an undisturbed run. What a quota and other processes
took is in ``takenfindings``. Must not import rich or above.
"""

from __future__ import annotations

from collections.abc import Callable

from profinfer.analysis.finding import Finding, Number
from profinfer.analysis.schedcase import LONGEST, Case, case_of, percent
from profinfer.analysis.scheduling import displacer
from profinfer.analysis.scopes import Scope
from profinfer.analysis.stragglers import straggler
from profinfer.analysis.takenfindings import preempted, throttled
from profinfer.units import format_things

# Below these parts of the operators' thread time a disturbance is not worth a line.
RUNNABLE_MIN = 0.05
SPINNING_MIN = 0.15
# Migrations of all threads per second of operator time.
MOVES_MIN = 20
MOVES_PER_S = 20.0


def findings(scope: Scope) -> list[Finding]:
    """What the scheduler did to the selected operators; a quota, which explains others, first."""
    case = case_of(scope)
    found = [throttled(scope, case)]
    if case is not None:
        found += [look(case) for look in _LOOKS]
        found += preempted(case)
    return [f for f in found if f is not None]


def _oversubscribed(case: Case) -> Finding | None:
    share = case.part("runnable_ns")
    if case.threads <= case.cpus or share < RUNNABLE_MIN:
        return None
    asleep = case.part("blocked_ns")
    also = f", and {percent(asleep)} asleep" if asleep >= RUNNABLE_MIN else ""
    text = (
        f"{case.threads} threads share {format_things(case.cpus, 'CPU')}: {percent(share)} of op "
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
                        case.crowding_ns, case.crowding_how, more=True)  # fmt: skip


def _shared(case: Case) -> Finding | None:
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
        f"{format_things(case.cpus, 'CPU')}: {percent(share)} of op time runnable behind each "
        f"other; {why}"
    )
    evidence = {
        "threads": Number(case.threads, "count", "Threads that computed together."),
        "cpus": Number(case.cpus, "count", "CPUs that they may run on."),
        "behind_own": Number(share, "ratio", "Of the thread time, behind each other."),
    }
    tries = "keeping other work off these CPUs (taskset, cpuset), or a thread fewer"
    longest = case.longest_ns("behind_own")
    return case.finding("shared", share, text, tries, evidence, longest, LONGEST, more=True)


def _spinning(case: Case) -> Finding | None:
    share = case.part("spinning_ns")
    if share < SPINNING_MIN:
        return None
    text = (
        f"spinning in barriers: {percent(share)} of op time is spent on a CPU, waiting for "
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


def _migrations(case: Case) -> Finding | None:
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


def _straggler(case: Case) -> Finding | None:
    late = straggler(case.trace, case.scope.selection)
    if late is None:
        return None
    mine = case.sums.index == late.tid
    computing, ran = (
        int(case.sums[name].to_numpy()[mine].sum()) for name in ("compute_ns", "compute_running_ns")
    )
    away = 1 - ran / computing if computing else 0.0
    why = (
        f"it had no CPU {percent(away)} of the time it should have computed"
        if away >= RUNNABLE_MIN
        else "it was on a CPU all the time: a slower core, or a larger part of the work"
    )
    names = dict(zip(case.trace.threads["tid"], case.trace.threads["name"], strict=True))
    text = (
        f"one straggler: thread {late.tid} ({names.get(late.tid) or 'unnamed'}) is what "
        f"{percent(late.blame)} of all waiting in barriers waits for, {percent(late.share)} of "
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


_LOOKS: tuple[Callable[[Case], Finding | None], ...] = (
    _oversubscribed, _shared, _spinning, _migrations, _straggler,
)  # fmt: skip
