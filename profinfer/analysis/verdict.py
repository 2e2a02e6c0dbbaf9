"""Layer 6: what bounds a group of operators, and the evidence. ``docs/metrics.md`` defines it.

Pure arithmetic over numbers of groups. Must not import the model, rich or anything above.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from profinfer.units import format_ns

NEAR = 0.50  # of a roof: from here on, the roof is what bounds
ABOVE = 1.10  # of the memory roof: from here on, the data did not come from memory
WAITING = 0.30  # of computing and waiting: from here on, the other threads are what bounds
ON_CPU = 0.75  # of computing: below, what bounds is that the threads had no CPU
ROOF_VERDICTS = ("memory", "compute", "cache")  # those that rest on the work done
SHORT_NS = 10_000  # mean time below which the fixed cost of an operator weighs


@dataclass(frozen=True)
class Facts:
    """Of a group of operators of which the work is known.

    Attributes:
        of_memory: least time that memory needs / time.
        of_compute: least time that the arithmetic needs / time.
        of_roof: sum over operators of the larger of both / time.
        memory_share: part of that sum in which memory is the larger.
        wait_share: waiting / (computing + waiting), NaN if not known.
        mean_ns: time of one execution.
        on_cpu: part of its computing that the threads were on a CPU, NaN if not known.
    """

    of_memory: float
    of_compute: float
    of_roof: float
    memory_share: float
    wait_share: float
    mean_ns: float
    on_cpu: float = math.nan


def verdict(facts: Facts) -> tuple[str, str]:
    """(what bounds: memory, compute, cache, no CPU, sync, latency or neither; the evidence)."""
    memory = f"{100 * facts.of_memory:.0f} % of the memory roof"
    compute = f"{100 * facts.of_compute:.0f} % of the compute roof"
    if facts.of_memory > ABOVE:
        return "cache", f"{memory}: its data lies in a cache"
    if facts.of_roof >= NEAR:
        if facts.memory_share >= 0.5:
            return "memory", f"{memory}, {compute}"
        return "compute", f"{compute}, {memory}"
    far = f"{memory}, {compute}"
    if facts.on_cpu < ON_CPU:
        # Before waiting and length: the others wait for the thread that has no CPU.
        return "no CPU", f"on a CPU for {100 * facts.on_cpu:.0f} % of its computing; {far}"
    if facts.wait_share >= WAITING:
        return "sync", f"{100 * facts.wait_share:.0f} % waiting for other threads; {far}"
    if facts.mean_ns < SHORT_NS:
        return "latency", f"{format_ns(facts.mean_ns)} each; {far}"
    return "neither", f"far below both roofs, long, little waiting: {far}"
