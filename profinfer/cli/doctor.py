"""Layer 8: ``profinfer doctor``: can this machine record, and if not, what to do.

Owns the presentation of the preflight checks.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.console import Console

    from profinfer.capture.preflight import Check


@click.command()
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="For a person or for a program.",
)
def command(form: str) -> int:
    """Check whether this machine can record; exit status 1 if it cannot."""
    from profinfer.capture.preflight import run_checks

    checks = run_checks()
    able = all(check.state != "problem" for check in checks)
    if able:
        checks.append(_hit_cost())
    if form == "json":
        found = {"can_record": able, "checks": [asdict(check) for check in checks]}
        click.echo(json.dumps(found, indent=2))
    else:
        from rich.console import Console

        show(checks, Console(highlight=False))
    return 0 if able else 1


def _hit_cost() -> Check:
    """What a probe costs here, measured, and what that means for a recording."""
    from profinfer.capture.calibrate import measure_here
    from profinfer.capture.preflight import Check
    from profinfer.errors import ProfinferError
    from profinfer.units import format_ns

    name = "hit cost"
    try:
        cost = measure_here()
    except ProfinferError as error:
        return Check(name, "note", error.message, error.hint)
    if cost is None:
        return Check(name, "note", "not measured: libc has no suitable function", None)
    # A forecast for a small and a large model; the number of operators a token is the model's.
    share = [100 * 500 * cost.ns / 1e9 * rate for rate in (10, 100)]
    return Check(
        name,
        "ok",
        f"{format_ns(cost.ns)} a hit (measured on {cost.insn} in libc, by {cost.attached_by}): at "
        f"500 operators a token about {share[0]:.1f} % at 10 tok/s, {share[1]:.1f} % at 100 tok/s",
        None,
    )


def show(checks: list[Check], console: Console) -> None:
    """Print the checks as a table and a verdict."""
    from rich.table import Table
    from rich.text import Text

    style = {"ok": "green", "note": "yellow", "problem": "bold red"}
    table = Table(box=None, pad_edge=False, show_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in checks:
        seen = Text(check.seen)
        if check.remedy:
            seen.append(f"\ntry: {check.remedy}")
        table.add_row(Text(check.state, style[check.state]), check.name, seen)
    console.print(table)
    problems = [check.name for check in checks if check.state == "problem"]
    console.print()
    if problems:
        console.print(f"This machine cannot record yet: {', '.join(problems)}.", markup=False)
    else:
        console.print("This machine can record.")
