"""Layer 6: operators' times without what the probe itself cost them.

Must not import rich or anything above.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from profinfer.analysis.result import Column, Note, Result
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace

CORRECTED = Column(
    "corrected_ns", "corrected", "ns", "Time without what the probes cost, at least 0.", like="time"
)
SHARE = Column("corrected_share", "share", "ratio", "Part of the corrected time.", bar=True)
PER_TOKEN = Column(
    "corrected_per_token_ns", "per token", "ns", "Corrected time / tokens.", like="token"
)
# What they stand for, or there is no room for beside them.
_REPLACED = ("share", "per_token_ns", "compute_ns", "wait_ns", "wait_share")


def probe_cost_ns(trace: Trace) -> int | None:
    """What probes add to the time of one operator, None if the trace does not tell.

    Every thread is hit once in an operator (twice in mode "pair"), at the same time as the
    others; the operator and the wait in its barrier last as much longer.
    """
    hit_ns = trace.meta.plan.ops.extra.get("hit_ns")
    if not isinstance(hit_ns, int):
        return None
    return hit_ns * (2 if trace.meta.plan.ops.mode == "pair" else 1)


def corrected(result: Result, trace: Trace, selection: Selection) -> Result:
    """An operator view with its time, raw and corrected side by side.

    Args:
        result: with the columns wall_ns and calls; its total, if any, too.
        trace: of the view; it must tell what a probe costs.
        selection: of the view.
    """
    cost = probe_cost_ns(trace)
    assert cost is not None
    frame = result.frame
    sums = trace.sums(selection)
    whole = int(np.maximum(sums.wall - sums.calls * cost, 0).sum())
    tokens = selection.n_tokens

    less = np.maximum(frame["wall_ns"] - frame["calls"] * cost, 0)
    frame = frame.assign(
        corrected_ns=less,
        corrected_share=less / whole if whole else np.nan,
        corrected_per_token_ns=less / tokens if tokens else np.nan,
    )
    kept = [c for c in result.columns if c.name not in _REPLACED]
    at = next(i for i, c in enumerate(kept) if c.name == "wall_ns")
    kept[at] = replace(kept[at], like="time")
    columns = (*kept[: at + 1], CORRECTED, SHARE, PER_TOKEN, *kept[at + 1 :])
    total = result.total
    if total is not None:
        total = {
            **total,
            "corrected_ns": whole,
            "corrected_share": 1.0 if whole else None,
            "corrected_per_token_ns": whole / tokens if tokens else None,
        }
    text = (
        f"corrected: {cost / 1e3:.2f} µs less for each operator that ran, which is what its probes "
        "were measured to cost"
    )
    return replace(
        result,
        columns=columns,
        frame=frame[[c.name for c in columns]],
        notes=(*result.notes, Note("info", text)),
        total=total,
    )
