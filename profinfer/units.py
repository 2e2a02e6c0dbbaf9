"""Layer 0: numbers become short text. Pure; imports nothing of profinfer.

Inside profinfer times are integer nanoseconds and sizes integer bytes; only what a person reads
passes through here. The text is stable (no locale) and narrow: three significant digits, a unit
that keeps the number below 1000, a value that is missing is ``-``. Sizes of memory and files
are binary (KiB, MiB); rates are decimal (MB/s, GB/s), as memory vendors and tools print them.
"""

from __future__ import annotations

import math

MISSING = "-"
TIMES_FROM = 3  # a quotient of two durations is told as one from here on, below in percent

_TIME = (("ns", 1.0), ("µs", 1e3), ("ms", 1e6), ("s", 1e9))
_IEC = tuple((unit, 1024.0**i) for i, unit in enumerate(("B", "KiB", "MiB", "GiB", "TiB", "PiB")))
_SI = tuple((unit, 1000.0**i) for i, unit in enumerate(("", "k", "M", "G", "T", "P")))


def format_ns(ns: float | None) -> str:
    """A duration: ``831 ns``, ``12.3 µs``, ``4.56 ms``, ``7.89 s``, ``2 min 05 s``, ``1 h 02 min``.

    Args:
        ns: nanoseconds.
    """
    if ns is None or not math.isfinite(ns):
        return MISSING
    seconds = round(abs(ns) / 1e9)
    sign = "-" if ns < 0 else ""
    if seconds >= 3600:
        return f"{sign}{seconds // 3600} h {seconds % 3600 // 60:02d} min"
    if seconds >= 120:
        return f"{sign}{seconds // 60} min {seconds % 60:02d} s"
    return _scaled(ns, _TIME)


def format_ms(ns: float | None) -> str:
    """A duration always in milliseconds, for columns that are compared: ``4.560``.

    Args:
        ns: nanoseconds.
    """
    return MISSING if ns is None or not math.isfinite(ns) else f"{ns / 1e6:,.3f}"


def format_bytes(size: float | None) -> str:
    """A size in memory or on disk: ``512 B``, ``1.50 KiB``, ``98.1 MiB``.

    Args:
        size: bytes.
    """
    return MISSING if size is None or not math.isfinite(size) else _scaled(size, _IEC)


def format_byte_rate(per_second: float | None) -> str:
    """A bandwidth: ``950 B/s``, ``1.20 MB/s``, ``19.2 GB/s``.

    Args:
        per_second: bytes per second.
    """
    if per_second is None or not math.isfinite(per_second):
        return MISSING
    text = _scaled(per_second, _SI)
    number, _, unit = text.partition(" ")
    return f"{number} {unit}B/s"


def format_rate(per_second: float | None, of: str = "") -> str:
    """A rate: ``203 tok/s``, ``48.1 k/s``, ``1.20 M tok/s``.

    Args:
        per_second: how many a second.
        of: what is counted, e.g. ``tok``.
    """
    if per_second is None or not math.isfinite(per_second):
        return MISSING
    number, _, unit = _scaled(per_second, _SI).partition(" ")
    return f"{number} {' '.join(part for part in (unit, of) if part)}/s"


def format_count(count: float | None) -> str:
    """A number of things, in full with separators: ``1,234,567``."""
    return MISSING if count is None or not math.isfinite(count) else f"{round(count):,}"


def format_things(n: int, what: str) -> str:
    """A number of things by name: ``1 token``, ``1,234 tokens``, ``2 passes``."""
    return f"{n:,} {what}{'' if n == 1 else 'es' if what.endswith('s') else 's'}"


def format_short_count(count: float | None) -> str:
    """A number of things in at most five characters: ``999``, ``12.3k``, ``1.20M``."""
    if count is None or not math.isfinite(count):
        return MISSING
    if abs(count) < 1000 and float(count).is_integer():
        return str(int(count))
    return _scaled(count, _SI).replace(" ", "")


def format_percent(ratio: float | None, digits: int = 1) -> str:
    """A ratio as percent: ``0.123`` is ``12.3 %``. What is not zero is never shown as zero.

    Args:
        ratio: 1.0 is the whole.
        digits: after the point.
    """
    if ratio is None or not math.isfinite(ratio):
        return MISSING
    value = ratio * 100
    smallest = 10.0**-digits
    if value and abs(value) < smallest / 2:
        return f"{'>-' if value < 0 else '<'}{smallest:.{digits}f} %"
    return f"{value:,.{digits}f} %"


def format_change(ratio: float) -> str:
    """How much more or less something became, without a sign: ``12.3 %``, or ``14.5x``.

    Args:
        ratio: b / a - 1; ``13.5`` is ``14.5x``, ``-0.2`` is ``20.0 %``.
    """
    return format_times(1 + ratio) if ratio >= TIMES_FROM - 1 else f"{100 * abs(ratio):.1f} %"


def format_times(times: float) -> str:
    """A quotient: ``14.5x``, ``1,351x``."""
    return f"{times:,.{0 if times >= 100 else 1}f}x"


def format_number(value: float | None) -> str:
    """A bare number to three significant digits: ``1.23``, ``12.3``, ``1,235``."""
    if value is None or not math.isfinite(value):
        return MISSING
    return f"{value:,.{_decimals(abs(value))}f}"


def _decimals(size: float) -> int:
    """Digits after the point that leave three significant ones; rounds up 9.995 to 10.0."""
    return 2 if size < 9.995 else 1 if size < 99.95 else 0


def _scaled(value: float, units: tuple[tuple[str, float], ...]) -> str:
    size = abs(value)
    # 999.7 would be printed as 1000: the next unit then.
    unit, factor = next((u for u in units if size / u[1] < 999.5), units[-1])
    if factor == 1.0 and float(value).is_integer():
        return f"{int(value)} {unit}".rstrip()
    scaled = value / factor
    return f"{scaled:.{_decimals(abs(scaled))}f} {unit}".rstrip()
