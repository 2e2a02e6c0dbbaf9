"""Layer 6: how decode steps spread, and those that took far longer than their neighbours: why.

Owns the tables of ``report --by outlier``. Must not import rich or anything above.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.analysis import notes
from profinfer.analysis.outlierreasons import Excess, reason
from profinfer.analysis.result import Column, Note, Result
from profinfer.analysis.robust import deviation, level
from profinfer.analysis.steps import Steps, decode_steps
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

# An outlier takes this many standard deviations of the bulk longer than its neighbours ...
DEVIATIONS = 6.0
# ... and this part of their time.
PART_MIN = 0.10
QUANTILES = ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (1.0, "max"))

COLUMNS = (
    Column("call", "call", "id", "Number of the call in the recording.", detail=True),
    Column("position", "position", "id", "Position of its token."),
    Column("step_ns", "token", "ns", "From the end of the decode call before to its own end.",
           like="token"),
    Column("usual_ns", "usual", "ns", "Median of the 51 tokens around it.", like="token",
           detail=True),
    Column("excess_ns", "excess", "ns", "What it took longer than that.", like="token"),
    Column("part", "most in", "text", "Part of its time that is most in excess.",
           detail=True),
    Column("part_ns", "of it", "ns", "Excess of that part.", like="token", detail=True),
    Column("reason", "reason", "text", "Why, as far as the trace tells."),
)  # fmt: skip


def percentiles(trace: Trace, selection: Selection) -> Result:
    """One row per part of a decode step: percentiles over the steps, each part by itself."""
    steps = decode_steps(trace, selection)
    columns = [
        Column("part", "part", "text", "Role of operators, or what else a token's time goes to."),
        Column("mean_ns", "mean", "ns", "Mean over the decode steps.", like="token"),
        Column("share", "share", "ratio", "Part of all decode steps' time.", bar=True),
        *(
            Column(f"{name}_ns", name, "ns", _meaning(q), like="token") for q, name in QUANTILES
        ),
    ]  # fmt: skip
    whole = int(steps.total.sum())
    rows = [_spread(name, steps.time[:, at], whole) for at, name in enumerate(steps.parts) if whole]
    total = {k: v for k, v in _spread("", steps.total, whole).items() if k != "part"}
    extra = [Note("info", "percentiles do not add up: each part has its own slow tokens")]
    return Result(
        "token_percentiles",
        "Spread of tokens",
        selection.description,
        tuple(columns),
        pd.DataFrame(rows, columns=[c.name for c in columns]),
        (*notes.of(trace, selection), *extra),
        total if whole else None,
    )


def _meaning(q: float) -> str:
    return "The longest." if q == 1.0 else f"{100 * q:.0f} % of the tokens take no longer."


def _spread(name: str, values: I64, whole: int) -> dict[str, object]:
    ordered = np.sort(values)
    row: dict[str, object] = {
        "part": name,
        "mean_ns": float(values.mean()) if len(values) else np.nan,
        "share": int(values.sum()) / whole if whole else np.nan,
    }
    for q, title in QUANTILES:
        at = max(int(np.ceil(q * len(values))) - 1, 0)
        row[f"{title}_ns"] = int(ordered[at]) if len(values) else None
    return row


def found(steps: Steps) -> tuple[I64, F64]:
    """Rows of the outliers among the steps, slowest excess first; the usual time of every step."""
    usual = level(steps.total.astype(np.float64))
    excess = steps.total - usual
    least = np.maximum(DEVIATIONS * deviation(excess), PART_MIN * usual)
    rows = np.flatnonzero(excess > least)
    return rows[np.argsort(-excess[rows], kind="stable")].astype(np.int64), usual


def outliers(trace: Trace, selection: Selection, top: int | None = None) -> Result:
    """One row per decode step that took far longer than those around it, with the reason."""
    steps = decode_steps(trace, selection)
    every, usual = found(steps)
    shown = every[:top] if top else every
    own = np.column_stack([level(steps.time[:, i].astype(np.float64))
                           for i in range(len(steps.parts))]) if len(every) else None  # fmt: skip
    rows = []
    for at in shown.tolist():
        assert own is not None
        beyond = steps.time[at] - own[at]
        part = int(beyond.argmax())
        excess = float(steps.total[at] - usual[at])
        rows.append({
            "call": int(steps.call[at]),
            "position": int(steps.position[at]),
            "step_ns": int(steps.total[at]),
            "usual_ns": float(usual[at]),
            "excess_ns": excess,
            "part": steps.parts[part],
            "part_ns": float(beyond[part]),
            "reason": reason(trace, steps, Excess(at, part, excess, float(beyond[part]))),
        })  # fmt: skip
    time = float((steps.total[every] - usual[every]).sum())
    whole = int(steps.total.sum())
    n = len(steps.call)
    text = (
        f"{len(every):,} of {n:,} tokens are outliers: {DEVIATIONS:.0f} deviations and "
        f"{100 * PART_MIN:.0f} % above the median of their neighbours"
    )
    if len(every):
        text += f"; together {100 * time / whole:.1f} % of the time"
    return Result(
        "outliers",
        "Slow tokens",
        selection.description,
        COLUMNS,
        pd.DataFrame(rows, columns=[c.name for c in COLUMNS]),
        (*notes.of(trace, selection), Note("info", text), *notes.cut(len(shown), len(every))),
    )
