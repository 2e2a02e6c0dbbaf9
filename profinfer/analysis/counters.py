"""Layer 6: what counters counted, by operator, role, layer, node or shape.

Sums over all threads, and what follows from them: instructions a cycle, stalled cycles, bytes
moved, time on a CPU. Must not import rich or anything above.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.analysis import notes, shapes
from profinfer.analysis.operators import in_layer_order
from profinfer.analysis.result import Column, Note, Result
from profinfer.analysis.roofline import KEYS, TITLES
from profinfer.model.selection import Selection
from profinfer.model.surroundings import CLOCKS, unit_of
from profinfer.model.trace import Trace

F64 = npt.NDArray[np.float64]

# Where a column's title has to be short.
_SHORT = {
    "page-faults": "faults",
    "minor-faults": "minor",
    "major-faults": "major",
    "context-switches": "switches",
    "cpu-migrations": "migrations",
    "instructions": "instr.",
    "stalled-cycles-backend": "stalled be",
    "stalled-cycles-frontend": "stalled fe",
}
_TIME = Column("wall_ns", "time", "ns", "From the release of the operator before to its own.")
_CALLS = Column("calls", "calls", "count", "How often it ran.")
_IPC = Column("ipc", "IPC", "per_cycle", "Instructions / cycles.")
_ON_CPU = Column("on_cpu", "on CPU", "ratio", "Task-clock / time of its threads.")
_STALLED = Column("stalled", "stalled", "ratio", "Cycles without progress / cycles.")


def counters(trace: Trace, selection: Selection, by: str, top: int | None = None) -> Result:
    """Counts and what follows from them.

    Args:
        trace: recorded with counters.
        selection: the part of it.
        by: one of ``KEYS``.
        top: rows, slowest first; None for all.
    """
    names = [counter.name for counter in trace.meta.plan.counters]
    per_node, missing = _per_node(trace, selection, names)
    keys = KEYS[by]
    nodes = shapes.with_problem(trace.nodes) if "problem" in keys else trace.nodes
    frame = pd.concat([nodes[keys], per_node], axis=1)[per_node["calls"] > 0]
    out = frame.groupby(keys, observed=True, sort=True)[list(per_node)].sum().reset_index()
    out = out.sort_values("wall_ns", ascending=False, kind="stable").reset_index(drop=True)
    rows = len(out)
    whole = frame[list(per_node)].sum().to_frame().T
    if by == "layer":
        out = in_layer_order(out)
    out = out.head(top) if top else out
    derived = [column for part in (out, whole) for column in _derive(part, trace)]
    derived = derived[: len(derived) // 2]
    columns = [*(TITLES[key] for key in keys), _TIME, _CALLS]
    hidden = ("problem", "types") if by == "node" else ()
    columns = [replace(c, detail=True) if c.name in hidden else c for c in columns]
    said = {c.name for c in derived}
    columns += [_column(c.name, bool(c.bytes), said) for c in trace.meta.plan.counters] + derived
    columns += [_mean(name) for name in names]
    extra = _said(trace, names, missing)
    extra += notes.cut(len(out), rows)
    total = {str(k): None if pd.isna(v) else v for k, v in whole.iloc[0].items()}
    return Result(
        f"counters_by_{by}",
        f"Counters by {by}",
        selection.description,
        tuple(columns),
        out[[c.name for c in columns]].astype(dict.fromkeys(keys, str)).reset_index(drop=True),
        (*notes.of(trace, selection), *notes.elsewhere(trace, selection), *extra),
        None if len(out) < rows else total,
    )


def not_counted(trace: Trace) -> list[str]:
    """Names of counters that were asked for, and that the machine did not count."""
    asked = trace.meta.options.get("counters")
    counted = {counter.name for counter in trace.meta.plan.counters}
    counted |= set(trace.system_counters["name"].cat.categories)
    return [str(n) for n in asked if n not in counted] if isinstance(asked, list) else []


def about(trace: Trace) -> list[Note]:
    """That there are counts, and where; and what was asked for in vain."""
    out = []
    names = [counter.name for counter in trace.meta.plan.counters]
    around = list(trace.system_counters["name"].cat.categories)
    if names or around:
        parts = [f"at operators {', '.join(names)}"] if names else []
        parts += [f"of the whole machine {', '.join(around)}"] if around else []
        out.append(Note("info", f"counted {'; '.join(parts)}: report TRACE --counters"))
    if gone := not_counted(trace):
        out.append(Note("warning", f"not counted, this machine refused: {', '.join(gone)}"))
    return out


def means(trace: Trace, graphs: npt.NDArray[np.bool_] | None = None) -> pd.DataFrame:
    """Counts of an execution by node, all threads, mean over those that ran; NaN if none did.

    Args:
        trace: recorded with counters.
        graphs: which graphs' executions count; None for all.
    """
    n = len(trace.nodes)
    walls, ops, values = trace.op_walls, trace.ops, np.nan_to_num(trace.counted.values)
    if graphs is not None:
        walls = walls[graphs[walls["graph_id"].to_numpy()]]
        kept = graphs[ops["graph_id"].to_numpy()]
        ops, values = ops[kept], values[kept]
    runs = np.bincount(walls["node_id"].to_numpy(), minlength=n).astype(np.float64)
    runs[runs == 0] = np.nan
    node = ops["node_id"].to_numpy()
    names = [counter.name for counter in trace.meta.plan.counters]
    return pd.DataFrame(
        {name: np.bincount(node, values[:, k], n) / runs for k, name in enumerate(names)},
        index=trace.nodes.index,
    )


def _per_node(
    trace: Trace, selection: Selection, names: list[str]
) -> tuple[pd.DataFrame, npt.NDArray[np.float64]]:
    """Sums over executions and threads by node, and the part of operators without each count."""
    sums = trace.sums(selection)
    n = len(sums.calls)
    rows = selection.rows(trace.ops)
    node = rows["node_id"].to_numpy()
    at = rows.index.to_numpy()
    values, since = trace.counted.values[at], trace.counted.since_ns[at]
    passed = np.where(since >= 0, rows["end_ns"].to_numpy() - since, 0).astype(np.float64)
    table: dict[str, Any] = {
        "wall_ns": sums.wall,
        "calls": sums.calls,
        "threads_ns": np.bincount(node, passed, n),
    }
    for k, name in enumerate(names):
        table[name] = np.bincount(node, np.nan_to_num(values[:, k]), n)
    missing = np.isnan(values).mean(axis=0) if len(values) else np.zeros(len(names))
    return pd.DataFrame(table), missing


def _derive(out: pd.DataFrame, trace: Trace) -> list[Column]:
    """Add what follows from the counts that are there; returns its columns."""
    columns: list[Column] = []

    def add(column: Column, over: pd.Series, under: pd.Series) -> None:
        out[column.name] = over / under.where(under > 0)
        columns.append(column)

    base = {c.name.partition(":")[0]: c.name for c in trace.meta.plan.counters}
    cycles = base.get("cycles", base.get("cpu-cycles"))
    if cycles and "instructions" in base:
        add(_IPC, out[base["instructions"]], out[cycles])
    stalled = base.get("stalled-cycles-backend", base.get("stalled-cycles-frontend"))
    if cycles and stalled:
        add(_STALLED, out[stalled], out[cycles])
    if "task-clock" in base:
        add(_ON_CPU, out[base["task-clock"]], out["threads_ns"])
    for direction in ("read", "write"):
        moving = [c for c in trace.meta.plan.counters if c.bytes and c.direction == direction]
        if not moving:
            continue
        done = "written" if direction == "write" else "read"
        out[f"{done}_bytes"] = sum(out[c.name] * (c.bytes or 0) for c in moving)
        what = " + ".join(f"{c.name} x {c.bytes} B" for c in moving)
        columns.append(Column(f"{done}_bytes", done, "bytes", f"{what}."))
        rate = Column(f"{done}_per_s", f"{done}/s", "bytes_per_s", f"{what}, / time.")
        add(rate, out[f"{done}_bytes"] * 1e9, out["wall_ns"])
    for name in (counter.name for counter in trace.meta.plan.counters):
        out[f"mean:{name}"] = out[name] / out["calls"].where(out["calls"] > 0)
    return columns


def _unit(name: str) -> Any:
    return unit_of(name) or "count"


def _column(name: str, moves: bool, derived: set[str]) -> Column:
    """One count; in detail only, where a column that follows from it says more."""
    plain = name.partition(":")[0]
    detail = plain in CLOCKS or moves
    detail |= "ipc" in derived and plain in ("cycles", "cpu-cycles", "instructions")
    detail |= "stalled" in derived and plain.startswith("stalled")
    text = f"{name}, all threads."
    return Column(name, _SHORT.get(name, name), _unit(name), text, detail=detail)


def _mean(name: str) -> Column:
    text = f"{name}, all threads, an execution."
    return Column(f"mean:{name}", f"{_SHORT.get(name, name)} each", _unit(name), text, detail=True)


def _said(trace: Trace, names: list[str], missing: F64) -> list[Note]:
    """What the counts cover, which were estimated, which are not known."""
    out = []
    if trace.meta.plan.ops.mode != "pair":
        out.append(
            Note(
                "info",
                "counts are from a thread's arrival at the barrier before to its arrival at the "
                "operator's own: spinning at the barrier before is in them",
            )
        )
    running = trace.counted.running
    shared = [
        f"{name} {100 * part:.0f} %" for name, part in zip(names, running, strict=True)
        if part < 0.995
    ]  # fmt: skip
    if shared:
        out.append(
            Note(
                "info",
                f"counters took turns, counted during {', '.join(shared)} of the time: scaled up, "
                "so that sums are estimates and single operators mean little",
            )
        )
    gone = [
        f"{name} {100 * part:.2g} %" for name, part in zip(names, missing, strict=True) if part > 0
    ]
    if gone:
        out.append(Note("warning", f"operators without a count, left out: {', '.join(gone)}"))
    kernel = [c.name for c in trace.meta.plan.counters if c.hardware and c.side == "user"]
    if kernel:
        out.append(Note("info", f"of the program alone, without the kernel: {', '.join(kernel)}"))
    return out
