"""Layer 7: charts of backends: the same operators in two recordings.

Makes charts of what analyses found; draws nothing. Must not import the command line.
"""

from __future__ import annotations

from typing import Any

from profinfer.analysis.result import Result
from profinfer.render.html.charts import Axis, Rows
from profinfer.units import format_ns, format_things

MOST = 30  # kinds of operator that are drawn


def against(result: Result, key: str, here: str, there: str) -> Rows | None:
    """Time of one operator in both recordings, for each kind and size; None if they share none.

    Args:
        result: of ``comparison.compare``.
        key: name of the chart.
        here: this recording.
        there: the other one.
    """
    whole = len(result.frame)
    frame = result.frame[(result.frame["mean_ns"] > 0) & (result.frame["other_mean_ns"] > 0)]
    frame = frame.head(MOST).sort_values("other_mean_ns", ascending=False, kind="stable")
    if not len(frame):
        return None
    labels, values, tips, said = [], [], [], []
    rows: Any = frame.itertuples()
    for row in rows:
        name = f"{row.op} {row.problem} {row.types}"
        pair = [float(row.mean_ns), float(row.other_mean_ns)]
        gain = (
            f"{format_ns(abs(row.saved_ns))} a call {'saved' if row.saved_ns > 0 else 'lost'}, "
            f"{format_things(row.per_call, 'time')} a call"
        )
        labels.append(name)
        values.append(pair)
        tips.append([
            f"{name}\n{file}, on {backend}: {format_ns(v)}\n{gain}"
            for file, backend, v in zip(
                (here, there), (row.backend, row.other_backend), pair, strict=True
            )
        ])  # fmt: skip
        said.append(f"{row.speedup:.2f} x" + (f" {row.where}" if "/" in row.where else ""))
    about = (
        f"Mean time of one, logarithmic; right: the time in {there} over that in {here}, more than "
        "1 is faster here, and the backends where they differ."
    )
    if len(frame) < whole:
        about += f" {len(frame)} of {whole} kinds of operator: those that save or lose most."
    return Rows(
        key,
        "Operators in both recordings",
        about,
        labels,
        [here, there],
        values,
        Axis("time of one", "ns", log=True),
        [0, 1],
        tips,
        said,
    )
