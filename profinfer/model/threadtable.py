"""Layer 5: one row per thread: what it is called, what it computed, how long it was there.

Must not import the analyses or above.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from profinfer.model.operators import Operators
from profinfer.tracefile.ringindex import RingIndex
from profinfer.tracefile.schema import Kind


def threads_table(index: RingIndex, operators: Operators, names: dict[int, str]) -> pd.DataFrame:
    """The ``threads`` table.

    Args:
        index: every record's kind, thread and time.
        operators: of the threads.
        names: of threads.
    """
    own = ~np.isin(index.kind, (Kind.SCHED, Kind.FAULT, Kind.READ))
    # As in the tables: a damaged record may hold what is no number of a thread.
    index_tid, index_ts = index.tid[own].astype(np.int32), index.ts[own]
    tids = np.unique(index_tid)
    order = np.argsort(index_tid, kind="stable")
    starts = np.searchsorted(index_tid[order], tids)
    ts = index_ts[order]
    last = np.maximum.reduceat(ts, starts) if len(tids) else ts
    ops, compute, wait = (np.zeros(len(tids), np.int64) for _ in range(3))
    rows = operators.rows
    for at in np.flatnonzero(np.isin(tids, operators.tids)).tolist():
        mine = np.flatnonzero(rows.tid == tids[at])
        if len(mine):
            end = rows.end[mine]
            ops[at] = len(mine)
            compute[at] = (end - rows.begin[mine]).sum()
            wait[at] = (rows.release[mine] - end).sum()
            last[at] = max(last[at], end.max())
    return pd.DataFrame(
        {
            "tid": tids,
            "name": [names.get(t, "") for t in tids.tolist()],
            "ops": ops,
            "compute_ns": compute,
            "wait_ns": wait,
            "first_ns": np.minimum.reduceat(ts, starts) if len(tids) else ts,
            "last_ns": last,
        }
    )
