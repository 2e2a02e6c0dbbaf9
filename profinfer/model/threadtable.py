"""Layer 5: one row per thread: what it is called, what it computed, how long it was there.

Must not import the analyses or above.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from profinfer.model.oprows import Rows
from profinfer.tracefile.ringindex import RingIndex
from profinfer.tracefile.schema import Kind


def threads_table(index: RingIndex, ops: Rows, names: dict[int, str]) -> pd.DataFrame:
    """The ``threads`` table.

    Args:
        index: every record's kind, thread and time.
        ops: operators of each thread.
        names: of threads.
    """
    own = ~np.isin(index.kind, (Kind.SCHED, Kind.FAULT, Kind.READ))
    # As in the tables: a damaged record may hold what is no number of a thread.
    index_tid, index_ts = index.tid[own].astype(np.int32), index.ts[own]
    tids = np.unique(index_tid)
    at = np.searchsorted(tids, ops.tid)
    compute = np.zeros(len(tids), np.int64)
    wait = np.zeros(len(tids), np.int64)
    np.add.at(compute, at, ops.end - ops.begin)
    np.add.at(wait, at, ops.release - ops.end)
    order = np.argsort(index_tid, kind="stable")
    starts = np.searchsorted(index_tid[order], tids)
    ts = index_ts[order]
    last = np.maximum.reduceat(ts, starts) if len(tids) else ts
    np.maximum.at(last, at, ops.end)
    return pd.DataFrame(
        {
            "tid": tids,
            "name": [names.get(t, "") for t in tids.tolist()],
            "ops": np.bincount(at, minlength=len(tids)),
            "compute_ns": compute,
            "wait_ns": wait,
            "first_ns": np.minimum.reduceat(ts, starts) if len(tids) else ts,
            "last_ns": last,
        }
    )
