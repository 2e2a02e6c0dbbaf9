"""Layer 8: which part of a trace becomes a timeline, as ``export`` and ``view`` are asked for it.

Must not import the model, the analyses or anything heavy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from profinfer.cli import options as shared
from profinfer.errors import UsageProblem

_SIZES = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_TIMES = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 1_000_000_000}


@dataclass(frozen=True)
class ExportOptions:
    """What the user asked for.

    Attributes:
        trace: the recording.
        output: where the timeline goes.
        force: overwrite it.
        phase: only calls of this phase; "all" for everything, warm-up included.
        tokens: only decode steps whose index lies in [a, b).
        threads: names or ids of threads whose operators are drawn; empty for all.
        min_ns: operators and waits that are shorter are left out.
        max_bytes: operators are left out until the file is no larger; None for no limit.
        flows: draw what each operator reads from which.
        server: recording of the RPC server that the program spoke to, to draw with it.
    """

    trace: Path
    output: Path
    force: bool = False
    phase: str = "all"
    tokens: tuple[int, int] | None = None
    threads: tuple[str, ...] = ()
    min_ns: int = 0
    max_bytes: int | None = None
    flows: bool = False
    server: Path | None = None

    @property
    def narrowed(self) -> bool:
        """Something is to be left out, or added."""
        plain = ExportOptions(self.trace, self.output, self.force)
        return self != plain


def _threads(_: click.Context, __: click.Parameter, text: str | None) -> tuple[str, ...]:
    return tuple(filter(None, (word.strip() for word in (text or "").split(","))))


def _size(_: click.Context, __: click.Parameter, text: str | None) -> int | None:
    """Bytes of ``200M``."""
    if text is None:
        return None
    number = text.removesuffix("B").removesuffix("i")
    unit = _SIZES.get(number[-1:].upper(), 0)
    try:
        size = int(float(number[:-1]) * unit)
    except (ValueError, OverflowError):
        size = 0
    if size <= 0:
        raise UsageProblem(f"--max-size {text} is not a size", "--max-size 200M")
    return size


def _time(_: click.Context, __: click.Parameter, text: str | None) -> int:
    """Nanoseconds of ``5us``."""
    if text is None:
        return 0
    unit = next((u for u in _TIMES if text.endswith(u) and text[: -len(u)][-1:].isdigit()), "")
    try:
        ns = int(float(text.removesuffix(unit)) * _TIMES[unit])
    except (ValueError, KeyError, OverflowError):
        ns = 0
    if ns <= 0:
        raise UsageProblem(f"--min-duration {text} is not a time", "--min-duration 5us")
    return ns


def timeline_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that choose what is drawn."""
    for option in reversed(
        (
            click.option(
                "--phase",
                type=click.Choice(shared.PHASES),
                default="all",
                show_default=True,
                help="Only calls of this phase.",
            ),
            shared.tokens_option,
            click.option(
                "--threads",
                metavar="LIST",
                callback=_threads,
                help="Operators, waits and states of these threads only: main, worker1, workers, "
                "or thread ids.",
            ),
            click.option(
                "--min-duration",
                "min_ns",
                metavar="TIME",
                callback=_time,
                help="Leave out operators and waits shorter than this, such as 5us.",
            ),
            click.option(
                "--max-size",
                "max_bytes",
                metavar="SIZE",
                callback=_size,
                help="Keep the file below this size, such as 200M: operators of the first, last "
                "and slowest calls stay.",
            ),
            click.option(
                "--flows",
                is_flag=True,
                help="Arrows from each operator to those that read its result; for some tokens.",
            ),
            click.option(
                "--with",
                "server",
                type=click.Path(path_type=Path),
                metavar="TRACE",
                help="Also draw what an RPC server served, recorded at the same time.",
            ),
        )
    ):
        function = option(function)
    return function
