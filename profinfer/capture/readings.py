"""Layer 4: what the kernel's counters say of a running recording: speed, and what probes cost.

Nothing is decoded for it. All times are the target's time in calls, so that idling does not count;
waiting for a backend after a call is part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from profinfer.tracefile.schema import (
    CNT_CALL_NS,
    CNT_NODE_THREADS,
    CNT_NODES,
    CNT_OP_PASSED,
    CNT_OP_RECORDS,
    CNT_SCHED_NS,
    CNT_SENT,
    CNT_STEP_NODES,
    CNT_STEP_NS,
    CNT_STEPS,
    Kind,
)

_FORECAST_NS = 300_000_000  # calls' time that makes a forecast
_WORTH_TELLING = 0.001  # of a share


@dataclass(frozen=True)
class Reading:
    """The kernel's counters at one moment, or their growth between two.

    Attributes:
        call_ns: time in calls that have ended, and of waiting for their backends afterwards.
        steps: decode steps, and step_ns: the time of their calls.
        hits: at operators, all threads, recorded or left out.
        marks: begins and ends of calls, samples, splits and graphs.
        graphs: graphs begun, nodes: of these, node_threads: nodes times threads, summed.
        step_nodes: of the nodes those in calls of decode steps.
        sched_ns: spent on records of thread states, all CPUs.
    """

    call_ns: int = 0
    steps: int = 0
    step_ns: int = 0
    hits: int = 0
    marks: int = 0
    graphs: int = 0
    nodes: int = 0
    node_threads: int = 0
    step_nodes: int = 0
    sched_ns: int = 0

    @classmethod
    def of(cls, counters: Sequence[int]) -> Reading:
        """Take what is needed out of all counters."""
        return cls(
            call_ns=counters[CNT_CALL_NS],
            steps=counters[CNT_STEPS],
            step_ns=counters[CNT_STEP_NS],
            hits=counters[CNT_OP_RECORDS] + counters[CNT_OP_PASSED],
            marks=sum(counters[CNT_SENT + Kind.CALL_BEGIN : CNT_SENT + Kind.GRAPH_END + 1]),
            graphs=counters[CNT_SENT + Kind.GRAPH_BEGIN],
            nodes=counters[CNT_NODES],
            node_threads=counters[CNT_NODE_THREADS],
            step_nodes=counters[CNT_STEP_NODES],
            sched_ns=counters[CNT_SCHED_NS],
        )

    def since(self, before: Reading) -> Reading:
        """The growth since an earlier reading."""
        return Reading(
            *(getattr(self, n) - getattr(before, n) for n in Reading.__dataclass_fields__)
        )

    @property
    def tps(self) -> float:
        """Decode steps per second of decode calls."""
        return self.steps * 1e9 / self.step_ns if self.step_ns else 0.0

    @property
    def thread_hits(self) -> float:
        """Operator hits of one thread: threads pay at the same time."""
        return self.hits * self.nodes / self.node_threads if self.node_threads else float(self.hits)

    @property
    def step_part(self) -> float:
        """Of all costs those of decode steps: nodes, and not time, tell a graph's hits."""
        if self.nodes:
            return min(self.step_nodes / self.nodes, 1.0)
        return self.step_ns / self.call_ns if self.call_ns else 0.0

    def cost_ns(self, hit_ns: float) -> float:
        """What hits, at ``hit_ns`` each, and thread states cost the calls.

        Threads are hit at the same time, but sleep and wake one after the other: the one that
        opens a barrier wakes all. So records of thread states count in full.
        """
        return (self.thread_hits + self.marks) * hit_ns + self.sched_ns


@dataclass(frozen=True)
class Forecast:
    """What recording costs a target.

    Attributes:
        decode: share of the time of decode steps, None if none were seen; tps: these per second.
        rest: share of the time of other calls: prefill, warm-up; None if there were none.
        sched: of ``share``, what thread states cost.
        hits: a graph and thread.
        hit_ns: one hit.
    """

    decode: float | None
    rest: float | None
    sched: float
    tps: float
    hits: float
    hit_ns: float

    @classmethod
    def of(cls, reading: Reading, hit_ns: float | None) -> Forecast | None:
        """None until there are calls of some length, or if the cost of a hit is not known."""
        if hit_ns is None or reading.call_ns < _FORECAST_NS:
            return None
        cost, steps = reading.cost_ns(hit_ns), reading.step_part
        rest_ns = reading.call_ns - reading.step_ns
        sched = reading.sched_ns / reading.call_ns
        if reading.step_ns:
            sched = reading.sched_ns * steps / reading.step_ns
        return cls(
            cost * steps / reading.step_ns if reading.step_ns else None,
            cost * (1 - steps) / rest_ns if rest_ns else None,
            sched,
            reading.tps,
            (reading.thread_hits + reading.marks) / max(reading.graphs, 1),
            hit_ns,
        )

    @classmethod
    def early(cls, reading: Reading, hit_ns: float | None) -> Forecast | None:
        """Of a recording that goes on: None until there are decode steps of some length.

        A prompt takes long for its hits, and says nothing of what decoding will cost.
        """
        return cls.of(reading, hit_ns) if reading.step_ns >= _FORECAST_NS else None

    @property
    def share(self) -> float:
        """Of decode steps; where there are none, of all calls."""
        return self.decode if self.decode is not None else (self.rest or 0.0)

    @property
    def text(self) -> str:
        """One clause, such as the following.

        ``about 5.1 % of decoding at 118 tok/s, 0.2 % of prefill (518 hits a graph, 0.87 µs each)``
        """
        parts = []
        if self.decode is not None:
            tps = f"{self.tps:,.0f}" if self.tps >= 100 else f"{self.tps:.3g}"
            parts.append(f"{_share(self.decode)} of decoding at {tps} tok/s")
        if self.rest is not None:
            parts.append(f"{_share(self.rest)} of prefill")
        about = "" if parts[0].startswith("less") else "about "
        hits = f"{self.hits:,.0f} hits a graph, {self.hit_ns / 1e3:.2f} µs each"
        if self.sched >= _WORTH_TELLING:
            hits += f"; {_share(self.sched)} are thread states"
        return f"{about}{', '.join(parts)} ({hits})"


def _share(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= _WORTH_TELLING else "less than 0.1 %"
