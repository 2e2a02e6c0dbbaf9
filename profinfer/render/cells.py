"""Layer 7: columns of a Result as text: one unit and one number of digits a column.

Used by the terminal and by the page. Formats; lays out nothing. Must not import the command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from profinfer import units
from profinfer.analysis.result import Column, Result

_RATES = {
    "bytes_per_s": ("GB/s", 1e9),
    "flop_per_s": ("GFLOP/s", 1e9),
    "flop_per_byte": ("FLOP/B", 1.0),
    "per_cycle": ("", 1.0),
    "number": ("", 1.0),
    "times": ("x", 1.0),
}


@dataclass
class Cells:
    """One column, formatted."""

    title: str
    unit: str
    cells: list[str]
    total: str
    left: bool
    ratios: list[float] | None = None

    @property
    def width(self) -> int:
        """Of its longest text."""
        return max(map(len, (self.title, self.unit, self.total, *self.cells)), default=0)


def single(value: Any, unit: str) -> str:
    """One value with its unit."""
    if unit == "ns":
        return units.format_ns(value)
    if unit == "bytes":
        return units.format_bytes(value)
    if unit == "per_s":
        return units.format_rate(value, "tok")
    if unit == "ratio":
        return units.format_percent(value)
    if unit == "count":
        return units.format_count(value)
    return str(value)


def missing(value: Any) -> bool:
    """None, NaN or NA."""
    return value is None or bool(pd.isna(value))


def column_cells(column: Column, result: Result) -> Cells:
    """Format one column; all its cells get the same unit and number of digits."""
    values = result.frame[column.name].tolist()
    total = (result.total or {}).get(column.name)
    ratios = None
    unit = ""
    if column.unit == "ns":
        unit, scale, digits = _time_unit(column, result)
        cells = [_number(v, scale, digits, column.signed) for v in (*values, total)]
    elif column.unit == "ratio":
        unit = "%"
        cells = [_number(v, 0.01, 1, column.signed) for v in (*values, total)]
        if column.bar:
            ratios = [0.0 if missing(v) else float(v) for v in values]
    elif column.unit in _RATES:
        unit, scale = _RATES[column.unit]
        known = [abs(v) / scale for v in values if not missing(v)]
        digits = 1 if max(known, default=0) >= 10 else 2
        cells = [_number(v, scale, digits) for v in (*values, total)]
    elif column.unit == "per_s":
        cells = [_number(v, 1, 1) for v in (*values, total)]
    elif column.unit == "count":
        cells = [_number(v, 1, 0) for v in (*values, total)]
    elif column.unit == "bytes":
        cells = [units.format_bytes(None if missing(v) else v) for v in (*values, total)]
    else:
        cells = ["-" if missing(v) else str(v) for v in (*values, total)]
    if missing(total):
        cells[-1] = ""
    return Cells(column.title, unit, cells[:-1], cells[-1], column.unit == "text", ratios)


def _time_unit(column: Column, result: Result) -> tuple[str, float, int]:
    """Unit, nanoseconds in it and digits, by the largest row of this column and those like it."""
    alike = [c.name for c in result.columns if c.like and c.like == column.like]
    known = (
        abs(v)
        for name in alike or [column.name]
        for v in result.frame[name].tolist()
        if not missing(v)
    )
    most = max(known, default=0)
    if most < 1e7:
        return "µs", 1e3, 1 if most >= 1e4 else 2
    return "ms", 1e6, 1 if most >= 1e8 else 2


def _number(value: Any, scale: float, digits: int, signed: bool = False) -> str:
    if missing(value):
        return units.MISSING
    scaled = value / scale
    if signed:
        return f"{scaled:+,.{digits}f}"
    if value and abs(scaled) < 0.5 * 10**-digits:
        return f"<{10**-digits:.{digits}f}" if value > 0 else "<0"
    return f"{scaled:,.{digits}f}"
