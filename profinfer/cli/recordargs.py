"""Layer 8: what the options of ``profinfer record`` say: sizes, times, shares, counters."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import click

from profinfer.errors import UsageProblem

if TYPE_CHECKING:
    from profinfer.capture.counters import Counter
    from profinfer.capture.only import Only

_UNITS = {"K": 1 << 10, "M": 1 << 20}
_RING_LIMITS = (8 << 10, 1 << 30)
_LONGEST_S = 366 * 86_400


def ring_bytes_of(text: str) -> int:
    """Bytes of ``16M`` or ``512K``; the kernel wants a power of two."""
    number, unit = text[:-1], _UNITS.get(text[-1:].upper(), 0)
    size = int(number) * unit if number.isdecimal() else 0
    if size & (size - 1) or not _RING_LIMITS[0] <= size <= _RING_LIMITS[1]:
        raise UsageProblem(
            f"--ring-size {text} is not a power of two between 8K and 1024M",
            hint="--ring-size 16M",
        )
    return size


def counters_of(listed: str | None, preset: str | None, level: str) -> tuple[Counter, ...]:
    """What is to be counted: at each operator, and of the whole system."""
    import platform

    from profinfer.capture.counters import CounterNames
    from profinfer.capture.cpukinds import cpu_kinds
    from profinfer.capture.presets import preset as counters_of_preset

    if listed is None and preset is None:
        return ()
    if listed is not None and preset is not None:
        raise UsageProblem(
            "--preset names counters, and so does --counters", hint="give one of them"
        )
    names = CounterNames()
    if listed is not None:
        found = tuple(names.parse(listed))
    else:
        chosen = counters_of_preset(preset or "", cpu_kinds(platform.machine()), names)
        found = chosen.counters
        for note in chosen.notes:
            click.echo(f"profinfer: --preset {preset}: {note}", err=True)
    if level != "op" and not all(counter.system for counter in found):
        raise UsageProblem(
            f"counters are read at operators, and --level {level} has none",
            hint="leave out --level",
        )
    return found


def only_of(
    ops: str | None, layers: tuple[int, int] | None, threads: str, level: str, counted: bool
) -> Only:
    """Operators and threads that are to be recorded."""
    from profinfer.capture.only import Only

    names = tuple(dict.fromkeys(o.strip().upper() for o in (ops or "").split(",") if o.strip()))
    if ops is not None and not names:
        raise UsageProblem("--ops names no operator", hint="--ops MUL_MAT,FLASH_ATTN_EXT")
    only = Only(names, layers, threads == "main")
    if only and level != "op":
        raise UsageProblem(
            f"--ops, --layers and --threads choose among operators, and --level {level} has none",
            hint="leave out --level",
        )
    if counted and (only.ops or only.layers):
        raise UsageProblem(
            "counters are differences from the operator before: they need all operators",
            hint="leave out --ops and --layers, and give --op and --layer to profinfer report",
        )
    return only


def seconds_of(text: str) -> float:
    """Seconds of ``30``, ``30s``, ``2m`` or ``500ms``."""
    for suffix, factor in (("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("", 1.0)):
        number = text.removesuffix(suffix)
        if text.endswith(suffix) and number.replace(".", "", 1).isdecimal():
            seconds = float(number) * factor
            if 0 < seconds <= _LONGEST_S:
                return seconds
    raise UsageProblem(f"--duration {text} is not a time up to a year", hint="--duration 30s")


def speed_of(number: float | None) -> float | None:
    """Tokens a second, as click read them: it takes ``nan`` and ``inf`` for numbers."""
    if number is not None and not math.isfinite(number):
        raise UsageProblem(f"--min-tps {number} is not a number of tokens", hint="--min-tps 10")
    return number


def share_of(text: str) -> float:
    """The share of ``2%`` or ``2``: 0.02."""
    try:
        share = float(text.removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not 0 < share < 1:
        raise UsageProblem(
            f"--max-overhead {text} is not a percentage between 0 and 100", hint="--max-overhead 2%"
        )
    return share
