"""Layer 6: what an analysis returns: typed columns with units, rows, notes. Renderers print it.

Must not import the model, rich or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

Unit = Literal[
    "ns",
    "bytes",
    "count",
    "ratio",
    "per_s",
    "bytes_per_s",
    "flop_per_s",
    "flop_per_byte",
    "per_cycle",
    "number",
    "times",
    "text",
    "id",
]
Severity = Literal["info", "warning", "error"]


@dataclass(frozen=True)
class Column:
    """A column of a Result.

    Attributes:
        name: stable key, in the frame, in JSON and in CSV.
        title: what a person reads above it.
        unit: of the stored value: integer or float nanoseconds, bytes, a count, a ratio where 1.0
            is the whole, something per second, bytes or operations per second, operations per byte,
            something per cycle, a bare number, how many times as much, text, or an id.
        description: one sentence; what exactly is meant.
        detail: for machines and wide terminals only.
        bar: the renderer may draw the ratio as a bar.
        like: columns with the same word here are shown in the same unit.
        signed: a difference: what is more than zero is shown with a plus.
    """

    name: str
    title: str
    unit: Unit
    description: str
    detail: bool = False
    bar: bool = False
    like: str = ""
    signed: bool = False


@dataclass(frozen=True)
class Note:
    """A sentence that belongs to a Result."""

    severity: Severity
    text: str


@dataclass(frozen=True)
class Result:
    """A table with its meaning.

    Attributes:
        name: stable key, e.g. ``operators_by_op``.
        title: a heading.
        scope: phase, number of tokens and graphs that it covers, warm-up in or out.
        columns: of the frame, in order.
        frame: one row per line; the columns' stored units. Missing is NA.
        notes: what the reader must know, worst first.
        total: sums over all rows, also those that a limit left out; None where sums mean nothing.
        layout: "table", or "record" for one row that is read from top to bottom.
        phase: the phase that all of it is of; None for several, or none.
    """

    name: str
    title: str
    scope: str
    columns: tuple[Column, ...]
    frame: pd.DataFrame
    notes: tuple[Note, ...] = ()
    total: dict[str, Any] | None = None
    layout: Literal["table", "record"] = field(default="table")
    phase: str | None = None
