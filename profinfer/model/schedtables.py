"""Layer 5: the scheduler's part of a trace as tables.

Owns the columns of ``sched`` and ``op_sched``. Must not import the analyses or above.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from profinfer.model import schedule as states
from profinfer.model.opsched import OpSched
from profinfer.model.schedule import Schedule
from profinfer.tracefile.reader import TraceReader
from profinfer.tracefile.schema import CNT_LOST, Kind

_COUNTS = ("migrations", "involuntary")
_TIMES = tuple(name for name in OpSched.__annotations__ if name not in _COUNTS)


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


def per_operator(joined: OpSched | None) -> pd.DataFrame:
    """One row per row of ``ops``; none without scheduler events."""
    if joined is None:
        joined = OpSched(*(np.zeros(0, np.int64) for _ in OpSched.__annotations__))
    times = {f"{name}_ns": getattr(joined, name) for name in _TIMES}
    return pd.DataFrame(times | {name: getattr(joined, name) for name in _COUNTS}, copy=False)
