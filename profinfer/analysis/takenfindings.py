"""Layer 6: CPU time that other processes and a quota took from a run, as findings.

Must not import rich or above.
"""

from __future__ import annotations

import numpy as np

from profinfer.analysis import scopes
from profinfer.analysis.finding import Finding, Number
from profinfer.analysis.schedcase import LONGEST, Case, percent
from profinfer.analysis.scheduling import last_known, priority
from profinfer.analysis.scopes import Scope
from profinfer.model.oprows import chosen
from profinfer.model.opsched import within
from profinfer.units import format_ns

# Below this part of the operators' thread time it is not worth a line.
TAKEN_MIN = 0.02
# Its threads are bound to their CPUs, and no nice value stops their work.
_OF_KERNEL = (
    "CPUs that the kernel's own work is kept off (isolcpus, rcu_nocbs, irqaffinity) for the target"
)


def preempted(case: Case) -> list[Finding]:
    """Other processes that were given the target's CPUs; the three that took most."""
    sched = case.trace.sched
    taken = sched[(sched["by_tid"] > 0) & (sched["by_pid"] != case.trace.schedule.own)]
    if not len(taken) or not case.whole:
        return []
    ns = np.zeros(len(taken), np.int64)
    # Whoever has lost its CPU is among the disturbed ones.
    rows = case.trace.disturbed.rows
    rows = chosen(rows, case.scope.selection.of_rows(rows))
    for tid in np.unique(taken["tid"]).tolist():
        mine = np.flatnonzero(rows.tid == tid)
        mine = mine[np.argsort(rows.begin[mine], kind="stable")]
        at = taken["tid"].to_numpy() == tid
        ns[at] = within(
            rows.begin[mine],
            rows.release[mine],
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
        main = last_known(case.trace, pid)
        ours = pid == case.trace.meta.sched.recorder
        who = "profinfer's own recorder" if ours else str(main["by_name"])
        if ours:
            tries = "--max-overhead 2%, or a CPU that the target does not use for profinfer"
        elif main["by_kernel"]:
            tries = _OF_KERNEL
        else:
            tries = f"another CPU for {who}, or a lower priority: taskset -p, renice"
        kernel = ", a thread of the kernel" if main["by_kernel"] else ""
        text = (
            f"preempted by {who}{kernel} (pid {pid}, {priority(int(main['by_prio']))}): it "
            f"was given the target's CPU {len(theirs):,} times, {percent(share)} of op time "
            "runnable behind it"
        )
        evidence = {
            "by": Number(who, "text", "Process that was given the CPUs."),
            "pid": Number(pid, "id", "Its id."),
            "times": Number(len(theirs), "count", "Times that it was given one during operators."),
            "behind": Number(share, "ratio", "Of the operators' thread time, behind it."),
        }
        longest = longest or case.longest_ns("behind_other")
        saved = min(longest * lost / max(total, 1), lost)
        out.append(
            case.finding("preempted", share, text, tries, evidence, saved, LONGEST, more=True)
        )
    return sorted(out, key=lambda f: -(f.share or 0))[:3]


def throttled(scope: Scope, case: Case | None) -> Finding | None:
    """A quota of CPU time that stopped the target."""
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
    how = case.crowding_how if case else ""
    prize = scope.prize(case.crowding_ns, how, more=True) if case else None
    return Finding("throttled", None, text, tries, scope.name, evidence, prize)
