"""Layer 5: what went on around the target, as tables: the system's counters, clocks, throttling.

Owns the columns of ``system_counters``, ``frequency`` and ``throttling``; all come from the NOTEs
of the recorder. A note leaves out what is as it was before. Must not import the analyses or above.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd

# Counters of the kernel that count nanoseconds. sysfs, which has the units of others, lacks them.
CLOCKS = ("task-clock", "cpu-clock")
_QUOTA = ("periods", "throttled", "throttled_ns")


def _readings(notes: Iterable[Any], key: str, kind: type) -> list[tuple[int, Any]]:
    """(ns, what was read) of the notes that hold a reading."""
    return [
        (note["ts"], note[key])
        for note in notes
        if note.get("what") == "surroundings"
        and type(note.get("ts")) is int
        and isinstance(note.get(key), kind)
    ]


def system_counters(notes: Iterable[Any], facts: dict[str, Any]) -> pd.DataFrame:
    """One row per counter and reading: its growth since the first one, as ``unit``.

    Counts of counters that took turns are scaled by enabled / running, as perf(1) does; the part of
    the time that one was counted is in ``running``.
    """
    listed = [c for c in facts.get("counters") or () if isinstance(c, dict)]
    told = [
        (ts, values)
        for ts, values in _readings(notes, "counters", list)
        if len(values) == len(listed) and all(_whole(v) for v in values)
    ]
    table = np.array([v for _, v in told], np.float64).reshape(len(told), len(listed), 3)
    grown = table - table[:1]
    value, on, ran = np.moveaxis(grown, 2, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        running = np.where(on > 0, ran / on, 1.0)
        value = np.where(running > 0, value / running, np.nan)
    scale = np.array([float(c.get("scale") or 1) for c in listed])
    names = [str(c.get("name")) for c in listed]
    n = len(told)
    return pd.DataFrame(
        {
            "ts_ns": np.repeat(np.array([ts for ts, _ in told], np.int64), len(listed)),
            "name": pd.Categorical(names * n, categories=list(dict.fromkeys(names))),
            "value": (value * scale).reshape(-1),
            "unit": [str(c.get("unit") or unit_of(str(c.get("name")))) for c in listed] * n,
            "running": np.minimum(running, 1.0).reshape(-1),
        }
    )


def unit_of(name: str) -> str:
    """``ns`` for clocks such as ``system:task-clock:u``, "" for events."""
    return "ns" if name.removeprefix("system:").partition(":")[0] in CLOCKS else ""


def _whole(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(type(v) is int for v in value)


def frequency(notes: Iterable[Any]) -> pd.DataFrame:
    """One row per CPU and change of its clock; it holds until the CPU's next row."""
    rows = [
        (ts, int(cpu), khz)
        for ts, clocks in _readings(notes, "khz", dict)
        for cpu, khz in clocks.items()
        if cpu.isdigit() and type(khz) is int
    ]
    table = np.array(rows, np.int64).reshape(-1, 3)
    return pd.DataFrame(
        {"ts_ns": table[:, 0], "cpu": table[:, 1].astype(np.int32), "khz": table[:, 2]}
    )


def throttling(notes: Iterable[Any]) -> pd.DataFrame:
    """One row per reading that found the cgroup throttled anew; the first one is where it began."""
    rows = [
        (ts, *(counts[name] for name in _QUOTA))
        for ts, counts in _readings(notes, "quota", dict)
        if all(type(counts.get(name)) is int for name in _QUOTA)
    ]
    return pd.DataFrame(
        np.array(rows, np.int64).reshape(-1, 4), columns=["ts_ns", *(f"{n}" for n in _QUOTA)]
    )
