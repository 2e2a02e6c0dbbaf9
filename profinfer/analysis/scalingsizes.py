"""Layer 6: with more threads: the time of each size of operator, and what counters counted.

Owns the tables behind the charts of ``profinfer scaling``. Must not import rich or anything above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from profinfer.analysis import shapes
from profinfer.analysis.counters import counters
from profinfer.analysis.matmuls import medians
from profinfer.analysis.result import Column, Note, Result
from profinfer.analysis.scaling import Run, losses_of, scope_of
from profinfer.analysis.work import executed
from profinfer.model.trace import Trace

_KEYS = ["role", "op", "problem", "types"]
_THREADS = Column("threads", "threads", "id", "Threads that computed.")
_SIZES = (
    Column("role", "role", "text", "Part that the operator plays in the transformer."),
    Column("op", "operator", "text", "Operator type."),
    Column("problem", "shape", "text", "MxKxN of a matrix product, else the output."),
    Column("types", "type", "text", "Type of the weights, else of itself."),
    _THREADS,
    Column("moved", "bytes", "bytes", "Bytes that one execution reads and writes."),
    Column("median_ns", "median", "ns", "Time of one execution, median."),
    Column("calls", "calls", "count", "How often it ran.", detail=True),
)


def by_size(runs: Sequence[Run]) -> Result:
    """One row per role, size, type and number of threads: bytes and time of one execution.

    Bytes are those of counters that count them, where each trace has such; else the least that the
    operator needs. Of several traces with the same number of threads the median counts.
    """
    counted = all(_moving(r.trace) for r in runs)
    parts = [_sizes(r, counted).assign(threads=r.threads) for r in runs]
    frame = pd.concat(parts, ignore_index=True)
    frame = frame.groupby([*_KEYS, "threads"], sort=True).agg(
        moved=("moved", "median"), median_ns=("median_ns", "median"), calls=("calls", "sum")
    )
    frame = frame.reset_index()
    last = (frame["median_ns"] * frame["calls"]).groupby([frame[k] for k in _KEYS]).transform("sum")
    frame = frame.assign(last=last).sort_values(
        ["last", *_KEYS, "threads"], ascending=[False, *[True] * 5], kind="stable"
    )
    said = "counted by counters" if counted else "the least that an operator reads and writes"
    return Result(
        "scaling_by_size",
        "Threads by size of operator",
        scope_of(runs),
        _SIZES,
        frame[[c.name for c in _SIZES]].reset_index(drop=True),
        (Note("info", f"bytes are {said}"), *losses_of(runs)),
    )


def _moving(trace: Trace) -> bool:
    return any(c.bytes for c in trace.meta.plan.counters)


def _sizes(run: Run, counted: bool) -> pd.DataFrame:
    """Bytes and median time of one execution of each kind of operator of one trace."""
    trace, selection = run.trace, run.selection
    nodes = shapes.with_problem(trace.nodes)
    sums = trace.sums(selection)
    moved = _counted(run) if counted else executed(trace, selection).moved
    use = (sums.calls > 0) & (sums.covered == 0) & np.isfinite(moved)
    frame = nodes[_KEYS].astype(str).assign(moved=moved, calls=sums.calls)[use]
    out: pd.DataFrame = frame.groupby(_KEYS, sort=True).sum().reset_index()
    out["moved"] /= out["calls"]
    out["median_ns"] = medians(trace, selection, frame[_KEYS], out[_KEYS])
    return out


def _counted(run: Run) -> np.ndarray:
    """Bytes that counters saw moving, by node."""
    trace = run.trace
    rows = run.selection.rows(trace.ops)
    node, values = rows["node_id"].to_numpy(), trace.counted.values[rows.index.to_numpy()]
    moved = np.zeros(len(trace.nodes))
    for k, counter in enumerate(trace.meta.plan.counters):
        if counter.bytes:
            moved += np.bincount(node, np.nan_to_num(values[:, k]), len(moved)) * counter.bytes
    return np.asarray(moved)


def by_counters(runs: Sequence[Run]) -> Result | None:
    """One row per number of threads and role, counts a token; None if no trace has any.

    Counters that not all traces have are left out. Roles come slowest first, ``all`` before them.
    """
    tables, columns = [], None
    for run in runs:
        if not run.trace.meta.plan.counters:
            return None
        found = counters(run.trace, run.selection, "role")
        mine = {c.name: c for c in found.columns if _compared(c.name)}
        columns = mine if columns is None else {n: c for n, c in columns.items() if n in mine}
        frame = pd.concat(
            [pd.DataFrame([{"role": "all"} | (found.total or {})]), found.frame], ignore_index=True
        )
        sums = [c.name for c in mine.values() if c.name == "wall_ns" or c.unit in _SUMMED]
        frame[sums] = frame[sums].astype(float) / run.selection.n_tokens
        tables.append(frame.assign(threads=run.threads))
    if not columns:
        return None
    names = list(columns)
    frame = pd.concat(tables, ignore_index=True)[["role", "threads", *names]]
    frame = frame.groupby(["role", "threads"], sort=False)[names].median().reset_index()
    slowest = frame.groupby("role")["wall_ns"].transform("max")
    frame = frame.assign(slowest=slowest.where(frame["role"] != "all", np.inf))
    frame = frame.sort_values(["slowest", "role", "threads"], ascending=[False, True, True])
    shown = (
        Column("role", "role", "text", "Part that the operator plays; all for every operator."),
        _THREADS,
        *(
            replace(c, title=f"{c.title}/tok" if c.unit in _SUMMED else c.title)
            for c in columns.values()
        ),
    )
    return Result(
        "scaling_by_counters",
        "Counters by threads",
        scope_of(runs),
        shown,
        frame[[c.name for c in shown]].reset_index(drop=True),
        losses_of(runs),
    )  # fmt: skip


def brief(table: Result) -> Result:
    """Of ``by_counters`` the rows of all operators together."""
    rows = table.frame[table.frame["role"] == "all"].drop(columns="role")
    return replace(table, columns=table.columns[1:], frame=rows.reset_index(drop=True))


_SUMMED = ("ns", "count", "bytes")


def _compared(name: str) -> bool:
    return name not in ("role", "calls") and not name.startswith("mean:")
