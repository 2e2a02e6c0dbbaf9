"""Layer 6: what makes a token slower the longer the KV cache is, and where it jumps.

Owns the tables of ``report --by position``. Must not import rich or anything above.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from profinfer.analysis import notes
from profinfer.analysis.result import Column, Note, Result
from profinfer.analysis.robust import Line, theil_sen
from profinfer.analysis.steps import Steps, attention_steps, decode_steps
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace
from profinfer.units import format_ns

ATTENTION = "attention"
# Fewer steps than this, and no slope is told from noise.
STEPS_MIN = 16
# Growth below this part of the token's time is not worth a line of its own among the notes.
WORTH = 0.01

COLUMNS = (
    Column("part", "part", "text", "Role of operators, or what else a token's time goes to."),
    Column("start_ns", "at start", "ns", "Time per token at the first position, by the line.",
           like="token"),
    Column("grown_ns", "growth", "ns", "Slope times the positions covered.", like="token"),
    Column("share", "share", "ratio", "Growth / growth of all parts that certainly grow.",
           bar=True),
    Column("slope_ns", "per position", "ns", "Slope of the line (Theil-Sen).", like="slope"),
    Column("low_ns", "from", "ns", "Lower end of the slope's 95 % interval.", like="slope"),
    Column("high_ns", "to", "ns", "Upper end of it.", like="slope"),
    Column("certain", "certain", "text", "yes: the interval leaves out 0."),
)  # fmt: skip
LEVELS = (
    Column("cells", "cells", "count", "Cells of the KV cache that attention reads, padded."),
    Column("first", "from", "id", "First position."),
    Column("last", "to", "id", "Last position."),
    Column("tokens", "tokens", "count", "Decode steps there."),
    Column("attention_ns", "attention", "ns", "Time in attention's own operators, median.",
           like="token"),
    Column("jump_ns", "jump", "ns", "That at the begin of this step of the staircase, less at the "
           "end of the one before.", like="token"),
    Column("slope_ns", "per position", "ns", "Slope of attention inside this step of it."),
    Column("total_ns", "token", "ns", "Time per token, median.", like="token"),
)  # fmt: skip


def growth(trace: Trace, selection: Selection) -> Result:
    """One row per part of a token's time: how it grows with the position."""
    steps = decode_steps(trace, selection)
    rows: list[dict[str, Any]] = []
    extra: list[Note] = []
    whole = None
    n = len(steps.call)
    span = int(steps.position.max() - steps.position.min()) if n else 0
    if n >= STEPS_MIN and span >= STEPS_MIN:
        x = steps.position.astype(np.float64)
        whole = theil_sen(x, steps.total.astype(np.float64))
        for name, line in _lines(trace, steps):
            rows.append(_row(name, line, x.min(), span))
        rows.sort(key=lambda row: -row["grown_ns"])
        every = sum(row["grown_ns"] for row in rows if _grows(row))
        for row in rows:
            row["share"] = row["grown_ns"] / every if _grows(row) else None
        extra = _said(steps, rows, whole, span)
    else:
        text = f"{n:,} decode steps are too few to tell growth from noise: {STEPS_MIN} are needed"
        extra = [Note("info", text)]
    frame = pd.DataFrame(rows, columns=[c.name for c in COLUMNS])
    total = None
    if whole is not None:
        total = _row("", whole, float(steps.position.min()), span)
        del total["part"]
    return Result(
        "growth",
        "Growth with the position",
        selection.description,
        COLUMNS,
        frame,
        (*notes.of(trace, selection), *extra),
        total,
    )


def _lines(trace: Trace, steps: Steps) -> list[tuple[str, Line]]:
    """Every part with its line; attention's operators apart where they are several."""
    x = steps.position.astype(np.float64)
    columns = [(name, steps.time[:, i]) for i, name in enumerate(steps.parts)]
    names, time = attention_steps(trace, steps)
    if len(names) > 1:
        columns = [c for c in columns if c[0] != ATTENTION]
        columns += [(f"{ATTENTION}: {name}", time[:, i]) for i, name in enumerate(names)]
    found = [(name, theil_sen(x, values.astype(np.float64))) for name, values in columns]
    return [(name, line) for name, line in found if line is not None]


def _row(name: str, line: Line, first: float, span: int) -> dict[str, Any]:
    return {
        "part": name,
        "start_ns": line.at(first),
        "grown_ns": line.slope * span,
        "slope_ns": line.slope,
        "low_ns": line.low,
        "high_ns": line.high,
        "certain": "yes" if line.certain else "no",
    }


def _grows(row: dict[str, Any]) -> bool:
    return bool(row["low_ns"] > 0)


def _said(steps: Steps, rows: list[dict[str, Any]], whole: Line | None, span: int) -> list[Note]:
    first, last = int(steps.position.min()), int(steps.position.max())
    out = [Note("info", f"positions {first:,} to {last:,}; lines by Theil-Sen, 95 % intervals")]
    start = whole.at(first) if whole is not None else 0.0
    grown = [row for row in rows if _grows(row) and row["grown_ns"] > WORTH * start]
    if grown:
        each = sum(row["slope_ns"] for row in rows if _grows(row))
        told = ", ".join(f"{row['part']} {100 * row['share']:.0f} %" for row in grown[:3])
        text = (
            f"what grows takes {each:,.0f} ns more with every position, {format_ns(each * span)} "
            f"in all: {told}"
        )
        out.append(Note("info", text))
    if whole is None or not whole.certain:
        out.append(Note("info", "the token's time as a whole scatters more than it grows"))
    return out


def staircase(trace: Trace, selection: Selection) -> Result:
    """One row per length of the KV cache that attention was given: the engine pads it."""
    steps = decode_steps(trace, selection)
    at = steps.parts.index(ATTENTION) if ATTENTION in steps.parts[: steps.roles] else None
    attention = steps.operators if at is None else steps.time[:, at]
    rows = []
    before: tuple[float, float] | None = None  # where the last step ended: position, its level
    for cells in np.unique(steps.cells[steps.cells >= 0]).tolist():
        mine = steps.cells == cells
        place = steps.position[mine].astype(np.float64)
        took = attention[mine].astype(np.float64)
        line = theil_sen(place, took) if len(place) >= STEPS_MIN else None
        begin, end = _ends(place, took, line)
        rows.append({
            "cells": cells,
            "first": int(place.min()),
            "last": int(place.max()),
            "tokens": len(place),
            "attention_ns": float(np.median(took)),
            "jump_ns": begin - before[1] if before is not None else np.nan,
            "slope_ns": line.slope if line is not None else np.nan,
            "total_ns": float(np.median(steps.total[mine])),
        })  # fmt: skip
        before = (float(place.max()), end)
    extra = [] if rows else [Note("info", "no attention over a KV cache was recognised")]
    if rows and at is None:
        extra.append(Note("info", "no operator has the role attention: all operators are shown"))
    return Result(
        "kv_steps",
        "Steps of the KV cache",
        selection.description,
        LEVELS,
        pd.DataFrame(rows, columns=[c.name for c in LEVELS]),
        tuple(extra),
    )


def _ends(place: np.ndarray, took: np.ndarray, line: Line | None) -> tuple[float, float]:
    """Level at the first and at the last position of one step of the staircase."""
    if line is None:
        middle = float(np.median(took))
        return middle, middle
    return line.at(float(place.min())), line.at(float(place.max()))
