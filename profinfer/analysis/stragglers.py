"""Layer 6: which thread the others wait for at barriers.

Must not import rich or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from profinfer.model.oprows import operator_starts
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
    walls, ops = trace.op_walls, trace.ops
    chosen = np.flatnonzero(selection.mask(walls) & walls["complete"].to_numpy())
    if not len(chosen):
        return None
    computed, waited, size = (
        walls[c].to_numpy()[chosen] for c in ("compute_sum", "wait_sum", "threads")
    )
    # Who came last opened the barrier: it waited for nobody. Of two at once the first one.
    last = ops["end_ns"].to_numpy() == ops["release_ns"].to_numpy()
    last &= ops["complete"].to_numpy()
    at = np.flatnonzero(last & selection.mask(ops))
    at = at[operator_starts(*(ops[c].to_numpy()[at] for c in ("graph_id", "node_id")))]
    tids, at = np.unique(ops["tid"].to_numpy()[at], return_inverse=True)
    blamed = np.bincount(at, waited, len(tids))
    n, total = int(size.max()), float(waited.sum())
    whole = float(computed.sum()) + total
    if n < 2 or not whole or total / whole < WAIT_MIN:
        return None
    worst = int(blamed.argmax())
    if blamed[worst] / total < max(0.6, min(0.8, 3 / n)):
        return None
    return Straggler(int(tids[worst]), float(blamed[worst] / total), float(blamed[worst] / whole))
