"""Layer 8: ``profinfer record``: run a program and keep what its inference did."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from profinfer.errors import TargetError, UsageProblem

if TYPE_CHECKING:
    from profinfer.capture.session import RecordResult
    from profinfer.probes.plan import ProbePlan

_UNITS = {"K": 1 << 10, "M": 1 << 20}
_RING_LIMITS = (8 << 10, 1 << 30)


def _ring_bytes(text: str) -> int:
    """Bytes of ``16M`` or ``512K``; the kernel wants a power of two."""
    number, unit = text[:-1], _UNITS.get(text[-1:].upper(), 0)
    size = int(number) * unit if number.isdigit() else 0
    if size & (size - 1) or not _RING_LIMITS[0] <= size <= _RING_LIMITS[1]:
        raise UsageProblem(
            f"--ring-size {text} is not a power of two between 8K and 1024M",
            hint="--ring-size 16M",
        )
    return size


@click.command(
    "record",
    context_settings={"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]},
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("trace.pf"),
    show_default=True,
    help="The trace file.",
)
@click.option("-f", "--force", is_flag=True, help="Replace an existing trace file.")
@click.option(
    "--level",
    type=click.Choice(["token", "graph", "op"]),
    default="op",
    show_default=True,
    help="How deep to look; each level includes those before it.",
)
@click.option(
    "--ring-size",
    default="16M",
    show_default=True,
    metavar="SIZE",
    help="Buffer between kernel and recorder, such as 512K or 64M; a power of two.",
)
@click.option(
    "--progress/--no-progress",
    default=None,
    help="Progress line on stderr. Default: when stderr is a terminal that the target does "
    "not write to.",
)
@click.option(
    "--dry-run", is_flag=True, help="Set everything up, then stop before the target runs."
)
@click.option("--print-bpf", is_flag=True, help="Print the BPF program and stop.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
def command(
    output: Path,
    force: bool,
    level: str,
    ring_size: str,
    progress: bool | None,
    dry_run: bool,
    print_bpf: bool,
    command: tuple[str, ...],
) -> int:
    r"""Run COMMAND and record every token, graph and operator of its inference.

    \b
    profinfer record -- ./llama-completion -m model.gguf -p "Hello" -n 64
    profinfer report trace.pf
    """
    from profinfer.capture.preflight import require_recording
    from profinfer.capture.session import RecordOptions, record, rehearse
    from profinfer.capture.source import build_source
    from profinfer.elf.modules import open_program
    from profinfer.probes.plan import make_plan

    ring_bytes = _ring_bytes(ring_size)
    program = open_program(command[0])
    plan = make_plan(program, level=level)
    if print_bpf:
        source = build_source(plan, ring_bytes=ring_bytes)
        click.echo("// cflags: " + " ".join(source.cflags))
        click.echo(source.text)
        return 0
    require_recording()
    if not dry_run and output.exists() and not force:
        raise UsageProblem(
            f"{output} exists already", hint="-o another.pf, or --force to replace it"
        )
    if progress is None:
        # A line that rewrites itself on the terminal the target prints to would spoil both.
        progress = sys.stderr.isatty() and not sys.stdout.isatty()
    options = RecordOptions(
        argv=list(command),
        exe=program.path,
        output=output,
        force=force,
        ring_bytes=ring_bytes,
        progress=progress,
        shown={"level": level, "ring_bytes": ring_bytes},
    )
    _warn_reduced(plan, level)
    if dry_run:
        rehearse(plan, options)
        click.echo(f"all {len(plan.probes)} probes can be attached; nothing was run", err=True)
        return 0
    return _finish(record(plan, options), plan, output)


def _warn_reduced(plan: ProbePlan, level: str) -> None:
    """Say before the run what this build does not let us see."""
    if level == "op" and plan.ops.mode == "none":
        seen = "graph" if plan.layout is not None else "token"
        click.echo(f"profinfer: {seen} level only: {plan.ops.why}", err=True)
        click.echo(f"  see: profinfer probes {plan.images[0].elf.path}", err=True)


def _finish(result: RecordResult, plan: ProbePlan, output: Path) -> int:
    """Say how it went; returns the exit status: the target's, or ours when we failed."""
    from profinfer.units import format_bytes, format_count

    status = result.status.as_exit_code
    if result.write_error is not None:
        raise result.write_error
    if result.implausible is not None:
        bad = result.implausible
        assert plan.layout is not None
        raise TargetError(
            f"what was read of {bad.seen} tensors makes no sense ({bad.example}): the layout "
            f"{plan.layout.id} does not fit this engine; the probes were removed",
            hint="--level token, which reads no graphs; profinfer probes shows the evidence",
        )
    if result.calls == 0 and result.graphs == 0:
        click.echo(f"profinfer: the target {result.status.text} and ran no inference", err=True)
        click.echo(
            "  try: a prompt and -n, and the engine's own messages above; "
            "a child process of the target is not recorded",
            err=True,
        )
        return status or 1
    if result.status.signal is not None and not result.interrupted:
        click.echo(
            f"profinfer: the target {result.status.text}; the trace holds what ran until then",
            err=True,
        )
    lost = f"{format_count(result.lost)} LOST" if result.lost else "none lost"
    parts = [f"{format_count(result.tokens)} tokens in {format_count(result.calls)} calls"]
    if plan.level != "token":
        parts.append(f"{format_count(result.graphs)} graphs")
    if plan.level == "op":
        parts.append(f"{format_count(result.operators)} operator records")
    click.echo(f"profinfer: wrote {output} ({format_bytes(result.size)})", err=True)
    click.echo(f"  {', '.join(parts)}, {lost}", err=True)
    if result.lost:
        click.echo("  try: --ring-size 64M, or a lower --level", err=True)
    click.echo(f"  next: profinfer report {output}", err=True)
    return status
