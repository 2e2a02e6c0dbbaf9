"""Layer 7: what a timeline says of its recording: who, where, with what, and what was lost.

Must not import perfetto or the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from profinfer.units import format_ns

if TYPE_CHECKING:
    from profinfer.model.selection import Selection
    from profinfer.model.trace import Trace


@dataclass(frozen=True)
class Recording:
    """What the recording says of itself.

    Attributes:
        pid: process id of the target, 0 if unknown.
        process: name of the target.
        argv: its command line.
        monotonic_ns: the clock of every timestamp, read together with realtime_ns.
        realtime_ns: wall clock, ns since 1970; None if unknown.
        boottime_ns: CLOCK_BOOTTIME at that moment; None if unknown.
        facts: what to show of the recording: engine, version, ...
        losses: counter name -> how many, only those that are not zero; not what the two ends of
            an excerpt explain.
    """

    pid: int
    process: str
    argv: tuple[str, ...] = ()
    monotonic_ns: int = 0
    realtime_ns: int | None = None
    boottime_ns: int | None = None
    facts: dict[str, str | int] = field(default_factory=dict)
    losses: dict[str, int] = field(default_factory=dict)


def about(trace: Trace, selection: Selection | None) -> Recording:
    """What the metadata and the trailer say."""
    meta = trace.meta
    argv = meta.target.argv
    trailer = trace.reader.trailer
    program = meta.target.exe or (argv[0] if argv else "")
    ended = trailer.reason if trailer and trailer.reason else "the recording did not finish"
    facts: dict[str, str | int | None] = {
        "engine": " ".join(filter(None, (meta.engine.name, meta.engine.version))),
        "profinfer_version": meta.profinfer,
        "recorded": meta.created_utc,
        "exe": meta.target.exe,
        "cwd": meta.target.cwd,
        "kernel": meta.host.kernel,
        "machine": meta.host.machine,
        "cpu": meta.host.cpu_model,
        "cpus_online": meta.host.cpus_online,
        "operators": meta.plan.ops.mode,
        "probes": len(meta.plan.probes),
        "probes_skipped": len(meta.plan.skipped),
        "ended": ended,
        "exit_code": trailer.exit_code if trailer else None,
        "cpu_quota": quota(trace),
        "problems": "; ".join(trace.problems),
        "covers": selection.description if selection else "the whole recording",
    }
    return Recording(
        pid=meta.target.pid or 0,
        process=program.rsplit("/", 1)[-1] or "unknown",
        argv=argv,
        monotonic_ns=meta.clock.monotonic_ns,
        realtime_ns=meta.clock.realtime_ns,
        boottime_ns=meta.clock.boottime_ns,
        facts={key: fact for key, fact in facts.items() if fact is not None and fact != ""},
        losses=trace.missing,
    )


def quota(trace: Trace) -> str | None:
    """The CPU quota of the target's cgroup and how often it was hit, None without one."""
    limits = trace.meta.limits
    group = limits.get("cgroup") or {}
    if not group.get("quota_us") or not group.get("period_us"):
        return None
    text = f"{group['quota_us'] / group['period_us']:.3g} CPUs"
    begin, end = limits.get("begin") or {}, limits.get("end") or {}
    if not begin or not end:
        return text
    grown = {key: end.get(key, 0) - begin.get(key, 0) for key in begin}
    return (
        f"{text}, hit in {grown.get('throttled', 0):,} of {grown.get('periods', 0):,} periods, "
        f"threads stopped for {format_ns(grown.get('throttled_ns', 0))} in all"
    )
