"""Layer 4: one recording, from the gate to the trailer.

Owns the order of things. Start: fork the target at its gate, compile and attach (its pid is
known), create the file, open the gate. Stop: the target has ended; empty the ring, save what
threads had not handed over, read the loss counters, write the trailer, and only then detach.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from profinfer._version import __version__
from profinfer.capture.drain import RingReader
from profinfer.capture.host import describe_host, read_clock
from profinfer.capture.leftover import open_batches
from profinfer.capture.plausible import Verdict, check_tensors
from profinfer.capture.program import Program
from profinfer.capture.progress import ProgressLine
from profinfer.capture.signals import SignalWatch, pass_on
from profinfer.capture.source import Source, build_source, headers_folder
from profinfer.capture.target import Caller, ExitStatus, LaunchedTarget
from profinfer.errors import ProfinferError, TraceError
from profinfer.probes.plan import ProbePlan
from profinfer.tracefile.metadata import Engine, Plan, Target, TraceMetadata, Trailer
from profinfer.tracefile.schema import (
    CNT_COUNT,
    CNT_LOST,
    CNT_NO_SLOT,
    CNT_OP_LOST,
    CNT_OP_RECORDS,
    CNT_SENT,
    ChunkKind,
    Kind,
)
from profinfer.tracefile.writer import TraceWriter

_POLL_S = 0.04
_LOSS_PERIOD_S = 5.0


@dataclass(frozen=True, kw_only=True)
class RecordOptions:
    """What the user asked for.

    Attributes:
        argv: the program and its arguments.
        exe: absolute path of the program.
        output: where the trace goes.
        force: replace an existing trace.
        ring_bytes: size of the ring buffer, a power of two.
        progress: show the progress line.
        shown: the command line's own options, for the trace's header.
    """

    argv: list[str]
    exe: Path
    output: Path
    force: bool = False
    ring_bytes: int
    progress: bool = False
    shown: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RecordResult:
    """How a recording went.

    Attributes:
        status: how the target ended.
        calls: llama_decode, llama_encode and llama_process calls; tokens: what they were given.
        graphs: graphs begun; operators: operator records written.
        lost: events dropped, all kinds; size: bytes of the trace file.
        interrupted: a signal asked for the end.
        implausible: what was read as tensors makes no sense; the probes were removed.
        write_error: the recording was cut short because the file could not be written.
    """

    status: ExitStatus
    calls: int
    tokens: int
    graphs: int
    operators: int
    lost: int
    size: int
    interrupted: bool
    implausible: Verdict | None
    write_error: TraceError | None


def record(plan: ProbePlan, options: RecordOptions) -> RecordResult:
    """Run the target under the plan's probes and write its trace.

    Raises:
        ProfinferError: the probes or the file could not be set up, or exec failed; the target
            has not run then, and no file is left.
    """
    source = build_source(plan, ring_bytes=options.ring_bytes)
    caller = Caller.current()
    with SignalWatch() as signals, LaunchedTarget(options.argv, caller=caller) as target:
        program = _load(source, target.pid)
        writer = TraceWriter(
            options.output,
            _metadata(plan, options, target.pid),
            force=options.force,
            uid=caller.uid if caller else -1,
            gid=caller.gid if caller else -1,
        )
        ring = RingReader(program.ring_fd("ring"), options.ring_bytes)
        recording = _Recording(program, ring, writer, target, signals, options.progress, plan)
        try:
            target.release()
        except ProfinferError:
            writer.close()
            options.output.unlink(missing_ok=True)
            raise
        try:
            return recording.run()
        finally:
            ring.close()
            program.release()


def rehearse(plan: ProbePlan, options: RecordOptions) -> None:
    """Compile, load and attach as ``record`` does, for a target that is then not run."""
    source = build_source(plan, ring_bytes=options.ring_bytes)
    with LaunchedTarget(options.argv) as target:
        program = _load(source, target.pid)
        program.detach_all()


def _load(source: Source, pid: int) -> Program:
    program = Program(source.text, source.cflags, headers=headers_folder(), pid=pid)
    if source.walks:
        program.set_tail_call("steps", 0, "pf_walk_step")
    for point in source.points:
        program.attach(point)
    return program


def _metadata(plan: ProbePlan, options: RecordOptions, pid: int) -> TraceMetadata:
    return TraceMetadata(
        profinfer=__version__,
        created_utc=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        target=Target(argv=tuple(options.argv), cwd=os.getcwd(), pid=pid, exe=str(options.exe)),
        host=describe_host(),
        clock=read_clock(),
        engine=Engine.from_json(plan.engine_json()),
        plan=Plan.from_json(plan.to_json()),
        ring_bytes=options.ring_bytes,
        options=options.shown,
    )


class _Recording:
    """The loop and the end of one recording."""

    def __init__(
        self,
        program: Program,
        ring: RingReader,
        writer: TraceWriter,
        target: LaunchedTarget,
        signals: SignalWatch,
        progress: bool,
        plan: ProbePlan,
    ) -> None:
        self._plan = plan
        self._program = program
        self._ring = ring
        self._writer = writer
        self._target = target
        self._signals = signals
        self._progress = ProgressLine(wanted=progress)
        self._sink: Callable[[memoryview], None] = writer.write_ring
        self._implausible: Verdict | None = None
        if plan.layout is not None:
            self._sink = self._write_checked
        self._write_error: TraceError | None = None
        self._interrupts = 0
        self._mapped = False
        self._loss_at = time.monotonic() + _LOSS_PERIOD_S

    def run(self) -> RecordResult:
        """Drain until the target has ended, then finish the file."""
        status = None
        while status is None:
            status = self._target.poll(_POLL_S)
            self._drain()
            self._take_signals()
            if not self._mapped and self._ring.calls:
                self._note_maps()
            self._show()
        self._progress.clear()
        while self._drain():
            pass
        return self._finish(status)

    def _drain(self) -> int:
        try:
            return self._ring.drain(self._sink)
        except TraceError as error:
            # The target goes on undisturbed; the probes go, since nothing can be kept any more.
            self._write_error = error
            self._sink = lambda data: None
            self._program.detach_all()
            return self._ring.drain(self._sink)

    def _write_checked(self, block: memoryview) -> None:
        """The sink until tensors were seen: they must make sense, or nothing that follows does."""
        self._writer.write_ring(block)
        assert self._plan.layout is not None
        facts = self._plan.facts
        verdict = check_tensors(block, self._plan.layout, facts.ops, facts.types)
        if not verdict.seen:
            return
        self._sink = self._writer.write_ring
        if not verdict.acceptable:
            self._implausible = verdict
            self._program.detach_all()
            self._json(
                ChunkKind.NOTE,
                {
                    "ts": time.clock_gettime_ns(time.CLOCK_MONOTONIC),
                    "what": "implausible",
                    "seen": verdict.seen,
                    "bad": verdict.bad,
                    "example": verdict.example,
                },
            )

    def _take_signals(self) -> None:
        while (info := self._signals.next()) is not None:
            self._interrupts += 1
            if self._interrupts > 1:
                # The target did not react to the first one.
                self._target.kill()
            else:
                pass_on(info, self._target.pid)

    def _json(self, kind: ChunkKind, value: dict[str, Any]) -> None:
        if self._write_error is None:
            try:
                self._writer.write_json(kind, value)
            except TraceError as error:
                self._write_error = error

    def _note_maps(self) -> None:
        """Where the engine's files lie in the target, to name function pointers later."""
        self._mapped = True
        maps = []
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self._target.pid}/maps").read_text().splitlines():
                parts = line.split(maxsplit=5)
                if len(parts) == 6 and "x" in parts[1] and parts[5].startswith("/"):
                    start, end = (int(x, 16) for x in parts[0].split("-"))
                    maps.append([start, end, int(parts[2], 16), parts[5]])
        self._json(ChunkKind.UPDATE, {"maps": maps})

    def _show(self) -> None:
        due = self._progress.due()
        if not due and time.monotonic() < self._loss_at:
            return
        counters = self._program.counters("counters", CNT_COUNT)
        if due:
            self._progress.show(
                tokens=self._ring.tokens,
                events=counters[CNT_OP_RECORDS] + self._ring.records,
                lost=lost_events(counters),
                size=self._writer.bytes_written,
            )
        if time.monotonic() >= self._loss_at:
            self._loss_at = time.monotonic() + _LOSS_PERIOD_S
            self._json(
                ChunkKind.LOSS,
                {"ts": time.clock_gettime_ns(time.CLOCK_MONOTONIC), "counters": counters},
            )

    def _finish(self, status: ExitStatus) -> RecordResult:
        # Every thread of the target is gone, so nobody writes to the slots any more.
        left, left_records = open_batches(self._program.values("slots"))
        if left and self._write_error is None:
            try:
                self._writer.write_ring(left)
            except TraceError as error:
                self._write_error = error
        counters = self._program.counters("counters", CNT_COUNT)
        counters[CNT_SENT + Kind.OPS] += len(left)
        counters[CNT_OP_RECORDS] += left_records
        reason = "interrupted" if self._interrupts else "target exited"
        trailer = Trailer(
            ended_ns=time.clock_gettime_ns(time.CLOCK_MONOTONIC),
            exit_code=status.code,
            exit_signal=status.signal,
            reason=reason,
            counters=tuple(counters),
            ring_records=self._ring.records + len(left),
        )
        try:
            self._writer.close(None if self._write_error else trailer)
        except TraceError as error:
            self._write_error = error
        return RecordResult(
            status=status,
            calls=self._ring.calls,
            tokens=self._ring.tokens,
            graphs=counters[CNT_SENT + Kind.GRAPH_BEGIN],
            operators=counters[CNT_OP_RECORDS],
            lost=lost_events(counters),
            size=self._writer.bytes_written,
            interrupted=bool(self._interrupts),
            implausible=self._implausible,
            write_error=self._write_error,
        )


def lost_events(counters: list[int]) -> int:
    """Events the kernel dropped: whole records, and the operator records inside lost batches."""
    whole = sum(counters[CNT_LOST : CNT_LOST + 16]) - counters[CNT_LOST + Kind.OPS]
    return whole + counters[CNT_OP_LOST] + counters[CNT_NO_SLOT]
