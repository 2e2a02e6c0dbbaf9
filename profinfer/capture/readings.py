"""Layer 4: what the kernel's counters say of a running recording: speed, and what probes cost.

Nothing is decoded for it. All times are the target's time in calls, so that idling does not count.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from profinfer.tracefile.schema import (
    CNT_CALL_NS,
    CNT_OP_PASSED,
    CNT_OP_RECORDS,
    CNT_SENT,
    CNT_STEP_NS,
    CNT_STEPS,
    CNT_THREADS,
    Kind,
)

_FORECAST_NS = 300_000_000  # calls' time that makes a forecast


@dataclass(frozen=True)
class Reading:
    """The kernel's counters at one moment, or their growth between two.

    Attributes:
        call_ns: time in calls that have ended.
        steps: decode steps, and step_ns: the time of their calls.
        hits: at operators, all threads, recorded or left out.
        marks: begins and ends of calls, samples, splits and graphs.
        graphs: graphs begun, and threads: their threads, summed.
    """

    call_ns: int = 0
    steps: int = 0
    step_ns: int = 0
    hits: int = 0
    marks: int = 0
    graphs: int = 0
    threads: int = 0

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
            threads=counters[CNT_THREADS],
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
        return self.hits * self.graphs / self.threads if self.threads else float(self.hits)

    def cost_ns(self, hit_ns: float) -> float:
        """What the hits cost the calls, at ``hit_ns`` each."""
        return (self.thread_hits + self.marks) * hit_ns


@dataclass(frozen=True)
class Forecast:
    """What probes cost a target.

    Attributes:
        share: of the time in calls.
        tps: decode steps per second, 0 if none were seen.
        hits: a graph and thread.
        hit_ns: one hit.
    """

    share: float
    tps: float
    hits: float
    hit_ns: float

    @classmethod
    def of(cls, reading: Reading, hit_ns: float | None) -> Forecast | None:
        """None until enough was seen, or if the cost of a hit is not known."""
        if hit_ns is None or reading.call_ns < _FORECAST_NS:
            return None
        graphs = max(reading.graphs, 1)
        hits = (reading.thread_hits + reading.marks) / graphs
        return cls(reading.cost_ns(hit_ns) / reading.call_ns, reading.tps, hits, hit_ns)

    @property
    def text(self) -> str:
        """One clause: ``about 5.1 % at 118 tok/s (518 hits a graph, 0.87 µs each)``."""
        tps = f"{self.tps:,.0f}" if self.tps >= 100 else f"{self.tps:.3g}"
        speed = f" at {tps} tok/s" if self.tps else ""
        share = f"{100 * self.share:.1f}" if self.share >= 0.001 else "less than 0.1"
        hits = f"{self.hits:,.0f} hits a graph, {self.hit_ns / 1e3:.2f} µs each"
        return f"about {share} %{speed} ({hits})"
