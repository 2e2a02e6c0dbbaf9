"""Layer 8: what is said when a recording has ended, and its exit status."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from profinfer.errors import TargetError

if TYPE_CHECKING:
    from profinfer.capture.recording import RecordResult
    from profinfer.capture.session import RecordOptions


def finish(result: RecordResult, options: RecordOptions) -> int:
    """Say how it went; returns the exit status: the target's, or ours when we failed."""
    from profinfer.units import format_bytes, format_count

    if result.write_error is not None:
        raise result.write_error
    attached = bool(options.shown.get("attached"))
    status = result.status.as_exit_code if result.status is not None else 0
    ended = result.status.text if result.status is not None else "still runs"
    plan = result.plan
    if plan is None:
        options.output.unlink(missing_ok=True)
        raise TargetError(
            f"no ggml or llama.cpp was loaded: the target {ended} and nothing was recorded",
            hint="a child process is not recorded: give the program that runs the model; one "
            "whose symbols are stripped needs its --debug-file",
            exit_code=status or 1,
        )
    if result.implausible is not None:
        bad = result.implausible
        assert plan.layout is not None
        raise TargetError(
            f"what was read of {bad.seen} tensors makes no sense ({bad.reason}): the layout "
            f"{plan.layout.id} does not fit this engine; the probes were removed",
            hint="--level token, which reads no graphs; profinfer probes shows the evidence",
        )
    if result.calls == 0 and result.graphs == 0:
        raise TargetError(
            f"the target {ended} and ran no inference",
            hint="record for longer, while it generates"
            if attached
            else "a prompt and -n, and the engine's own messages above; a child process of the "
            "target is not recorded",
            exit_code=status or 1,
        )
    if result.status is not None and result.status.signal is not None and not result.interrupted:
        click.echo(f"profinfer: the target {ended}; the trace holds what ran until then", err=True)
    if result.other_engines:
        click.echo(
            "profinfer: another engine in the same process is not recorded: "
            + ", ".join(result.other_engines),
            err=True,
        )
    if result.no_sched is not None and options.wanted.sched:
        click.echo(f"profinfer: no thread states: {result.no_sched}", err=True)
    if result.no_faults is not None and options.wanted.faults:
        click.echo(f"profinfer: no page faults: {result.no_faults}", err=True)
    lost = f"{format_count(result.lost)} LOST" if result.lost else "none lost"
    calls = f"{format_count(result.calls)} calls"
    # Where the batch could not be read, the report counts tokens from the graphs' shapes.
    parts = [f"{format_count(result.tokens)} tokens in {calls}" if result.tokens else calls]
    if plan.reads_graphs:
        parts.append(f"{format_count(result.graphs)} graphs")
    if plan.ops.mode != "none":
        parts.append(f"{format_count(result.operators)} operator records")
    click.echo(f"profinfer: wrote {options.output} ({format_bytes(result.size)})", err=True)
    click.echo(f"  {', '.join(parts)}, {lost}", err=True)
    if result.not_counted:
        click.echo(f"  {result.not_counted}", err=True)
    if result.forecast is not None:
        text = f"probes cost {result.forecast.text}"
        click.echo(click.wrap_text(text, 80, "  ", "    "), err=True)
    _say_limits(result)
    if absent := _absent(result, options):
        click.echo(f"  no operator was recorded: {absent}", err=True)
    if result.lost:
        click.echo("  try: --ring-size 64M, or a lower --level", err=True)
    click.echo(f"  next: profinfer report {options.output}", err=True)
    return status


def _absent(result: RecordResult, options: RecordOptions) -> str | None:
    """Why no operator was recorded, if that is because of which ones were chosen."""
    only = options.wanted.only
    # Each thread leaves these for each graph in any case: entered, left, the operator before.
    if not (only.ops or only.layers) or result.operators > 3 * result.visits:
        return None
    # Only now: with the analyses' libraries a recorder has twice the memory.
    from profinfer.cli.nothingchosen import nothing_chosen
    from profinfer.model.trace import Trace

    return nothing_chosen(Trace.open(options.output))


def _say_limits(result: RecordResult) -> None:
    """Why operators' probes were taken away, and what could not be kept."""
    switches = len(result.switched)
    if switches:
        many = f"{switches} switches" if switches > 1 else "1 switch"
        click.echo(
            f"  operators were recorded in windows: {many} to keep the limits, "
            f"first because of {result.switched[0]}",
            err=True,
        )
    if result.hopeless:
        click.echo(f"  the limit was not kept: {result.hopeless}", err=True)
