"""Layer 6: what other backends cost the thread that calls, by call, nothing counted twice.

Must not import rich or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.analysis.backends import owner
from profinfer.model.trace import Trace

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class HostTime:
    """Nanoseconds by call, shape (calls,).

    Attributes:
        work: in other backends' graph_compute: computing there, or handing work over.
        copies: in copies to and from other backends' memory.
        waits: waiting for other backends inside the call, outside of copies.
        waits_sampling: the same while sampling.
        waits_between: the same elsewhere between this call and the next.
        last_wait_ns: when the last of these waits after the call ended, 0 for none.
    """

    work: I64
    copies: I64
    waits: I64
    waits_sampling: I64
    waits_between: I64
    last_wait_ns: I64

    @property
    def parts(self) -> tuple[I64, ...]:
        """The first five, which add up."""
        return (self.work, self.copies, self.waits, self.waits_sampling, self.waits_between)


def host_time(trace: Trace) -> HostTime:
    """What the calling thread spent on backends other than the CPU's."""
    n = len(trace.calls)
    splits, copies, syncs = trace.splits, trace.copies, trace.syncs
    others = splits[(splits["outermost"] & (splits["backend"] != "CPU")).to_numpy()]
    moved = copies[(copies["outermost"] & copies["crosses"]).to_numpy()]
    waits = syncs[(syncs["backend"] != "CPU").to_numpy()]
    waits = waits[~_within(waits, copies[copies["outermost"]])]
    inside = (waits["call_id"] >= 0).to_numpy()
    sampling = ~inside & _within(waits, trace.samples)
    between = ~inside & ~sampling
    late = owner(trace, waits[~inside])
    last = np.zeros(n + 1, np.int64)
    np.maximum.at(last, late, waits["end_ns"].to_numpy()[~inside])
    return HostTime(
        work=_sum(others, others["call_id"].to_numpy(), n),
        copies=_sum(moved, moved["call_id"].to_numpy(), n),
        waits=_sum(waits[inside], waits["call_id"].to_numpy()[inside], n),
        waits_sampling=_sum(waits[sampling], owner(trace, waits[sampling]), n),
        waits_between=_sum(waits[between], owner(trace, waits[between]), n),
        last_wait_ns=last[:n],
    )


def _sum(table: pd.DataFrame, call: npt.NDArray[np.int64], n: int) -> I64:
    out = np.zeros(n + 1, np.int64)  # the last one takes what has no call
    np.add.at(out, call, (table["end_ns"] - table["begin_ns"]).to_numpy())
    return out[:n]


def _within(table: pd.DataFrame, outer: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Which rows begin inside a row of ``outer`` on their thread."""
    out = np.zeros(len(table), bool)
    for tid in np.unique(table["tid"].to_numpy()):
        mine = np.flatnonzero((table["tid"] == tid).to_numpy())
        theirs = outer[(outer["tid"] == tid).to_numpy()].sort_values("begin_ns")
        begin = table["begin_ns"].to_numpy()[mine]
        at = np.searchsorted(theirs["begin_ns"].to_numpy(), begin, side="right") - 1
        ends = np.append(theirs["end_ns"].to_numpy(), -1)
        out[mine] = (at >= 0) & (begin < ends[at])
    return out
