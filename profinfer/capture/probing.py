"""Layer 4: a plan in force: its BPF program loaded and attached, its ring mapped."""

from __future__ import annotations

from typing import Any

from profinfer.capture.calibrate import measure_hit
from profinfer.capture.drain import RingReader, Sink
from profinfer.capture.leftover import open_batches
from profinfer.capture.program import Program
from profinfer.capture.source import build_source, headers_folder
from profinfer.probes.plan import ProbePlan
from profinfer.tracefile.schema import (
    CNT_COUNT,
    CNT_LOST,
    CNT_NO_SLOT,
    CNT_OP_LOST,
    CNT_OP_RECORDS,
    CNT_SENT,
    Kind,
)


class Probing:
    """Probes of one plan on one process.

    Args:
        plan: what is probed.
        pid: the process; it may be held, stopped or running.
        ring_bytes: size of the ring buffer.
        paused: record nothing until ``resume``; for a process that runs while probes are attached.
    """

    def __init__(self, plan: ProbePlan, pid: int, ring_bytes: int, *, paused: bool = False) -> None:
        self.plan = plan
        source = build_source(plan, ring_bytes=ring_bytes)
        self._program = Program(source.text, source.cflags, headers=headers_folder(), pid=pid)
        for table, function in source.tail_calls.items():
            self._program.set_tail_call(table, 0, function)
        if paused:
            self.pause()
        # Before anything is attached: a process that runs already pays for its probes from then on.
        self.hit_cost = measure_hit(self._program)
        for point in source.points:
            self._program.attach(point)
        self.ring = RingReader(self._program.ring_fd("ring"), ring_bytes)
        self._left = (0, 0)

    def plan_json(self) -> dict[str, Any]:
        """The plan for the trace's metadata, with what a hit costs on this machine."""
        plan = self.plan.to_json()
        if self.hit_cost is not None:
            plan["ops"]["hit_ns"] = self.hit_cost.ns
            plan["ops"]["hit_evidence"] = f"measured on {self.hit_cost.insn} in libc"
        return plan

    def drain(self, sink: Sink) -> int:
        """Hand what the ring holds to ``sink``; returns the bytes."""
        return self.ring.drain(sink)

    def counters(self) -> list[int]:
        """The kernel's counters so far, with what was taken from open batches."""
        counters = self._program.counters("counters", CNT_COUNT)
        counters[CNT_SENT + Kind.OPS] += self._left[0]
        counters[CNT_OP_RECORDS] += self._left[1]
        return counters

    def take_open_batches(self) -> list[bytes]:
        """Ring entries of batches that no thread has handed over. Nobody may write any more."""
        entries, records = open_batches(self._program.values("slots"))
        self._left = (len(entries), records)
        return entries

    @property
    def records(self) -> int:
        """Ring entries taken, those of open batches included."""
        return self.ring.records + self._left[0]

    def pause(self) -> None:
        """From now on nothing is recorded; the probes stay, and cost what they cost."""
        self._program.set_array("paused", 0, 1)

    def resume(self) -> None:
        """Record from now on."""
        self._program.set_array("paused", 0, 0)

    def detach(self) -> None:
        """Remove every probe at once; about 0.1 s each."""
        self._program.detach_all()

    def close(self) -> None:
        """Unmap the ring and remove what is still attached, in the background."""
        self.ring.close()
        self._program.release()


def lost_events(counters: list[int]) -> int:
    """Events the kernel dropped: whole records, and the operator records inside lost batches."""
    whole = sum(counters[CNT_LOST : CNT_LOST + 16]) - counters[CNT_LOST + Kind.OPS]
    return whole + counters[CNT_OP_LOST] + counters[CNT_NO_SLOT]
