"""Layer 5: which thread came last at each operator, and how long the others waited for it.

Must not import pandas or above.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from profinfer.model.operators import Operators
from profinfer.model.oprows import piece, pieces
from profinfer.model.selection import Selection

_BLOCK = 1 << 17  # operators looked at together, in a CPU's cache


def waited_for(operators: Operators, selection: Selection) -> npt.NDArray[np.int64]:
    """Nanoseconds that threads waited at the operators at which each thread came last.

    Args:
        operators: of the trace.
        selection: which of them; torn ones are left out.

    Returns:
        In the order of ``Operators.tids``, shape (threads,).
    """
    tids = operators.tids
    out = np.zeros(len(tids), np.int64)
    row = 0
    for some in pieces(operators.walls, _BLOCK):
        # The rows of an operator are those of its threads.
        first, row = row, row + int(some.threads.sum(dtype=np.int64))
        rows = piece(operators.rows, slice(first, row))
        chosen = some.complete & selection.of_rows(some)
        which = np.repeat(np.arange(len(some.graph)), some.threads)
        # Who came last opened the barrier, and waited for nobody. Of two at once the first one.
        last = np.flatnonzero((rows.end == rows.release) & chosen[which])
        last = last[np.diff(which[last], prepend=-1) > 0]
        np.add.at(out, np.searchsorted(tids, rows.tid[last]), some.wait_sum[which[last]])
    return out
