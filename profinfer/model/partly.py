"""Layer 5: which calls are known in part only, because records around or inside of them were lost.

Must not import the analyses or above.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.model.edges import Loose
from profinfer.model.holes import Holes
from profinfer.model.spans import parents


def lost_before(calls: pd.DataFrame, holes: Holes) -> npt.NDArray[np.bool_]:
    """Between which calls and the one before them on their thread others were lost."""
    tid, begin, end = (calls[c].to_numpy(np.int64) for c in ("tid", "begin_ns", "end_ns"))
    since = np.zeros(len(calls), np.int64)
    order = np.lexsort((begin, tid))
    same = tid[order][1:] == tid[order][:-1]
    since[order[1:][same]] = end[order[:-1][same]]
    return holes.touches(tid, np.minimum(since, begin), begin + 1)


def torn_calls(
    calls: pd.DataFrame, graphs: pd.DataFrame, holes: Holes, loose: Loose, graphs_lost: bool
) -> npt.NDArray[np.bool_]:
    """Calls that may lack graphs."""
    tid, begin, end = (calls[c].to_numpy(np.int64) for c in ("tid", "begin_ns", "end_ns"))
    torn = holes.touches(tid, begin, end)
    around = parents(loose.tid, loose.ts, tid, begin, end)
    torn[around[around >= 0]] = True
    if graphs_lost:  # before the first number of a thread, after its last, or without numbers
        torn |= np.bincount(graphs["call_id"] + 1, minlength=len(calls) + 1)[1:] == 0
    return torn
