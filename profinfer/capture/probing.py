"""Layer 4: a plan in force: its BPF program loaded and attached, its ring mapped."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

from profinfer.capture.btf import running_kernel
from profinfer.capture.calibrate import measure_hit
from profinfer.capture.drain import RingReader, Sink
from profinfer.capture.leftover import open_batches
from profinfer.capture.memory import Memory, open_runs
from profinfer.capture.perfevents import online_cpus, open_counters
from profinfer.capture.program import Program
from profinfer.capture.sched import Scheduler
from profinfer.capture.source import Source, build_source, headers_folder
from profinfer.capture.uprobes import AttachError, Method, close_together
from profinfer.capture.wanted import Wanted
from profinfer.probes.experts import no_experts
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

LEVELS = ("token", "graph", "op")
_GRAPH_ROLES = ("graph", "split", "leafs")


def level_of(role: str) -> str:
    """The group that probes of a role belong to: the level that needs them."""
    if role.startswith("op."):
        return "op"
    return "graph" if role in _GRAPH_ROLES else "token"


class Probing:
    """Probes of one plan on one process, in one group a level.

    ``attach`` and ``detach`` may be called as often as wanted while the target runs. A graph that
    is under way when the operators' probes come or go is recorded in part: its operators do not
    cover it. When they have gone, ``take_open_batches`` has what the threads had begun.

    Args:
        plan: what is probed.
        pid: the process; it may be held, stopped or running.
        wanted: what it is to record beside the plan's probes.
        paused: record nothing until ``resume``; for a process that runs while probes are attached.
        counters: what threads are to count at their operators; what this machine does not count is
            left out and is in ``opened.refused``.

    Attributes:
        no_experts: why it is not read which experts tokens are routed to, None if it is.
    """

    def __init__(
        self,
        plan: ProbePlan,
        pid: int,
        wanted: Wanted,
        *,
        paused: bool = False,
    ) -> None:
        self.plan = plan
        self.sched = Scheduler.wanted(wanted.sched)
        self.memory = Memory(wanted.faults)
        running_kernel.cache_clear()  # both have what they need of the kernel's types
        self.opened = open_counters(wanted.counters, online_cpus() if wanted.counters else ())
        source = build_source(
            plan,
            ring_bytes=wanted.ring_bytes,
            sched=self.sched.definitions,
            steps=wanted.steps,
            memory=self.memory.definitions,
            counters=len(self.opened.counters),
            only=wanted.only,
            experts=wanted.experts,
        )
        self.no_experts = no_experts(plan) if wanted.experts else "--no-experts"
        try:
            self._set_up(source, pid, paused, None)
        except AttachError:
            if self._program.method is Method.PERF or not Path(f"/proc/{pid}").exists():
                raise
            # Links were said to work here, and one was refused: then the older way.
            self._program.release()
            self._set_up(source, pid, paused, Method.PERF)
        self.memory.attach(self._program, pid)
        self.sched.attach(self._program, pid)
        self.ring = RingReader(self._program.ring_fd("ring"), wanted.ring_bytes)
        self._left = (0, 0, 0)  # batches, their operator records, COUNTS
        self._left_runs = 0

    def _set_up(self, source: Source, pid: int, paused: bool, method: Method | None) -> None:
        program = self._program = Program(
            source.text, source.cflags, headers=headers_folder(), pid=pid, method=method
        )
        program.load_together(source.tail_calls.values())
        for table, function in source.tail_calls.items():
            program.set_tail_call(table, 0, function)
        if paused:
            self.pause()
        if self.opened.counters:
            n = len(self.opened.counters)
            for k, held in enumerate(self.opened.files):
                for cpu, fd in held.items():
                    program.put("events", cpu * n + k, struct.pack("=I", fd))
            program.on_tracepoint("sched_switch", "pf_on_switch")
        # Before anything is attached: a process that runs already pays for its probes from then on.
        self.hit_cost = measure_hit(program)
        levels = [level_of(probe.role) for probe in self.plan.probes]
        self._groups = {
            level: program.group(
                [point for at, point in zip(levels, source.points, strict=True) if at == level]
            )
            for level in LEVELS
        }
        self.attach()

    def attach(self, *levels: str) -> None:
        """Put the probes of levels in place, of all levels if none is named; takes some 10 ms.

        Raises:
            AttachError: the kernel refused one; its level is not attached then.
        """
        for level in levels or LEVELS:
            self._groups[level].attach()

    def detach(self, *levels: str) -> None:
        """Remove the probes of levels, of all levels if none is named; they cost nothing then.

        Takes about 0.1 s together; where the kernel has no uprobe-multi links, 0.1 s a probe.
        """
        close_together([fd for level in levels or LEVELS for fd in self._groups[level].take()])

    def detach_all(self) -> None:
        """Remove every probe, and stop listening to the scheduler, to faults and reads."""
        self.sched.detach()
        self.memory.detach()
        self.detach()

    @property
    def attached(self) -> tuple[str, ...]:
        """The levels whose probes are in place."""
        return tuple(level for level in LEVELS if self._groups[level].attached)

    @property
    def hit_ns(self) -> int | None:
        """What one hit costs on this machine, None if it could not be measured."""
        return None if self.hit_cost is None else self.hit_cost.ns

    def plan_json(self) -> dict[str, Any]:
        """The plan for the trace's metadata, with how it was attached and what a hit costs here."""
        plan = self.plan.to_json()
        plan["attached_by"] = self._program.method.value
        if self.opened.counters:
            plan["counters"] = [counter.to_json() for counter in self.opened.counters]
        if self.hit_cost is not None:
            plan["ops"]["hit_ns"] = self.hit_cost.ns
            plan["ops"]["hit_evidence"] = f"measured on {self.hit_cost.insn} in libc"
        return plan

    def parts_json(self) -> dict[str, Any]:
        """What is recorded beside the plan's probes, and why not, for the trace's metadata."""
        why = self.no_experts
        return {
            "sched": self.sched.to_json(),
            "memory": self.memory.to_json(),
            "experts": {"recorded": why is None} | ({} if why is None else {"why": why}),
        }

    def drain(self, sink: Sink) -> int:
        """Hand what the ring holds to ``sink``; returns the bytes."""
        return self.ring.drain(sink)

    def counters(self) -> list[int]:
        """The kernel's counters so far, with what was taken from open batches."""
        counters = self._program.counters("counters", CNT_COUNT)
        counters[CNT_SENT + Kind.OPS] += self._left[0]
        counters[CNT_SENT + Kind.COUNTS] += self._left[2]
        counters[CNT_OP_RECORDS] += self._left[1]
        counters[CNT_SENT + Kind.FAULT] += self._left_runs
        return counters

    def take_open_batches(self) -> list[bytes]:
        """Ring entries of batches that no thread has handed over; their slots are empty then.

        Nobody may write any more: the target has ended, or the operators' probes are detached.
        """
        counters = len(self.opened.counters)
        batches, records, emptied = open_batches(self._program.values("slots"), counters)
        for place, slot in emptied.items():
            self._program.put("slots", place, slot)
        counted = len(batches) if counters else 0
        self._left = (
            self._left[0] + len(batches),
            self._left[1] + records,
            self._left[2] + counted,
        )
        return batches

    def take_open_runs(self) -> list[bytes]:
        """Ring entries of page faults that no thread has handed over; nobody may fault any more."""
        if self.memory.definitions is None:
            return []
        runs = self._program.values("fault_runs")
        entries, places = open_runs(runs)
        for place in places:
            self._program.put("fault_runs", place, bytes(len(runs[place])))
        self._left_runs += len(entries)
        return entries

    @property
    def records(self) -> int:
        """Ring entries taken, those of open batches included."""
        return self.ring.records + self._left[0] + self._left[2] + self._left_runs

    def pause(self) -> None:
        """From now on nothing is recorded; the probes stay, and cost what they cost."""
        self._program.set_array("paused", 0, 1)

    def resume(self) -> None:
        """Record from now on."""
        self._program.set_array("paused", 0, 0)

    def close(self) -> None:
        """Unmap the ring and remove what is still attached, in the background."""
        self.sched.detach()
        self.memory.detach()
        self.ring.close()
        self._program.release()
        self.opened.close()


def lost_events(counters: list[int]) -> int:
    """Events the kernel dropped: whole records, and the operator records inside lost batches."""
    whole = sum(counters[CNT_LOST:CNT_OP_RECORDS]) - counters[CNT_LOST + Kind.OPS]
    return whole + counters[CNT_OP_LOST] + counters[CNT_NO_SLOT]
