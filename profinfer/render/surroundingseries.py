"""Layer 7: what the machine did around the target, as series of a timeline.

Owns what they are named: counters of the whole system as rates, clocks, throttling. May import
numpy and pandas; must not import perfetto or the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from profinfer.render.series import Series

if TYPE_CHECKING:
    from profinfer.model.trace import Trace


def of_trace(trace: Trace) -> tuple[Series, ...]:
    """All of them; none of what was not recorded."""
    return (
        *_rates(trace.system_counters),
        *_clocks(trace.frequency),
        *_throttled(trace.throttling),
    )


def _rates(table: pd.DataFrame) -> list[Series]:
    """Growth a second, from each reading to the next; the last one ends it."""
    out = []
    for name in dict.fromkeys(table["name"].astype(str)):
        rows = table[(table["name"] == name).to_numpy()]
        rows = rows[rows["value"].notna().to_numpy()]
        if len(rows) < 2:
            continue
        ts, value = rows["ts_ns"].to_numpy(np.int64), rows["value"].to_numpy(np.float64)
        rate = np.diff(value) * 1e9 / np.maximum(np.diff(ts), 1)
        unit = str(rows["unit"].iloc[0]) or "events"
        out.append(Series(name, f"{unit}/s", ts, np.append(rate, 0.0)))
    return out


def _clocks(table: pd.DataFrame) -> list[Series]:
    out = []
    for cpu in np.unique(table["cpu"].to_numpy()).tolist():
        rows = table[(table["cpu"] == cpu).to_numpy()]
        khz = rows["khz"].to_numpy(np.float64)
        out.append(Series(f"CPU {cpu} clock", "MHz", rows["ts_ns"].to_numpy(np.int64), khz / 1000))
    return out


def _throttled(table: pd.DataFrame) -> list[Series]:
    """Periods in which the quota had stopped the target, since the first reading."""
    if len(table) < 2:
        return []
    ts, times = table["ts_ns"].to_numpy(np.int64), table["throttled"].to_numpy(np.float64)
    return [Series("throttled by the quota, so far", "periods", ts, times - times[0])]
