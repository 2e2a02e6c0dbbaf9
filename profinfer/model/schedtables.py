"""Layer 5: the scheduler's part of a trace as tables.

Owns the columns of ``sched`` and ``op_sched``. Must not import the analyses or above.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from profinfer.model import schedule as states
from profinfer.model.oprows import Rows
from profinfer.model.opsched import COLUMNS, ON_CPU, OpSched
from profinfer.model.schedule import Schedule
from profinfer.tracefile.reader import TraceReader
from profinfer.tracefile.schema import CNT_LOST, Kind

_COUNTS = ("migrations", "involuntary")


def read(reader: TraceReader, last_ns: int) -> Schedule:
    """The stretches of a trace.

    Args:
        reader: the open file.
        last_ns: last moment of the recording.
    """
    counters, index = reader.counters, reader.records()
    slot = CNT_LOST + Kind.SCHED
    return states.build(
        reader.fixed(Kind.SCHED).rows,
        reader.meta.sched.states,
        (int(index.ts.min()) if len(index) else last_ns, last_ns),
        lost=slot < len(counters) and counters[slot] > 0,
    )


def stretches(schedule: Schedule) -> pd.DataFrame:
    """One row per stretch of a thread's time."""
    names, which = np.unique(schedule.by_name, return_inverse=True)
    decoded = [name.decode("utf-8", "replace") for name in names.tolist()]
    return pd.DataFrame(
        {
            "tid": schedule.tid,
            "begin_ns": schedule.begin,
            "end_ns": schedule.end,
            "state": _named(schedule.state, states.STATES),
            "reason": _named(schedule.reason, states.REASONS),
            "cpu": schedule.cpu,
            "by_tid": schedule.by,
            "by_pid": schedule.by_tgid,
            "by_prio": schedule.by_prio,
            "by_name": np.array(decoded, object)[which] if decoded else [],
            "by_kernel": schedule.by_kernel,
            "migrated": schedule.moved,
        }
    )


def _named(codes: np.ndarray, names: tuple[str, ...]) -> pd.Categorical:
    return pd.Categorical(np.array(names, object)[codes], categories=list(names))


def per_operator(rows: Rows, joined: OpSched) -> pd.DataFrame:
    """One row per row of ``ops``.

    Args:
        rows: the operators; none without scheduler events.
        joined: those of them that something happened to.
    """
    table = {}
    for name in COLUMNS:
        if name in ON_CPU:
            since, until = ON_CPU[name]
            column = getattr(rows, until) - getattr(rows, since)
        else:
            column = np.zeros(len(rows.tid), np.int64)
        column[joined.at] = getattr(joined, name)
        table[name if name in _COUNTS else f"{name}_ns"] = column
    return pd.DataFrame(table, copy=False)
