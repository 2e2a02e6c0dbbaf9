"""Layer 5: requests of a server: when each was queued, and when it was given to a slot.

Must not import the analyses or above.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from profinfer.model.decode import Records, int64
from profinfer.tracefile.schema import REQUEST_LAUNCH, Kind

_NONE = -1


def requests(records: Records) -> pd.DataFrame:
    """One row per task, in order of the first that was seen of it.

    Columns: task, tid (the thread that queued it), seq (its slot), posted_ns, launched_ns; -1 for
    what was not seen. Tasks that are no requests (metrics, cancelling) are queued and never given
    to a slot.
    """
    rows = records.rows[Kind.REQUEST]
    rows = rows[np.argsort(rows["ts"], kind="stable")]
    launched = (rows["flags"] & REQUEST_LAUNCH) != 0
    task, ts = int64(rows["value"]), int64(rows["ts"])
    known = task >= 0
    posts = {int(task[at]): at for at in np.flatnonzero(known & ~launched)[::-1].tolist()}
    starts = {int(task[at]): at for at in np.flatnonzero(known & launched)[::-1].tolist()}
    ids = sorted(posts.keys() | starts.keys(), key=lambda i: posts.get(i, starts.get(i, 0)))
    table = [
        (
            i,
            int(rows["tid"][posts[i]]) if i in posts else _NONE,
            _slot(int(rows["ctx"][starts[i]])) if i in starts else _NONE,
            int(ts[posts[i]]) if i in posts else _NONE,
            int(ts[starts[i]]) if i in starts else _NONE,
        )
        for i in ids
    ]
    columns = ["task", "tid", "seq", "posted_ns", "launched_ns"]
    out = pd.DataFrame(np.array(table, np.int64).reshape(-1, 5), columns=columns)
    return out.astype({"tid": np.int32, "seq": np.int32})


def _slot(value: int) -> int:
    """What was read as a slot's id; -1 if it can be none."""
    return value if value < 1 << 16 else _NONE
