"""Layer 5: when the results of a call were there, which may be after it has returned.

A backend that computes asynchronously is only given its work by the call; the program waits for it
later: in a sampler, or wherever it asks for the logits. Must not import the analyses or above.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.engine.catalog import backend_facts
from profinfer.model.backends import waited_for
from profinfer.model.holes import Holes

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def is_asynchronous(table: pd.DataFrame) -> Mask:
    """Which rows are of backends that may compute after their graph_compute has returned.

    Args:
        table: with a column ``backend``.
    """
    return np.asarray(~table["backend"].isin(backend_facts().synchronous), bool)


def asynchronous_names(table: pd.DataFrame) -> str:
    """Names of those backends in a table with a column ``backend``; empty where none has one."""
    names = set(table["backend"][is_asynchronous(table)].astype(str))
    return ", ".join(sorted(names - {""}))


def with_results(
    calls: pd.DataFrame, splits: pd.DataFrame, syncs: Callable[[], pd.DataFrame], lost: Holes
) -> pd.DataFrame:
    """The calls with ``done_ns``, and ``cut`` where the wait for the results was cut off.

    done_ns: the latest moment at which the work of one of its splits was known to be done, but not
    before its own end, and not after the next call of its thread or its context began. Of a call
    that is cut or torn, or after which calls were lost, it is the end: who knows what was waited
    for then.

    Args:
        calls: in order of begin_ns; the index is the call_id.
        splits: call_id, backend, address, end_ns.
        syncs: gives the table of waits. It is not asked for where nothing is asynchronous.
        lost: where calls were lost.
    """
    end = calls["end_ns"].to_numpy(np.int64)
    done, cut = end.copy(), calls["cut"].to_numpy(bool).copy()
    mine = splits[(splits["call_id"] >= 0).to_numpy() & is_asynchronous(splits)]
    if len(mine):
        until, is_open = waited_for(mine, syncs())
        owner = mine["call_id"].to_numpy()
        np.maximum.at(done, owner, until)
        done = np.maximum(np.minimum(done, _next_begin(calls)), end)
        tid = calls["tid"].to_numpy(np.int64)
        unsure = cut | calls["torn"].to_numpy(bool) | lost.touches(tid, end, done)
        done[unsure] = end[unsure]
        last = is_open & (until == done[owner]) & (until > end[owner])
        cut[owner[last]] = True
    out = calls.assign(cut=cut)
    out.insert(list(out.columns).index("end_ns") + 1, "done_ns", done)
    return out


def _next_begin(calls: pd.DataFrame) -> I64:
    """When the next call of the same thread, or of the same context, began; far off without one."""
    begin = calls["begin_ns"].to_numpy(np.int64)
    out = np.full(len(calls), np.iinfo(np.int64).max)
    for name in ("tid", "ctx"):
        key = calls[name].to_numpy()
        order = np.lexsort((begin, key))
        same = key[order][1:] == key[order][:-1]
        at = order[:-1][same]
        out[at] = np.minimum(out[at], begin[order][1:][same])
    return out
