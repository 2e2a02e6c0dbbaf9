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
    ops = selection.rows(trace.ops)
    ops = ops[ops["complete"].to_numpy()]
    if not len(ops):
        return None
    graph, node = ops["graph_id"].to_numpy(), ops["node_id"].to_numpy()
    starts = operator_starts(graph, node)
    wait = (ops["release_ns"] - ops["end_ns"]).to_numpy()
    size = np.diff(np.r_[starts, len(ops)])
    waited = np.add.reduceat(wait, starts)
    # The row of each operator that waited least: it came last.
    last = np.lexsort((wait, np.repeat(np.arange(len(starts)), size)))[starts]
    tids, at = np.unique(ops["tid"].to_numpy()[last], return_inverse=True)
    blamed = np.bincount(at, waited, len(tids))
    n, total = int(size.max()), float(waited.sum())
    whole = float((ops["release_ns"] - ops["begin_ns"]).sum())
    if n < 2 or not whole or total / whole < WAIT_MIN:
        return None
    worst = int(blamed.argmax())
    if blamed[worst] / total < max(0.6, min(0.8, 3 / n)):
        return None
    return Straggler(int(tids[worst]), float(blamed[worst] / total), float(blamed[worst] / whole))
