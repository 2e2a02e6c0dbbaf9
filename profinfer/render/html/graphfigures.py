"""Layer 7: charts of a graph of operators. Draws nothing; must not import the command line."""

from __future__ import annotations

from typing import Any

from profinfer.analysis.result import Result
from profinfer.render.html.charts import Axis, Plot, Series
from profinfer.units import format_ns, format_things

POINTS_MAX = 1500  # steps that are drawn


def widths(result: Result) -> Plot | None:
    """How many operators each step has.

    Args:
        result: of ``dagwidths.steps``.
    """
    every = len(result.frame)
    frame = result.frame.head(POINTS_MAX)
    if every < 3:
        return None
    rows: Any = frame.itertuples()
    tips = [
        f"step {row.step:,}: {format_things(row.width, 'operator')}"
        + (f", {format_ns(row.wall_ns)}" if row.wall_ns == row.wall_ns else "")
        + f"\n{row.which[:120]}"
        for row in rows
    ]
    x, y = frame["step"].tolist(), frame["width"].tolist()
    about = "Operators of one step need nothing of each other: they could run at the same time."
    if len(frame) < every:
        about += f" The first {len(frame):,} of {every:,} steps."
    return Plot(
        "graph-widths",
        "Width of each step",
        about,
        Axis("step", "id", tight=True),
        Axis("operators", "id"),
        [Series("", x, y, "points", 0, tips=tips, size=2.5)],
        near="x",
    )
