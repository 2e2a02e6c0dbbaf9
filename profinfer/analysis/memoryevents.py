"""Layer 6: page faults and disk reads with the phase of the run that they fell into.

Must not import rich or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.model.memory import read_by_tensor
from profinfer.model.trace import Trace

I64 = npt.NDArray[np.int64]

LOADING, BETWEEN = "loading", "between calls"


@dataclass(frozen=True)
class Events:
    """Faults and reads of the phases that a view covers.

    Attributes:
        faults: the trace's table with ``when``.
        reads: the trace's table with ``when``.
        parts: ``read_by_tensor`` of all reads, with ``when`` and ``node_id``.
    """

    faults: pd.DataFrame
    reads: pd.DataFrame
    parts: pd.DataFrame


def events(trace: Trace, phase: str | None = None) -> Events:
    """Faults and reads, each with the phase of the call that it fell into.

    Args:
        trace: what was recorded.
        phase: only this one.
    """
    faults = trace.faults.assign(when=when(trace, trace.faults["ts_ns"].to_numpy()))
    reads = trace.reads.assign(when=when(trace, trace.reads["ts_ns"].to_numpy()))
    parts = read_by_tensor(trace.reads, trace.residents)
    of_read = reads[["when", "node_id", "graph_id"]].iloc[parts["read"].to_numpy()]
    parts = pd.concat([parts, of_read.reset_index(drop=True)], axis=1)
    if phase is not None:
        faults, reads, parts = (t[t["when"] == phase] for t in (faults, reads, parts))
    return Events(faults, reads, parts)


def when(trace: Trace, ts: I64) -> npt.NDArray[np.object_]:
    """``loading`` before the first call, a call's phase until it is done, else between calls."""
    calls = trace.calls.sort_values("begin_ns", kind="stable")
    out = np.full(len(ts), BETWEEN, dtype=object)
    if not len(calls):
        return out
    at = np.searchsorted(calls["begin_ns"].to_numpy(), ts, side="right") - 1
    row = np.maximum(at, 0)
    hit = (at >= 0) & (ts < calls["done_ns"].to_numpy()[row])
    out[hit] = calls["phase"].astype(str).to_numpy(dtype=object)[row[hit]]
    out[at < 0] = LOADING
    return out


def with_rest(told: Events) -> pd.DataFrame:
    """Parts of reads on tensors, and what of each read fell on none: its tensor is ""."""
    named = told.parts.groupby("read")["bytes"].sum().reindex(told.reads.index).fillna(0)
    rest = told.reads.assign(bytes=told.reads["bytes"] - named, tensor="")
    return pd.concat([told.parts.assign(file=""), rest[rest["bytes"] > 0]], ignore_index=True)
