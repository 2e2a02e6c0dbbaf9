"""Layer 4: sets a recording up: what exists before what.

Launch: fork the target at its gate, compile and attach (its pid is known), create the file, open
the gate. A target that loads its engine later gets a watch instead of probes. Attach: look at the
running process, compile, create the file, attach.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from profinfer._version import __version__
from profinfer.capture.governor import QosLimits
from profinfer.capture.host import describe_host, read_clock, this_machine
from profinfer.capture.liveport import LivePort
from profinfer.capture.probing import Probing
from profinfer.capture.recording import Recording, RecordResult
from profinfer.capture.rolling import RollingTrace
from profinfer.capture.signals import SignalWatch
from profinfer.capture.target import Caller, LaunchedTarget, RunningTarget
from profinfer.capture.uprobes import AttachError
from profinfer.capture.wanted import Wanted
from profinfer.capture.watch import LoadWatch
from profinfer.elf.loader import loader_hook
from profinfer.elf.process import ProcessImages
from profinfer.errors import ProfinferError, TargetError
from profinfer.machine import store
from profinfer.probes.plan import ProbePlan
from profinfer.tracefile.metadata import Engine, Plan, Sched, Target, TraceMetadata
from profinfer.tracefile.schema import ChunkKind
from profinfer.tracefile.writer import TraceWriter


@dataclass(frozen=True, kw_only=True)
class RecordOptions:
    """What the user asked for.

    Attributes:
        argv: the program and its arguments; of a running process, its own.
        exe: absolute path of the program.
        output: where the trace goes.
        force: replace an existing trace.
        level: ``token``, ``graph`` or ``op``.
        wanted: what is recorded beside the plan's probes.
        debug_files: files with the symbols that were stripped from the engine.
        duration_s: end the recording after this time, None for the target's end.
        qos: what the operators' probes may cost; they are taken away for a while to keep it.
        progress: show the progress line.
        faults: record page faults and what the target makes disks read.
        shown: the command line's own options, for the trace's header.
        live: where the trace goes instead of to a file, and who asks for it.
    """

    argv: list[str]
    exe: Path
    output: Path
    force: bool = False
    level: str = "op"
    wanted: Wanted
    debug_files: tuple[Path, ...] = ()
    duration_s: float | None = None
    qos: QosLimits = field(default_factory=QosLimits)
    progress: bool = False
    faults: bool = True
    shown: dict[str, Any] = field(default_factory=dict)
    live: LivePort | None = None


def record(plan: ProbePlan | None, options: RecordOptions) -> RecordResult:
    """Run the target under the plan's probes and write its trace.

    Args:
        plan: what to probe, or None to wait until the target loads its engine.
        options: what the user asked for.

    Raises:
        ProfinferError: the probes or the file could not be set up, or exec failed; the target
            has not run then, and no file is left.
    """
    caller = Caller.current()
    with SignalWatch() as signals, LaunchedTarget(options.argv, caller=caller) as target:
        probing = watch = None
        if plan is not None:
            probing = Probing(plan, target.pid, options.wanted)
        else:
            images = ProcessImages(target.pid, options.debug_files)
            watch = LoadWatch(loader_hook(options.exe), images)
        writer = _create(plan, options, target.pid, caller, probing)
        try:
            # Noted before it is true: a busy machine may take its time to let us write.
            now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            writer.write_json(ChunkKind.NOTE, {"ts": now, "what": "exec"})
            target.release()
        except ProfinferError:
            writer.close()
            options.output.unlink(missing_ok=True)
            raise
        result = _run(target, signals, writer, probing, watch, options)
        if result.status is None:
            # The recording is over before the target; its exit status is still ours to give.
            result = replace(result, status=target.wait())
        return result


def attach(plan: ProbePlan, pid: int, options: RecordOptions) -> RecordResult:
    """Record a process that runs already, until it ends, the time is over, or Ctrl-C.

    Raises:
        ProfinferError: there is no such process, or probes or file could not be set up.
    """
    with SignalWatch() as signals, RunningTarget(pid) as target:
        try:
            probing = Probing(plan, pid, options.wanted, paused=True)
        except AttachError as error:
            if target.check() is None:
                raise
            raise TargetError(f"process {pid} ended before the probes were in place") from error
        writer = _create(plan, options, pid, Caller.current(), probing)
        return _run(target, signals, writer, probing, None, options)


def rehearse(plan: ProbePlan, options: RecordOptions) -> None:
    """Compile, load and attach as ``record`` does, for a target that is then not run."""
    with LaunchedTarget(options.argv) as target:
        Probing(plan, target.pid, options.wanted).close()


def _run(
    target: LaunchedTarget | RunningTarget,
    signals: SignalWatch,
    writer: TraceWriter | RollingTrace,
    probing: Probing | None,
    watch: LoadWatch | None,
    options: RecordOptions,
) -> RecordResult:
    recording = Recording(
        target,
        signals,
        writer,
        probing=probing,
        watch=watch,
        level=options.level,
        qos=options.qos,
        wanted=options.wanted,
        argv=options.argv,
        duration_s=options.duration_s,
        progress=options.progress,
        live=options.live,
    )
    try:
        return recording.run()
    finally:
        recording.close()


def _create(
    plan: ProbePlan | None,
    options: RecordOptions,
    pid: int,
    caller: Caller | None,
    probing: Probing | None,
) -> TraceWriter | RollingTrace:
    parts = probing.parts_json() if probing else {}
    metadata = TraceMetadata(
        profinfer=__version__,
        created_utc=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        target=Target(argv=tuple(options.argv), cwd=_cwd(pid), pid=pid, exe=str(options.exe)),
        host=describe_host(),
        clock=read_clock(),
        calibration=kept.to_json() if (kept := store.load(this_machine())) else {},
        engine=Engine.from_json(plan.engine_json()) if plan else Engine(),
        plan=Plan.from_json(probing.plan_json()) if probing else Plan(level=options.level),
        sched=Sched.from_json(parts.get("sched", {})),
        memory=parts.get("memory", {}),
        experts=parts.get("experts", {}),
        ring_bytes=options.wanted.ring_bytes,
        options=options.shown,
    )
    if options.live is not None:
        return options.live.open(metadata)
    return TraceWriter(
        options.output,
        metadata,
        force=options.force,
        uid=caller.uid if caller else -1,
        gid=caller.gid if caller else -1,
    )


def _cwd(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/cwd")
    except OSError:
        return os.getcwd()
