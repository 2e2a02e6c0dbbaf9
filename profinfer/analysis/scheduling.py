"""Layer 6: what the scheduler did to the selected operators, thread by thread.

Must not import rich or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.analysis import notes
from profinfer.analysis.result import Column, Note, Result
from profinfer.model.opsched import ON_CPU
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace

I64 = npt.NDArray[np.int64]
SUMMED = (
    "running_ns", "runnable_ns", "behind_own_ns", "behind_other_ns", "blocked_ns",
    "compute_running_ns", "spinning_ns", "migrations", "involuntary",
)  # fmt: skip
# Of a thread's operators' time, this much may be of unknown state before a view says so.
_UNKNOWN_MIN = 0.001
_NICE_0 = 120  # kernel priority of nice 0

STATE_COLUMNS = (
    Column("on_cpu", "on CPU", "ratio", "Part of the operators' time that it was on a CPU."),
    Column("runnable", "runnable", "ratio", "Part of it that it wanted to run and had no CPU."),
    Column("blocked", "blocked", "ratio", "Part of it that it slept."),
    Column("migrations", "moved", "count", "Times it went on on another CPU."),
    Column("involuntary", "forced", "count", "Times it lost its CPU while it wanted to run."),
)
# The same of an operator, for which there is room on a wide terminal alone.
OPERATOR_STATES = tuple(
    replace(column, description=text, detail=True)
    for column, text in zip(
        STATE_COLUMNS,
        (
            "Part of its threads' time, from begin to release, on a CPU.",
            "Part of it that they wanted to run and had no CPU.",
            "Part of it that they slept.",
            "Times a thread went on on another CPU.",
            "Times a thread lost its CPU while it wanted to run.",
        ),
        strict=True,
    )
)

COLUMNS = (
    Column("thread", "thread", "text", "Name of the thread."),
    Column("tid", "tid", "id", "Thread id."),
    STATE_COLUMNS[0],
    Column("spinning", "spin", "ratio", "Part of it that it was on a CPU in a barrier."),
    *STATE_COLUMNS[1:],
    Column("taken_by", "CPU taken by", "text", "Who was given its CPU for the longest time."),
)


def per_thread(trace: Trace, selection: Selection) -> pd.DataFrame:
    """Sums over the selected operators by tid: op_ns and what became of it, ns and counts.

    Torn operators are left out, as they are of compute and wait.
    """
    sums = trace.thread_sums(selection)
    rows = _disturbed(trace, selection)
    at = np.searchsorted(sums.tids, trace.disturbed.rows.tid[rows])
    return _summed(trace, rows, at, sums.time, sums.compute, pd.Index(sums.tids, name="tid"))


def per_node(trace: Trace, selection: Selection) -> pd.DataFrame:
    """The same sums by node_id, a row for each of the nodes table, all threads together."""
    sums = trace.sums(selection)
    rows = _disturbed(trace, selection)
    node = trace.disturbed.rows.node[rows]
    return _summed(trace, rows, node, sums.thread_time, sums.thread_compute, trace.nodes.index)


def _disturbed(trace: Trace, selection: Selection) -> I64:
    """Rows of ``Trace.disturbed`` that are selected and not torn."""
    rows = trace.disturbed.rows
    return np.flatnonzero(selection.of_rows(rows) & rows.complete)


def _summed(
    trace: Trace, rows: I64, at: npt.NDArray[np.integer], op: I64, compute: I64, index: pd.Index
) -> pd.DataFrame:
    """Sums by place in ``index``: all operators were on a CPU, but for the disturbed ones.

    Args:
        trace: the trace.
        rows: the chosen ones of ``Trace.disturbed``.
        at: place of each of them in ``index``.
        op: time from begin to release of all operators, by place.
        compute: time from begin to end, likewise.
        index: of the table.
    """
    told = trace.disturbed
    moments = {c: getattr(told.rows, c)[rows] for c in ("begin", "end", "release")}

    def summed(values: I64) -> I64:
        return np.bincount(at, values, len(index)).astype(np.int64)

    whole = {"running": op, "compute_running": compute, "spinning": op - compute}
    columns = {"op_ns": op, "compute_ns": compute}
    for name in SUMMED:
        column = name.removesuffix("_ns")
        values = getattr(told, column)[rows]
        if column in ON_CPU:
            since, until = ON_CPU[column]
            columns[name] = whole[column] - summed(moments[until] - moments[since] - values)
        else:
            columns[name] = summed(values)
    return pd.DataFrame(columns, index=index)


def shares(sums: pd.DataFrame) -> pd.DataFrame:
    """The columns of ``STATE_COLUMNS`` and spinning, from ``per_thread``, by tid."""
    whole = sums["op_ns"].where(sums["op_ns"] > 0)
    return pd.DataFrame(
        {
            "on_cpu": sums["running_ns"] / whole,
            "spinning": sums["spinning_ns"] / whole,
            "runnable": sums["runnable_ns"] / whole,
            "blocked": sums["blocked_ns"] / whole,
            "migrations": sums["migrations"],
            "involuntary": sums["involuntary"],
        }
    )


def whole_shares(sums: pd.DataFrame) -> dict[str, float | int | None]:
    """``shares`` of all rows together."""
    row = shares(sums.sum().to_frame().T).iloc[0]
    out = {str(k): None if pd.isna(v) else float(v) for k, v in row.items()}
    return out | {name: int(sums[name].sum()) for name in ("migrations", "involuntary")}


def unknown(sums: pd.DataFrame) -> list[Note]:
    """Say how much of the operators' time is of unknown state."""
    whole = int(sums["op_ns"].sum())
    left = whole - int(sums[["running_ns", "runnable_ns", "blocked_ns"]].to_numpy().sum())
    if not whole or left / whole < _UNKNOWN_MIN:
        return []
    text = (
        f"{100 * left / whole:.1f} % of the operators' time is of unknown state: the kernel did "
        "not tell of every switch"
    )
    return [Note("info", text)]


def thread_states(trace: Trace, selection: Selection, found: tuple[Note, ...] = ()) -> Result:
    """One row per thread: running, waiting for a CPU, asleep, and who took its CPU.

    Args:
        trace: with scheduler events.
        selection: which operators.
        found: findings to show below.
    """
    sums = per_thread(trace, selection)
    frame = shares(sums).reset_index()
    names = dict(zip(trace.threads["tid"], trace.threads["name"], strict=True))
    frame["thread"] = [names.get(t, "") or f"thread {t}" for t in frame["tid"].tolist()]
    takers = _takers(trace)
    frame["taken_by"] = [takers.get(t, "") for t in frame["tid"].tolist()]
    return Result(
        "thread_states",
        "Thread states",
        selection.description,
        COLUMNS,
        frame[[c.name for c in COLUMNS]],
        (*notes.of(trace, selection), *unknown(sums), *found),
        whole_shares(sums),
    )


@dataclass(frozen=True)
class Displacer:
    """Who drove a thread from a CPU.

    Attributes:
        name: of the process.
        about: its id and priority.
        cpu: the CPU.
    """

    name: str
    about: str
    cpu: int


def displacer(trace: Trace) -> Displacer | None:
    """The other process after which a thread stayed longest on another CPU than it had."""
    sched = trace.sched
    moved = sched["migrated"].to_numpy()
    foreign = (sched["by_tid"] > 0).to_numpy() & (sched["by_pid"] != trace.schedule.own).to_numpy()
    at = np.flatnonzero(foreign[:-1] & moved[1:]) + 1  # the stretch on the other CPU
    if not len(at):
        return None
    tid, begin, end = (sched[c].to_numpy() for c in ("tid", "begin_ns", "end_ns"))
    # It stays until it is moved again, or its last stretch ends.
    ends = np.flatnonzero(np.r_[moved[1:], True] | np.r_[tid[1:] != tid[:-1], True])
    stay = end[ends[np.searchsorted(ends, at)]] - begin[at]
    row = sched.iloc[int(at[stay.argmax()]) - 1]
    who = last_known(trace, int(row["by_pid"]))
    about = f"pid {row['by_pid']}, {priority(int(who['by_prio']))}"
    return Displacer(str(who["by_name"]), about, int(row["cpu"]))


def last_known(trace: Trace, pid: int) -> pd.Series:
    """The last stretch after which a process was given a CPU.

    Its name and priority are from then: a process that was just forked has those of its parent
    until it executes its program, and until it or another one sets its priority.
    """
    theirs = trace.sched[(trace.sched["by_pid"] == pid).to_numpy()]
    return theirs.iloc[int(theirs["begin_ns"].to_numpy().argmax())]


def priority(prio: int) -> str:
    """A kernel priority as people know it."""
    return f"nice {prio - _NICE_0}" if prio >= 100 else f"real-time priority {99 - prio}"


def _takers(trace: Trace) -> dict[int, str]:
    """Thread -> name of who was given its CPU for the longest time, over the recording."""
    sched = trace.sched[trace.sched["by_tid"].to_numpy() >= 0]
    if not len(sched):
        return {}
    own = trace.schedule.own
    who = sched["by_name"].where(sched["by_pid"] != own, "own threads")
    who = who.where(sched["by_tid"] != 0, "nobody (idle)")
    length = (sched["end_ns"] - sched["begin_ns"]).groupby([sched["tid"], who]).sum()
    best = length.groupby(level=0).idxmax()
    return {int(tid): str(name) for tid, name in best.tolist()}
