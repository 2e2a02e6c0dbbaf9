"""Layer 8: ``profinfer probes``: which probes a program would get, what they cost, and why.

Owns the layout of that page. Needs no privileges: it only reads files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from profinfer.elf.modules import Program
    from profinfer.probes.plan import Probe, ProbePlan

_WHAT = {
    "request": "requests of a server",
    "call": "token calls",
    "sample": "sampling",
    "warmup": "warm-up marks",
    "split": "splits of a graph",
    "graph": "graphs",
    "leafs": "leafs of a graph",
    "op": "operators, each thread",
}
_OPERATOR = {
    "op.enter": "a thread enters the loop",
    "op.begin": "an operator begins",
    "op.end": "an operator ends",
    "op.barrier": "a thread waits",
    "op.leave": "a thread leaves the loop",
}
_SHOWN_FACTS = 3  # struct offsets named in the table; JSON has them all


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("program")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--level",
    type=click.Choice(["token", "graph", "op"]),
    default="op",
    show_default=True,
    help="How deep to look.",
)
@click.option(
    "--debug-file",
    "debug_files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False),
    help="A file with symbols that were stripped from the program or a library; repeatable.",
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="For a person or for a program.",
)
def command(
    program: str,
    arguments: tuple[str, ...],
    level: str,
    debug_files: tuple[str, ...],
    form: str,
) -> None:
    """Show which probes PROGRAM would get, and why. Needs no privileges.

    ARGUMENTS of the program may follow and are ignored.
    """
    from profinfer.elf.modules import open_program
    from profinfer.probes.plan import make_plan

    opened = open_program(program, debug_files=debug_files)
    plan = make_plan(opened, level)
    if form == "json":
        click.echo(json.dumps(describe(opened, plan), indent=2))
        return
    from rich.console import Console

    show(opened, plan, Console(highlight=False, soft_wrap=False))


def describe(program: Program, plan: ProbePlan) -> dict[str, Any]:
    """The plan as one JSON object."""
    return {
        "program": str(program.path),
        "missing_libraries": list(program.missing),
        "machine": plan.images[0].elf.machine,
        "costs": "measured" if _measured(plan) else "estimate",
        "engine": plan.engine_json(),
        "plan": plan.to_json(),
    }


def show(program: Program, plan: ProbePlan, console: Console) -> None:
    """Print the plan for a person."""
    console.print(_facts(program, plan))
    console.print()
    for line in _probes(plan, console.width):
        console.print(line)
    if not _measured(plan):
        machine = plan.images[0].elf.machine
        console.print()
        console.print(f"[yellow]ns/hit is an estimate: not measured on {machine}.[/yellow]")
    if plan.skipped:
        console.print()
        console.print(_skipped(plan))
    console.print()
    console.print(_verdict(plan), soft_wrap=False)


def _measured(plan: ProbePlan) -> bool:
    from profinfer.probes.cost import is_measured

    return is_measured(plan.images[0].elf.machine)


def _facts(program: Program, plan: ProbePlan) -> Table:
    from rich.markup import escape

    engine = plan.engine_json()
    table = _grid(("bold", 9), (None, None))
    table.add_row("program", escape(_path(program.path)))
    version = f"ggml {engine['version']}" if engine["version"] else "ggml of unknown version"
    if engine["commit"]:
        version += f", commit {engine['commit']}"
    table.add_row("engine", f"{engine['name']}, {version}")
    table.add_row("", *_dim(f"from {engine['evidence']}") if engine["evidence"] else ("",))
    for image in plan.images:
        roles = ", ".join(image.roles)
        names = f"names from {image.elf.names_from}"
        table.add_row("image", f"{image.elf.soname}  [dim]{roles}; {names}[/dim]")
    table.add_row("layout", *_layout(plan))
    facts = plan.facts
    if facts.ops:
        known = sum(t is not None for t in facts.types)
        table.add_row("names", f"{len(facts.ops)} operators, {known} tensor types")
        table.add_row("", *_dim(facts.evidence["ops"]))
    if program.missing:
        table.add_row("missing", f"[yellow]{', '.join(program.missing)}[/yellow]")
    return table


def _layout(plan: ProbePlan) -> tuple[str]:
    if plan.layout is None:
        process = any(p.role == "call.process" for p in plan.probes)  # its batch is a struct, too
        needed = plan.level != "token" or process
        return ("[yellow]unknown[/yellow]" if needed else "not needed at this level",)
    offsets = plan.facts.offsets
    named = ", ".join(f"{k} {v}" for k, (v, _f) in list(offsets.items())[:_SHOWN_FACTS])
    source = "known layout"
    if plan.layout.evidence.startswith("debug information"):
        source = plan.layout.evidence.split(";")[0]
    agree = f"{len(offsets)} of {len(offsets)} offsets that the code gives away agree"
    return (f"{plan.layout.id}  [dim]{source}; {agree} ({named}, …)[/dim]",)


def _probes(plan: ProbePlan, width: int) -> Iterator[str]:
    """Two lines a probe: what, instruction, how and cost; then where."""
    from rich.markup import escape

    what = min(max(len(_label(p)) for p in plan.probes) + 2, width - 32)
    insn = min(22, width - 2 - what - 20)
    yield f"[bold]  {'probe':<{what}}{'instruction':<{insn}}{'':<9}{'ns/hit':>9}[/bold]"
    group = ""
    for entry, back in _pairs(plan.probes):
        kind = entry.role.split(".")[0]
        if kind != group:
            group = kind
            yield f"[cyan]{_WHAT[kind]}[/cyan]"
        text = entry.insn if len(entry.insn) < insn else entry.insn[: insn - 2] + "…"
        how = "emulated" if entry.emulated else "[yellow]stepped[/yellow] "
        cost = entry.cost_ns + (back.cost_ns if back else 0)
        label = _label(entry)
        label = label if len(label) < what else label[: what - 2] + "…"
        yield f"  {label:<{what}}{escape(f'{text:<{insn}}')}{how} {cost:>9,}"
        yield f"    [dim]{escape(_where(entry, back))}[/dim]"


def _pairs(probes: tuple[Probe, ...]) -> list[tuple[Probe, Probe | None]]:
    """Each probe with the return probe that shares its instruction."""
    found: list[tuple[Probe, Probe | None]] = []
    for probe in probes:
        if found and probe.kind == "uretprobe":
            entry = found[-1][0]
            if (entry.path, entry.address, entry.role) == (probe.path, probe.address, probe.role):
                found[-1] = (entry, probe)
                continue
        found.append((probe, None))
    return found


def _label(probe: Probe) -> str:
    """What a hit means for operators, else the function, C++ names without their types."""
    if probe.role in _OPERATOR:
        return _OPERATOR[probe.role]
    mangled = re.match(r"_ZN?(?=\d)", probe.function)
    rest = probe.function[mangled.end() :] if mangled else ""
    parts: list[str] = []
    while size := re.match(r"\d+", rest):
        end = size.end() + int(size[0])
        parts.append(rest[size.end() : end])
        # Without N only one name follows; then come the types.
        rest = rest[end:] if probe.function.startswith("_ZN") else ""
    # The last two parts at most: class and function.
    return "::".join(parts[-2:]) or probe.function


def _where(entry: Probe, back: Probe | None) -> str:
    text = f"{entry.image}+{entry.offset:#x}"
    if entry.role in _OPERATOR:
        text = f"{entry.function}, {text}"
    if back or entry.kind == "uretprobe":
        text += ", and its return" if back else ", its return"
    if entry.index is not None:
        text += f"\n    index in {entry.index}, graph in {entry.cgraph}"
    return text


def _skipped(plan: ProbePlan) -> Table:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), show_edge=False, header_style="bold")
    table.add_column("not probed", no_wrap=True)
    table.add_column("because", overflow="fold", ratio=1)
    for s in plan.skipped:
        table.add_row(f"  {s.function}", escape(s.reason))
    return table


def _verdict(plan: ProbePlan) -> RenderableType:
    from rich.markup import escape

    ops = plan.ops
    if ops.mode == "site":
        return (
            f"One probe an operator and thread, about [bold]{ops.cost_ns:,} ns[/bold] plus the "
            "recorder's work: a point of the graph loop itself, proven from the code: "
            f"{escape(ops.why)}."
        )
    if ops.mode == "pair":
        return (
            f"Two probes an operator and thread, about [bold]{ops.cost_ns:,} ns[/bold] plus the "
            f"recorder's work: {escape(ops.why)}."
        )
    if plan.level != "op":
        return f"Operators are not probed at level {plan.level}."
    return f"[yellow]No operators:[/yellow] {escape(ops.why)}."


def _dim(text: str) -> tuple[str]:
    return (f"[dim]{text}[/dim]",)


def _grid(*columns: tuple[str | None, int | None]) -> Table:
    from rich.table import Table

    table = Table.grid(padding=(0, 2, 0, 0))
    for style, width in columns:
        table.add_column(style=style, width=width, overflow="fold")
    return table


def _path(path: Path) -> str:
    home = Path.home()
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)
