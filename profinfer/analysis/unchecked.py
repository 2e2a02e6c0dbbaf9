"""Layer 6: which findings a trace cannot have, because what they rest on was not recorded.

Must not import rich or above.
"""

from __future__ import annotations

from profinfer.analysis.result import Note
from profinfer.model.trace import Trace
from profinfer.units import format_ns


def unchecked(trace: Trace) -> tuple[Note, ...]:
    """One note for each kind of record that is missing."""
    said = []
    if not len(trace.ops):
        level = trace.meta.plan.level
        said.append(
            "operators, and what the scheduler did to them: none were recorded"
            + (f" at level {level}" if level in ("token", "graph") else "")
            + _runnable(trace)
        )
    if not trace.has_sched:
        why = trace.meta.sched.why
        said.append("the scheduler: its events were not recorded" + (f" ({why})" if why else ""))
    if not trace.has_faults:
        said.append("page faults and disk reads: not recorded")
    return tuple(Note("info", f"not checked: {text}") for text in said)


def _runnable(trace: Trace) -> str:
    """What can be said of the scheduler without operators."""
    sched = trace.sched[(trace.sched["state"] == "runnable").to_numpy()]
    if not len(sched):
        return ""
    time = int((sched["end_ns"] - sched["begin_ns"]).sum())
    return f"; the program's threads wanted to run and had no CPU for {format_ns(time)} in all"
