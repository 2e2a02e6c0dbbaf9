"""Layer 6: which thread the others wait for at barriers.

Must not import rich or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass

from profinfer.model.latecomers import waited_for
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace

# All waiting in barriers, as a part of the operators' thread time.
WAIT_MIN = 0.10


@dataclass(frozen=True)
class Straggler:
    """The thread that is late.

    Attributes:
        tid: the thread.
        blame: part of all waiting at operators at which it came last.
        share: that waiting as a part of the operators' thread time.
    """

    tid: int
    blame: float
    share: float


def straggler(trace: Trace, selection: Selection) -> Straggler | None:
    """The one thread that most of the waiting is for, or None if it is spread, or little.

    At each operator the others' waiting is put down to the thread that came last. Of n threads
    each is last at 1/n of them when nothing is wrong.
    """
    sums, tids = trace.sums(selection), trace.op_health.tids
    whole, computed = int(sums.thread_time.sum()), int(sums.thread_compute.sum())
    n, total = sums.most_threads, whole - computed
    if n < 2 or not whole or total / whole < WAIT_MIN:
        return None
    blamed = waited_for(trace.op_health, selection)
    worst = int(blamed.argmax())
    if blamed[worst] / total < max(0.6, min(0.8, 3 / n)):
        return None
    return Straggler(int(tids[worst]), float(blamed[worst] / total), float(blamed[worst] / whole))
