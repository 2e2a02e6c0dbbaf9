"""Layer 6: what other backends cost the thread that calls, by call, nothing counted twice.

Must not import rich or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.analysis.backends import owner
from profinfer.model.results import is_asynchronous
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


@dataclass(frozen=True)
class Away:
    """Rows of tables: where the calling thread has to do with backends that compute by themselves.

    Attributes:
        work: splits of calls that were handed to them.
        copies: of calls, to and from their memory.
        waits: for them, outside of both: inside of calls, and until the results of a call were
            there. ``call_id`` is the call that they belong to.
    """

    work: pd.DataFrame
    copies: pd.DataFrame
    waits: pd.DataFrame


def away(trace: Trace) -> Away | None:
    """What calls spend on asynchronous backends; None if they have none."""
    splits, copies, syncs = trace.splits, trace.copies, trace.syncs
    work = splits[splits["outermost"].to_numpy() & is_asynchronous(splits)]
    work = work[(work["call_id"] >= 0).to_numpy()]
    if not len(work):
        return None
    moved = copies[(copies["outermost"] & copies["crosses"] & (copies["call_id"] >= 0)).to_numpy()]
    waits = syncs[is_asynchronous(syncs)]
    waits = waits[~_within(waits, copies[copies["outermost"]]) & ~_within(waits, work)]
    call = owner(trace, waits)
    waits, call = waits[call >= 0], call[call >= 0]
    done = trace.calls["done_ns"].to_numpy()[call]
    waits = waits.assign(call_id=call, end_ns=np.minimum(waits["end_ns"], done))
    return Away(work, moved, waits[(waits["end_ns"] > waits["begin_ns"]).to_numpy()])


def away_times(trace: Trace) -> tuple[I64, I64, I64]:
    """Work, copies and waits of ``away`` by call, ns; zero for backends that are synchronous.

    All the time from the call's end to its results is among the waits.
    """
    n, found = len(trace.calls), away(trace)
    if found is None:
        none = np.zeros(n, np.int64)
        return none, none, none
    end, done = (trace.calls[c].to_numpy(np.int64) for c in ("end_ns", "done_ns"))
    inside = found.waits[(found.waits["begin_ns"].to_numpy() < end[found.waits["call_id"]])]
    waits = _sum(inside, inside["call_id"].to_numpy(), n) + done - end
    work, copies = (_sum(t, t["call_id"].to_numpy(), n) for t in (found.work, found.copies))
    return work, copies, waits


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
