"""Layer 8: options and arguments that several verbs share.

Must not import the model, the analyses or anything heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from profinfer.errors import UsageProblem

PHASES = ("prefill", "decode", "verify", "mixed", "encode", "warmup", "all")
NO_ENGINE = "the recording ended before the program loaded an engine"

_MOST = 1 << 31  # tokens, layers: no run has as many, and the kernel's counters hold no more

FORMATS = ("table", "json", "csv")


if TYPE_CHECKING:
    _SpanType = click.ParamType[tuple[int, int]]
else:  # not subscriptable before click 8.2
    _SpanType = click.ParamType


class Span(_SpanType):
    """``A:B``: from A up to, not including, B; either may be left out. ``N`` alone is N:N+1."""

    name = "A:B"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Parse, or raise a UsageProblem that says how it is written."""
        if isinstance(value, tuple):
            return value
        text = str(value)
        first, colon, last = text.partition(":")
        try:
            begin = int(first) if first or not colon else 0
            end = (int(last) if last else _MOST) if colon else begin + 1
        except ValueError:
            begin, end = 0, -1
        end = min(end, _MOST)
        if begin < 0 or end <= begin:
            option = param.opts[0] if param else "the option"
            raise UsageProblem(
                f"{option} does not understand '{text}'", f"{option} 0:10, or {option} 3"
            )
        return begin, end


trace_argument = click.argument("trace", type=click.Path(), metavar="TRACE")
phase_option = click.option(
    "--phase", type=click.Choice(PHASES), help="Only this phase; 'all' adds warm-up."
)
tokens_option = click.option(
    "--tokens", type=Span(), metavar="A:B", help="Only decoded tokens A up to B of each generation."
)
op_option = click.option("--op", metavar="OP", help="Only operators of this type, e.g. MUL_MAT.")
layer_option = click.option(
    "--layer", type=Span(), metavar="N|A:B", help="Only this layer, or layers A up to B."
)
format_option = click.option(
    "--format",
    "form",
    type=click.Choice(FORMATS),
    default="table",
    show_default=True,
    help="A table to read, or the same numbers for programs.",
)
