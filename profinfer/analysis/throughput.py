"""Layer 6: tokens computed per second, over the time of the recording, by phase.

Must not import rich or anything above.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from profinfer.analysis import notes
from profinfer.analysis.result import Column, Result
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace

FEW, MANY = 24, 120  # slices of the time from the first call to the last one's results
_EACH = 4  # calls of a slice, on average, between these


def throughput(trace: Trace, selection: Selection) -> Result:
    """One row per slice of time and phase: tokens that calls computed, over the slice's length.

    A call's tokens are spread evenly from its begin until it is done, so that a slice within a long
    call has its part of them. Slices are of equal length, ``FEW`` to ``MANY``.
    """
    calls = trace.calls[selection.calls]
    begin, end = (calls[c].to_numpy(np.int64) for c in ("begin_ns", "done_ns"))
    count = int(np.clip(len(calls) // _EACH, FEW, MANY))
    first, last = (int(begin.min()), int(end.max())) if len(calls) else (0, 1)
    edges = np.linspace(first, max(last, first + 1), count + 1)
    length = np.diff(edges)
    parts = []
    for phase, rows in calls.groupby(calls["phase"].astype(str), sort=True):
        done = np.zeros(count + 1)
        a, b, n = (rows[c].to_numpy(np.float64) for c in ("begin_ns", "done_ns", "n_tokens"))
        # Tokens done at each edge: a call's part of it that lies before.
        for at, edge in enumerate(edges):
            done[at] = (np.clip((edge - a) / np.maximum(b - a, 1), 0, 1) * n).sum()
        parts.append(
            pd.DataFrame(
                {
                    "phase": phase,
                    "at_ns": (edges[:-1] - first).round().astype(np.int64),
                    "length_ns": length.round().astype(np.int64),
                    "tokens": np.diff(done),
                    "per_s": np.diff(done) * 1e9 / length,
                }
            )
        )
    columns = (
        Column("phase", "phase", "text", "Phase of the calls."),
        Column("at_ns", "from", "ns", "Begin of the slice, since the first call's."),
        Column("length_ns", "length", "ns", "Of the slice.", detail=True),
        Column("tokens", "tokens", "number", "Tokens that calls computed in it."),
        Column("per_s", "rate", "per_s", "Of these, a second of the slice."),
    )
    names = [c.name for c in columns]
    frame = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=names)
    found = notes.of(trace, selection)
    return Result("throughput", "Throughput", selection.description, columns, frame[names], found)
