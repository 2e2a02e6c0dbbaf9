"""Layer 5: operator rows as tables, without a copy. Must not import the analyses or above."""

from __future__ import annotations

import pandas as pd

from profinfer.model.oprows import Rows, Walls


def rows_table(rows: Rows) -> pd.DataFrame:
    """One row per node and thread; compute is end - begin, wait is release - end."""
    return pd.DataFrame(
        {
            "graph_id": rows.graph,
            "node_id": rows.node,
            "fused": rows.fused,
            "tid": rows.tid,
            "begin_ns": rows.begin,
            "end_ns": rows.end,
            "release_ns": rows.release,
            "complete": rows.complete,
        },
        copy=False,
    )


def walls_table(walls: Walls) -> pd.DataFrame:
    """One row per node of a graph, all threads together, in order of execution."""
    return pd.DataFrame(
        {
            "graph_id": walls.graph,
            "node_id": walls.node,
            "fused": walls.fused,
            "begin_ns": walls.begin,
            "release_ns": walls.release,
            "threads": walls.threads,
            "compute_max": walls.compute_max,
            "compute_sum": walls.compute_sum,
            "wait_sum": walls.wait_sum,
            "complete": walls.complete,
        },
        copy=False,
    )
