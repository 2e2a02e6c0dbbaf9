"""Layer 4: what one recording is to hold, beside the probes of its plan."""

from __future__ import annotations

from dataclasses import dataclass

from profinfer.capture.counters import Counter
from profinfer.capture.only import EVERYTHING, Only
from profinfer.capture.steps import Steps


@dataclass(frozen=True)
class Wanted:
    """What is compiled into the BPF program of a plan.

    Attributes:
        ring_bytes: size of the ring buffer, a power of two.
        sched: what the scheduler does with the target's threads, where the kernel lets us.
        steps: decode steps that operators are recorded in, None for everything.
        faults: page faults and reads, where the kernel lets us.
        counters: what is counted at each operator.
        only: operators and threads that it is narrowed to.
        experts: which experts tokens are routed to, where the engine lets us.
    """

    ring_bytes: int
    sched: bool = True
    steps: Steps | None = None
    faults: bool = True
    counters: tuple[Counter, ...] = ()
    only: Only = EVERYTHING
    experts: bool = True
