"""Layer 7: from values to places on paper: linear and logarithmic scales, ticks, their labels.

Must not import the command line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from profinfer.render.html.charts import Axis
from profinfer.units import format_short_count

_NS = (("s", 1e9), ("ms", 1e6), ("µs", 1e3), ("ns", 1.0))
_IEC = (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1))
_FIXED = {
    "flop_per_s": ("GFLOP/s", 1e9),
    "bytes_per_s": ("GB/s", 1e9),
    "flop_per_byte": ("FLOP/byte", 1.0),
    "ratio": ("%", 0.01),
    "per_s": ("tok/s", 1.0),
}


@dataclass(frozen=True)
class Scale:
    """A stretch of values on a stretch of paper.

    Attributes:
        low: first value.
        high: last value.
        start: place of the first one.
        stop: place of the last one.
        log: logarithmic.
        unit: name of the unit that the ticks are in; empty for counts.
        factor: values in it.
        short: ticks are abbreviated (12.3k).
        whole: only whole numbers are labelled.
    """

    low: float
    high: float
    start: float
    stop: float
    log: bool
    unit: str
    factor: float
    short: bool
    whole: bool = False

    def __call__(self, value: float) -> float:
        """Place of a value; what lies outside is put on the edge."""
        value = min(max(value, self.low), self.high)
        if self.log:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return self.start + part * (self.stop - self.start)

    def ticks(self, room: int = 5) -> list[tuple[float, str]]:
        """Values worth a line, and their labels."""
        if self.log:
            return self._decades()
        step = _nice((self.high - self.low) / self.factor / max(room, 1))
        step = max(step, 1.0) if self.whole else step
        first = math.ceil(self.low / self.factor / step - 1e-9)
        last = math.floor(self.high / self.factor / step + 1e-9)
        digits = _decimals(step)
        short = self.short and all(_is_short(i * step) for i in range(first, last + 1))
        return [
            (i * step * self.factor, _label(i * step, digits, short))
            for i in range(first, last + 1)
        ]

    def _decades(self) -> list[tuple[float, str]]:
        first = math.floor(math.log10(self.low / self.factor) + 1e-9)
        last = math.ceil(math.log10(self.high / self.factor) - 1e-9)
        steps = (1, 2, 5) if last - first <= 2 else (1,)
        found = [(m * 10.0**e) for e in range(first, last + 1) for m in steps]
        inside = [v for v in found if self.low * 0.999 <= v * self.factor <= self.high * 1.001]
        return [(v * self.factor, _plain(v)) for v in inside]


def _label(value: float, digits: int, short: bool) -> str:
    return _short(value) if short and abs(value) >= 10_000 else f"{value:,.{digits}f}"


def _is_short(value: float) -> bool:
    """Three digits say all of it."""
    return value == 0 or math.isclose(float(f"{value:.2e}"), value)


def _plain(value: float) -> str:
    if value >= 10_000:
        power = round(math.log10(value))
        return _short(value) if value < 1e15 else f"1e{power}"
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _short(value: float) -> str:
    """``100k``, ``1M``, ``2.5M``: without digits that say nothing."""
    text = format_short_count(value)
    number, letter = text[:-1], text[-1]
    return number.rstrip("0").rstrip(".") + letter if "." in number else text


def _decimals(step: float) -> int:
    """Decimals that multiples of a step are told apart and exact with: 2.5 has one, 20 none."""
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    return digits if math.isclose(round(step, digits), step, rel_tol=1e-6) else digits + 1


def _nice(step: float) -> float:
    """The next larger of 1, 2, 2.5, 5 times a power of ten."""
    size = 10.0 ** math.floor(math.log10(step))
    return next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= step * 0.999)


def unit_of(axis: Axis, most: float) -> tuple[str, float]:
    """The unit that an axis is labelled in, and how many of the stored one it has."""
    if axis.unit == "ns":
        return next((u for u in _NS if most >= 2 * u[1]), _NS[-1])
    if axis.unit == "bytes":
        return next((u for u in _IEC if most >= u[1]), _IEC[-1])
    return _FIXED.get(axis.unit, ("", 1.0))


def scale(axis: Axis, values: Sequence[float], start: float, stop: float) -> Scale:
    """A scale that all values fit on, or that ends where the axis says."""
    known = [v for v in values if math.isfinite(v) and (v > 0 or not axis.log)]
    low, high = (min(known), max(known)) if known else (1.0, 10.0)
    high = min(high, axis.most) if axis.most is not None else high
    if axis.log:
        low, high = low / 1.4, max(high, low) * 1.4
        unit, factor = unit_of(axis, math.sqrt(low * high))
        return Scale(low, high, start, stop, True, unit, factor, False)
    if axis.tight:
        pass
    elif axis.zero:
        low = min(low, 0.0)
    else:
        edge = 0.05 * (high - low)
        low = max(low - edge, 0.0) if low >= 0 else low - edge
        high += edge
    if high <= low:
        high = low + 1.0
    unit, factor = unit_of(axis, high)
    if axis.most is None and axis.zero and not axis.tight:
        step = _nice((high - low) / factor / 4) * factor
        high = max(math.ceil(high / step - 1e-9) * step, high)
    return Scale(
        low, high, start, stop, False, unit, factor, axis.unit == "count", axis.unit == "id"
    )


def titled(axis: Axis, shown: Scale) -> str:
    """Title of an axis with its unit."""
    return f"{axis.title}, {shown.unit}" if shown.unit else axis.title
