"""Layer 6: what calls do outside of their graphs. Must not import rich or anything above."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from profinfer.analysis.hosttime import away_times
from profinfer.model.trace import Trace


def outside_of_graphs(trace: Trace) -> npt.NDArray[np.int64]:
    """Time of each call outside of its graphs and of the reading of them, ns, shape (calls,).

    Of a call that is ``torn`` it holds the graphs that were lost, too.
    """
    calls, graphs = trace.calls, trace.graphs
    owner = graphs["call_id"].to_numpy()
    spent = (graphs["end_ns"] - graphs["begin_ns"] + graphs["walk_ns"]).to_numpy()
    out: npt.NDArray[np.int64] = (calls["end_ns"] - calls["begin_ns"]).to_numpy().copy()
    np.subtract.at(out, owner[owner >= 0], spent[owner >= 0])
    return out


def building(trace: Trace) -> npt.NDArray[np.int64]:
    """The same without what other, asynchronous backends took inside of the call."""
    calls = trace.calls
    late = (calls["done_ns"] - calls["end_ns"]).to_numpy(np.int64)
    work, copies, waits = away_times(trace)
    return np.asarray(np.maximum(outside_of_graphs(trace) - work - copies - (waits - late), 0))
