"""Layer 6: how wide a graph is, step by step: how many operators need nothing of each other.

Must not import rich or anything above.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from profinfer.analysis.opgraph import OpGraph
from profinfer.analysis.result import Column, Result

_TIME = Column("wall_ns", "time", "ns", "Of the operators, mean of an execution.")


def steps(graph: OpGraph) -> Result:
    """One row per step: its operators, and their times."""
    works = graph.works
    wall = graph.nodes["wall_ns"].to_numpy(np.float64)[works]
    frame = pd.DataFrame(
        {
            "step": graph.level[works] + 1,
            "op": graph.nodes["op"].astype(str)[works],
            "wall_ns": wall if graph.timed else np.nan,
        }
    )
    out = frame.groupby("step").agg(
        width=("op", "size"), wall_ns=("wall_ns", "sum"), longest_ns=("wall_ns", "max"),
        which=("op", ", ".join),
    )  # fmt: skip
    if not graph.timed:
        out["wall_ns"] = np.nan
    columns = (
        Column("step", "step", "count", "Longest chain of operators before it, and itself."),
        Column("width", "width", "count", "Operators of this step: none needs another."),
        _TIME,
        Column("longest_ns", "longest", "ns", "Of the one that takes longest."),
        Column("which", "operators", "text", "In the order in which they run."),
    )
    frame = out.reset_index()[[c.name for c in columns]]
    return Result("graph_steps", "Steps", graph.scope, columns, frame)


def widths(graph: OpGraph) -> Result:
    """One row per width: how many steps have it, and what their operators take."""
    every = steps(graph).frame
    out = every.groupby("width").agg(
        steps=("step", "size"), operators=("width", "sum"), wall_ns=("wall_ns", "sum")
    )
    if not graph.timed:
        out["wall_ns"] = np.nan
    whole = float(out["wall_ns"].sum())
    out["share"] = out["wall_ns"] / whole if whole else np.nan
    columns = (
        Column("width", "width", "count", "Operators side by side that do not need each other."),
        Column("steps", "steps", "count", "How many steps are so wide."),
        Column("operators", "operators", "count", "Operators in them."),
        _TIME,
        Column("share", "share", "ratio", "Part of the time of all operators.", bar=True),
    )
    frame = out.reset_index()[[c.name for c in columns]]
    return Result("graph_widths", "Steps by width", graph.scope, columns, frame)
