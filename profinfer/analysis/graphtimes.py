"""Layer 6: times of a graph's nodes, and which ran inside another.

Must not import rich or anything above.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def measured(walls: pd.DataFrame, node: I64, n: int) -> dict[str, F64]:
    """Means of each node's executions; ``node`` is the place of each."""
    threads = walls["threads"].to_numpy(np.float64)
    runs = np.bincount(node, minlength=n).astype(np.float64)

    def mean(values: F64) -> F64:
        total = np.bincount(node, values, n)
        return np.divide(total, runs, out=np.zeros(n), where=runs > 0)

    length = (walls["release_ns"] - walls["begin_ns"]).to_numpy(np.float64)
    return {
        "runs": runs,
        "wall_ns": mean(length),
        "compute_ns": mean(walls["compute_sum"].to_numpy() / threads),
        "wait_ns": mean(walls["wait_sum"].to_numpy() / threads),
    }


def ran_into(walls: pd.DataFrame, node: I64, works: Mask) -> I32:
    """Node that each node ran fused into, as in most of the executions."""
    fused = walls["fused"].to_numpy()
    kept = fused > 1
    out = np.arange(len(works), dtype=np.int32)
    places = np.flatnonzero(works)
    for at, covers in np.unique(np.stack([node[kept], fused[kept]]), axis=1).T.tolist():
        where = int(np.searchsorted(places, at))
        out[places[max(where - covers + 1, 0) : where]] = at
    return out
