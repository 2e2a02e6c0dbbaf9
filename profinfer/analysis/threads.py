"""Layer 6: what each thread did: computing, waiting, neither.

Must not import rich or anything above.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from profinfer.analysis import notes
from profinfer.analysis.result import Column, Note, Result
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace

COLUMNS = (
    Column("thread", "thread", "text", "Name of the thread."),
    Column("tid", "tid", "id", "Thread id."),
    Column("ops", "operators", "count", "Operators that it took part in."),
    Column("compute_ns", "compute", "ns", "Computing."),
    Column("wait_ns", "wait", "ns", "Waiting in barriers for other threads."),
    Column("gap_ns", "gap", "ns", "In the graphs, but in no operator: starting and leaving."),
    Column("wait_share", "wait", "ratio", "Waiting as a part of computing and waiting."),
    Column("share", "share", "ratio", "Part of all threads' computing.", bar=True),
)


def threads(trace: Trace, selection: Selection) -> Result:
    """One row per thread that computed in the selection."""
    ops = selection.rows(trace.ops)
    tid = ops["tid"].to_numpy()
    whole = ops["complete"].to_numpy()
    ids, at = np.unique(tid, return_inverse=True)
    end = ops["end_ns"].to_numpy()
    compute, wait = (np.zeros(len(ids), np.int64) for _ in range(2))
    np.add.at(compute, at[whole], (end - ops["begin_ns"].to_numpy())[whole])
    np.add.at(wait, at[whole], (ops["release_ns"].to_numpy() - end)[whole])
    frame = pd.DataFrame({"tid": ids, "ops": np.bincount(at, minlength=len(ids))})
    names = dict(zip(trace.threads["tid"], trace.threads["name"], strict=True))
    frame["thread"] = [names.get(t, "") or f"thread {t}" for t in ids.tolist()]
    frame["compute_ns"], frame["wait_ns"] = compute, wait
    gap = np.zeros(len(ids), np.int64)
    if not selection.narrowed:
        pairs = np.unique(ops["graph_id"].to_numpy().astype(np.int64) << 32 | at)
        length = (trace.graphs["end_ns"] - trace.graphs["begin_ns"]).to_numpy()
        np.add.at(gap, pairs & 0xFFFFFFFF, length[pairs >> 32])
        spent = np.zeros(len(ids), np.int64)
        np.add.at(spent, at, ops["release_ns"].to_numpy() - ops["begin_ns"].to_numpy())
        gap -= spent
    frame["gap_ns"] = pd.Series(gap, dtype="Int64")
    if selection.narrowed:
        frame["gap_ns"] = pd.NA
    both = frame["compute_ns"] + frame["wait_ns"]
    frame["wait_share"] = (frame["wait_ns"] / both).where(both > 0)
    busy = int(compute.sum())
    frame["share"] = frame["compute_ns"] / busy if busy else np.nan
    walls = selection.rows(trace.op_walls)
    walls = walls[walls["complete"].to_numpy()]
    extra: list[Note] = []
    wall = int((walls["release_ns"] - walls["begin_ns"]).sum())
    if wall and len(ids) > 1:
        mean = int((walls["compute_sum"] // walls["threads"]).sum())
        lost = 100 * (int(walls["compute_max"].sum()) - mean) / wall
        text = f"imbalance: the slowest thread of each operator costs {lost:.1f} % of its time"
        extra.append(Note("info", text))
    total = {
        "ops": len(ops),
        "compute_ns": busy,
        "wait_ns": int(wait.sum()),
        "gap_ns": None if selection.narrowed else int(gap.sum()),
        "wait_share": int(wait.sum()) / int(both.sum()) if both.sum() else None,
        "share": 1.0 if busy else None,
    }
    return Result(
        "threads",
        "Threads",
        selection.description,
        COLUMNS,
        frame[[c.name for c in COLUMNS]],
        (*notes.of(trace, selection), *extra),
        total,
    )
