"""Layer 4: the loop and the end of one recording.

The order at the end is here: the target has ended, or recording is paused; empty the ring; save
the batches that dead threads had not handed over; read the loss counters; write the trailer. Only
then are the probes let go.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from typing import Any

from profinfer.capture.drain import Sink
from profinfer.capture.frequency import Frequency
from profinfer.capture.governor import Governor, QosLimits
from profinfer.capture.limits import Limits
from profinfer.capture.liveport import LivePort
from profinfer.capture.perfevents import online_cpus, refusal
from profinfer.capture.plausible import TensorCheck, Verdict
from profinfer.capture.probing import Probing, lost_events
from profinfer.capture.progress import ProgressLine
from profinfer.capture.readings import Forecast, Reading
from profinfer.capture.residence import Residence
from profinfer.capture.rolling import RollingTrace
from profinfer.capture.signals import SignalWatch, pass_on
from profinfer.capture.surroundings import Surroundings
from profinfer.capture.systemcounters import SystemCounters
from profinfer.capture.target import ExitStatus, LaunchedTarget, RunningTarget
from profinfer.capture.wanted import Wanted
from profinfer.capture.watch import LoadWatch, Stop
from profinfer.elf.process import map_lines
from profinfer.errors import ProfinferError, TraceError
from profinfer.probes.plan import ProbePlan, make_plan
from profinfer.tracefile.metadata import Trailer
from profinfer.tracefile.schema import (
    CNT_COUNT,
    CNT_OP_RECORDS,
    CNT_SENT,
    CNT_THREADS,
    ChunkKind,
    Kind,
)
from profinfer.tracefile.writer import TraceWriter

_POLL_S = 0.04
_LOSS_PERIOD_S = 5.0
_SETTLE_S = 0.01
# Reading the counters takes a millisecond of a CPU that the target may want.
_READING_PERIOD_S = 0.2
# Above this, the user is told at once what can be done about it.
_DEAR = 0.10


@dataclass(frozen=True, kw_only=True)
class RecordResult:
    """How a recording went.

    Attributes:
        plan: what was probed, None if no engine was ever loaded.
        status: how the target ended, None if it still runs.
        calls: llama_decode, llama_encode and llama_process calls.
        tokens: what the calls were given.
        graphs: graphs begun.
        operators: operator records written.
        visits: threads asked for, summed over the graphs.
        lost: events dropped, all kinds.
        size: bytes of the trace file.
        interrupted: a signal asked for the end.
        other_engines: paths of engines in the same process that were not recorded.
        switched: why operators' probes were taken away, put back, and so on.
        hopeless: why a limit could not be kept in the end, "" if it could.
        forecast: what the probes cost, None if it is not known.
        implausible: what was read as tensors makes no sense; the probes were removed.
        no_sched: why there are no thread states, None if there are.
        no_faults: why there are no page faults, None if there are.
        write_error: the recording was cut short because the file could not be written.
        not_counted: which counters this machine refused, and why, as one line.
    """

    plan: ProbePlan | None
    status: ExitStatus | None
    calls: int
    tokens: int
    graphs: int
    operators: int
    visits: int
    lost: int
    size: int
    interrupted: bool
    other_engines: tuple[str, ...]
    switched: tuple[str, ...]
    hopeless: str
    forecast: Forecast | None
    implausible: Verdict | None
    no_sched: str | None
    no_faults: str | None
    write_error: TraceError | None
    not_counted: str = ""


class Recording:
    """One target, its probes and its trace file.

    Args:
        target: launched (its gate is open) or running.
        signals: the signals of this process, collected.
        writer: the trace file, its header written.
        probing: probes that are in place, or None with a ``watch``.
        watch: waits for the engine to be loaded.
        level: level of a plan made later.
        qos: what the operators' probes may cost.
        wanted: what a plan made later is to record.
        argv: the target's command line.
        duration_s: end of the recording after this time, None for the target's end.
        progress: show the progress line.
        live: somebody who looks at the last seconds while it runs.
    """

    def __init__(
        self,
        target: LaunchedTarget | RunningTarget,
        signals: SignalWatch,
        writer: TraceWriter | RollingTrace,
        *,
        probing: Probing | None,
        watch: LoadWatch | None,
        level: str,
        qos: QosLimits,
        wanted: Wanted,
        argv: list[str],
        duration_s: float | None,
        progress: bool,
        live: LivePort | None = None,
    ) -> None:
        self._target = target
        self._signals = signals
        self._writer = writer
        self._watch = watch
        self._live = live
        self._level = level
        self._qos = qos
        self._residence = Residence(target.pid, argv)
        self._governor: Governor | None = None
        self._switched: list[str] = []
        self._expected: Forecast | None = None
        self._reading_at = 0.0
        self._wanted = wanted
        self._until = None if duration_s is None else time.monotonic() + duration_s
        self._progress = ProgressLine(wanted=progress)
        self._probing: Probing | None = None
        self._sink: Sink = writer.write_ring
        self._other_engines: tuple[str, ...] = ()
        self._check: TensorCheck | None = None
        self._implausible: Verdict | None = None
        self._write_error: TraceError | None = None
        self._failure: ProfinferError | None = None
        self._interrupts = 0
        self._mapped = False
        self._limits = Limits(target.pid)
        self._system = SystemCounters(wanted.system, online_cpus() if wanted.system else ())
        self._around = Surroundings(self._system, Frequency(self._limits.cpus), self._limits)
        self._json(ChunkKind.UPDATE, {"surroundings": self._around.facts()})
        self._loss_at = time.monotonic() + _LOSS_PERIOD_S
        if probing is not None:
            self._use(probing)
        if isinstance(target, RunningTarget):
            self._begin_now()

    def _use(self, probing: Probing) -> None:
        self._probing = probing
        plan = probing.plan
        if plan.layout is not None and plan.reads_graphs:
            self._check = TensorCheck(plan.layout, plan.facts.ops, plan.facts.types)
            self._sink = self._write_checked
        if self._qos and probing.hit_ns is not None:
            self._governor = Governor(self._qos, probing.hit_ns)

    def _begin_now(self) -> None:
        """All probes are in place: the recording of a running process begins."""
        assert self._probing is not None
        self._probing.resume()
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        self._json(ChunkKind.UPDATE, {"options": {"attached": True, "attached_ns": now}})

    def run(self) -> RecordResult:
        """Drain until the target has ended or the recording is over, then finish the file.

        Raises:
            ProfinferError: the engine was loaded later, and its probes could not be put in place.
        """
        status = None
        reason = "target exited"
        while status is None:
            info = self._signals.wait(_POLL_S)
            status = self._target.check()
            if status is not None:
                self._note("exit")
            self._drain()
            if info is not None:
                self._interrupts += 1
                reason = "interrupted"
                if isinstance(self._target, RunningTarget):
                    reason = "detached"
                    break
                self._end_target(info)
            if self._until is not None and time.monotonic() >= self._until:
                reason = "duration over"
                break
            self._take_stop()
            if self._probing is not None and time.monotonic() >= self._reading_at:
                self._reading_at = time.monotonic() + _READING_PERIOD_S
                self._forecast()
                self._govern()
            self._sample()
            self._look_around()
            if not self._mapped and self._computes():
                self._note_maps()
            self._show()
            self._serve()
        self._progress.clear()
        self._look_around(now=True)
        self._json(ChunkKind.UPDATE, {"surroundings": self._around.end()})
        if self._probing is not None:
            # What a target that runs on does from here is not part of the recording; one that has
            # ended still leaves its CPU for the last time. A handler that is under way needs a
            # moment to finish.
            self._probing.pause()
            time.sleep(_SETTLE_S)
        while self._drain():
            pass
        if self._check is not None:
            self._judge(self._check.verdict)
        return self._finish(status, reason)

    def close(self) -> None:
        """Let probes, watch and counters go."""
        self._around.close()
        if self._watch is not None:
            self._watch.close()
        if self._probing is not None:
            self._probing.close()

    # --- while it runs --------------------------------------------------------------------
    def _end_target(self, info: Any) -> None:
        assert isinstance(self._target, LaunchedTarget)
        if self._interrupts > 1:
            self._target.kill()  # it did not react to the first one
        else:
            pass_on(info, self._target.pid)

    def _take_stop(self) -> None:
        """The target has stopped itself: at the loader's hook, or at the engine's first use."""
        target, watch = self._target, self._watch
        if watch is None or not isinstance(target, LaunchedTarget) or not target.take_stop():
            return
        since = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        stop = watch.look()
        if stop is None:
            return  # somebody else stopped it, and will let it go on
        try:
            if stop is Stop.USED:
                self._start_late(watch)
        except ProfinferError as error:
            # The target is the user's program: it goes on, and we say at its end what failed.
            self._failure = error
        finally:
            target.resume()
            self._note("held", since=since)

    def _start_late(self, watch: LoadWatch) -> None:
        """The engine is about to be used for the first time: plan, attach, tell the trace."""
        program = watch.images.program()
        self._other_engines = tuple(str(image.path) for image in program.others)
        watch.close()
        self._watch = None
        plan = make_plan(program, level=self._level)
        probing = Probing(plan, self._target.pid, self._wanted)
        self._use(probing)
        told = {"engine": plan.engine_json(), "plan": probing.plan_json()}
        self._json(ChunkKind.UPDATE, {**told, **probing.parts_json()})
        if self._other_engines:
            self._note("other engines", paths=list(self._other_engines))

    def _drain(self) -> int:
        if self._probing is None:
            return 0
        try:
            return self._probing.drain(self._sink)
        except TraceError as error:
            # The target goes on undisturbed; the probes go, since nothing can be kept any more.
            self._write_error = error
            self._sink = lambda data, tensors: None
            self._probing.detach_all()
            return self._probing.drain(self._sink)

    def _write_checked(self, block: memoryview, tensors: int) -> None:
        """The sink until enough tensors were seen to say whether they make sense."""
        self._writer.write_ring(block, tensors)
        if self._check is not None and (verdict := self._check.look(block)) is not None:
            self._judge(verdict)

    def _judge(self, verdict: Verdict) -> None:
        """Once: a wrong layout is noted, and its probes go."""
        assert self._probing is not None
        self._check = None
        self._sink = self._writer.write_ring
        if not verdict.acceptable:
            self._implausible = verdict
            self._probing.detach_all()
            self._note("implausible", seen=verdict.seen, bad=verdict.bad, example=verdict.reason)

    def _forecast(self) -> None:
        """What the probes cost, once enough was seen: for the trace, and for the user if dear."""
        if self._expected is not None or self._probing is None:
            return
        reading = Reading.of(self._probing.counters())
        self._expected = Forecast.early(reading, self._probing.hit_ns)
        if self._expected is None:
            return
        self._note("forecast", text=self._expected.text, share=round(self._expected.share, 5))
        if self._expected.share >= _DEAR and self._governor is None:
            self._progress.tell(
                f"the probes cost {self._expected.text}; --max-overhead 2% keeps that down"
            )

    def _govern(self) -> None:
        """Take the operators' probes away, or put them back, to keep the user's limits."""
        if self._governor is None or self._probing is None or self._write_error is not None:
            return
        decision = self._governor.observe(Reading.of(self._probing.counters()))
        if decision is None:
            return
        self._switched.append(decision.why)
        if decision.on:
            try:
                self._probing.attach("op")
            except ProfinferError as error:
                self._governor = None  # without them from here on
                self._note("level failed", why=str(error))
                return
            self._note("level", level="op", why=decision.why)
        else:
            # What is recorded while they go belongs to no window.
            self._note("level", level="graph", why=decision.why)
            self._probing.detach("op")
            # What threads had begun ends here, and is not continued when the probes are back.
            self._drain()
            self._write_left(self._probing.take_open_batches())

    def _write_left(self, left: list[bytes]) -> None:
        """Entries that no thread has handed over."""
        if left and self._write_error is None:
            try:
                self._writer.write_ring(left)
            except TraceError as error:
                self._write_error = error

    def _note(self, what: str, **facts: Any) -> None:
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        self._json(ChunkKind.NOTE, {"ts": now, "what": what, **facts})

    def _json(self, kind: ChunkKind, value: dict[str, Any]) -> None:
        if self._write_error is None:
            try:
                self._writer.write_json(kind, value)
            except TraceError as error:
                self._write_error = error

    def _computes(self) -> bool:
        """The target decodes, or, if it is one that never does (an RPC server), does anything."""
        if self._probing is None:
            return False
        if any(probe.role.startswith("call.") for probe in self._probing.plan.probes):
            return self._probing.ring.calls > 0
        return self._probing.ring.records > 0

    def _note_maps(self) -> None:
        """Where the engine's files lie in the target, to name function pointers later."""
        self._mapped = True
        maps = []
        with contextlib.suppress(OSError):
            lines = [m for m in map_lines(self._target.pid) if m.is_file and m.is_code]
            maps = [[m.start, m.end, m.offset, m.path] for m in lines]
        told = {"maps": maps, "limits": self._limits.now(), "memory": self._residence.look()}
        with contextlib.suppress(OSError):
            # A shell or another wrapper may have become another program since it was started.
            told["target"] = {"exe": os.readlink(f"/proc/{self._target.pid}/exe")}
        self._json(ChunkKind.UPDATE, told)
        self._sample(now=True)

    def _sample(self, *, now: bool = False) -> None:
        """How much memory the target has, once in a while."""
        sizes = self._residence.sample(now=now)
        if sizes is None:
            return
        if not self._mapped:
            self._residence.look()  # what is mapped only while the model is loaded
        self._note("memory", **sizes)

    def _look_around(self, *, now: bool = False) -> None:
        """What the machine does around the target, ten times a second."""
        seen = self._around.sample(now=now)
        if seen is not None:
            self._note("surroundings", **seen)

    def _serve(self) -> None:
        """Answer who looks at the last seconds."""
        if self._live is None:
            return
        probing = self._probing
        facts: dict[str, Any] = {"pid": self._target.pid, "switches": len(self._switched)}
        if probing is not None:
            facts |= {
                "calls": probing.ring.calls,
                "tokens": probing.ring.tokens,
                "hit_ns": probing.hit_ns,
            }
        self._live.serve(probing.counters if probing is not None else None, facts)

    def _show(self) -> None:
        due = self._progress.due()
        if self._probing is None or (not due and time.monotonic() < self._loss_at):
            return
        counters = self._probing.counters()
        if due:
            self._progress.show(
                tokens=self._probing.ring.tokens,
                events=counters[CNT_OP_RECORDS] + self._probing.records,
                lost=lost_events(counters),
                size=self._writer.bytes_written,
                cost=self._expected.share if self._expected else None,
            )
        if time.monotonic() >= self._loss_at:
            self._loss_at = time.monotonic() + _LOSS_PERIOD_S
            now = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
            self._json(ChunkKind.LOSS, {"ts": now, "counters": counters})

    # --- the end --------------------------------------------------------------------------
    def _finish(self, status: ExitStatus | None, reason: str) -> RecordResult:
        probing = self._probing
        if self._failure is not None:
            self._writer.close()
            self._writer.path.unlink(missing_ok=True)
            raise self._failure
        counters = [0] * CNT_COUNT
        if probing is not None:
            # Threads of a target that runs on still write to their batches: those stay behind,
            # with the graph that was cut.
            if status is not None:
                self._write_left(probing.take_open_batches())
            self._write_left(probing.take_open_runs())
            counters = probing.counters()
            self._json(ChunkKind.UPDATE, {"limits": self._limits.end()})
        hopeless = self._governor.hopeless if self._governor is not None else ""
        if hopeless:
            self._note("limit missed", why=hopeless)
        trailer = Trailer(
            ended_ns=time.clock_gettime_ns(time.CLOCK_MONOTONIC),
            exit_code=status.code if status else None,
            exit_signal=status.signal if status else None,
            reason=reason,
            counters=tuple(counters),
            ring_records=probing.records if probing else 0,
        )
        try:
            self._writer.close(None if self._write_error else trailer)
        except TraceError as error:
            self._write_error = error
        return RecordResult(
            plan=probing.plan if probing else None,
            status=status,
            calls=probing.ring.calls if probing else 0,
            tokens=probing.ring.tokens if probing else 0,
            graphs=counters[CNT_SENT + Kind.GRAPH_BEGIN],
            operators=counters[CNT_OP_RECORDS],
            visits=counters[CNT_THREADS],
            lost=lost_events(counters),
            size=self._writer.bytes_written,
            interrupted=bool(self._interrupts),
            other_engines=self._other_engines,
            switched=tuple(self._switched),
            hopeless=hopeless,
            forecast=Forecast.of(Reading.of(counters), probing.hit_ns) if probing else None,
            implausible=self._implausible,
            no_sched=probing.sched.why if probing else None,
            no_faults=probing.memory.why if probing else None,
            write_error=self._write_error,
            not_counted=refusal(
                [*(probing.opened.refused if probing else ()), *self._system.refused]
            ),
        )
