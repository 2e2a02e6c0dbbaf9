"""Layer 8: ``profinfer report``: choose the views, hand them to a renderer.

Decides which views there are and in which order; computes nothing.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from profinfer.cli import options
from profinfer.cli.about import about
from profinfer.cli.reportchecks import EmptyTrace, check_level, check_usage
from profinfer.cli.show import to_terminal
from profinfer.cli.views import (
    PHASES,
    STEPS,
    VIEWS,
    ReportOptions,
    WholeRun,
    fault_views,
    views,
)
from profinfer.errors import UsageProblem

if TYPE_CHECKING:
    from profinfer.model.selection import Selection
    from profinfer.model.trace import Trace


@click.command(short_help="Print what a trace says.")
@options.trace_argument
@click.option(
    "--by",
    type=click.Choice(VIEWS),
    metavar="VIEW",
    help=f"One view instead of the whole report: {', '.join(VIEWS)}.",
)
@options.phase_option
@options.tokens_option
@options.op_option
@options.layer_option
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="Rows of a long view.")
@options.format_option
@click.option("--warmup", is_flag=True, help="Count warm-up runs, which are left out otherwise.")
@click.option(
    "--roofline", is_flag=True, help="GFLOP/s, GB/s, and how far below the machine's roofs."
)
@click.option(
    "--corrected", is_flag=True, help="Also operators' times without what the probes cost them."
)
@click.option("--faults", is_flag=True, help="Page faults, disk reads, and memory over time.")
@click.option("--counters", is_flag=True, help="What counters counted: see record --counters.")
@click.option(
    "--against",
    metavar="TRACE",
    help="With --by backend: the same operators in another recording, and who was faster.",
)
@click.option(
    "--device-times",
    metavar="FILE",
    help="With --by backend or --html: what the engine's profiler wrote (GGML_VK_PERF_LOGGER=1).",
)
@click.option(
    "--explain",
    is_flag=False,
    flag_value="all",
    metavar="[NAME]",
    help="Explain the findings, or one of them: evidence, what to try, how to check.",
)
@click.option("--ledger", is_flag=True, help="Where the whole run went, from start to end.")
@click.option("--experts", is_flag=True, help="Mixture of experts: what was chosen, and reuse.")
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write it all as one HTML file with charts instead.",
)
@click.option(
    "--plots",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write its charts as SVG files there instead.",
)
@click.option("-f", "--force", is_flag=True, help="Let --html and --plots replace any file.")
def command(
    trace: str,
    by: str | None,
    phase: str | None,
    tokens: tuple[int, int] | None,
    op: str | None,
    layer: tuple[int, int] | None,
    top: int | None,
    form: str,
    warmup: bool,
    roofline: bool,
    corrected: bool,
    faults: bool,
    counters: bool,
    explain: str | None,
    ledger: bool,
    experts: bool,
    against: str | None,
    device_times: str | None,
    html: Path | None,
    plots: Path | None,
    force: bool,
) -> None:
    """Print what TRACE says: how fast, where the time went, what is missing.

    Without options: the run, and for decode and prefill where the time goes, by operator type,
    role and layer, the slowest operators, the threads. Warm-up runs are left out.
    """
    op = op and op.upper()
    asked = ReportOptions(
        by=by,
        phase=phase,
        tokens=tokens,
        op=op,
        layer=layer,
        top=top,
        form=form,
        warmup=warmup,
        roofline=roofline,
        corrected=corrected,
        faults=faults,
        counters=counters,
        explain=explain,
        ledger=ledger,
        experts=experts,
        against=against,
        device_times=device_times,
    )
    if html is not None or plots is not None:
        write_files(trace, asked, html, plots, force)
    else:
        report(trace, asked)


def report(path: str, asked: ReportOptions) -> None:
    """Print the report of the trace at ``path`` to stdout.

    Raises:
        TraceError: the file is no trace.
        EmptyTrace: it holds neither calls nor graphs, or none that were asked for.
        UsageProblem: the options contradict each other or the trace.
    """
    from profinfer.model.trace import Trace

    check_usage(asked)
    trace = Trace.open(path)
    check_level(trace, asked)
    if asked.explain is not None:
        _explain(trace, asked, asked.explain)
        return
    selections = [] if asked.faults or asked.ledger else _selections(trace, asked)
    whole = _whole(trace) if asked.complete else None
    if asked.faults:
        results = list(fault_views(trace, asked))
    else:
        results = list(views(trace, asked, selections, whole))
    if asked.form == "json":
        from profinfer.render.machine import to_json

        found = None if asked.special or whole is None else whole.found
        click.echo(to_json(results, about(trace), _wanted(asked), found))
    elif asked.form == "csv":
        from profinfer.render.machine import to_csv

        if len(results) != 1 and selections:
            names = ", ".join(f"--phase {s.phase}" for s in selections)
            raise UsageProblem("CSV holds one table, this would be several", f"one of {names}")
        click.echo(to_csv(results[0]), nl=False)
    else:
        if not any(result.name == "self_check" for result in results):
            from profinfer.analysis.overview import self_check

            results.append(self_check(trace))
        to_terminal(results, brief=not asked.complete)


def write_files(
    path: str, asked: ReportOptions, page: Path | None, plots: Path | None, force: bool
) -> None:
    """Write the report of the trace at ``path`` as one HTML file, its charts as SVG files.

    Raises:
        TraceError: the file is no trace.
        EmptyTrace: it holds neither calls nor graphs, or none that were asked for.
        UsageProblem: the options contradict each other, or the target holds something else.
        ProfinferError: the target cannot be written.
    """
    from profinfer.cli import html
    from profinfer.model.trace import Trace
    from profinfer.units import format_bytes, format_things

    compared = asked.against is not None
    special = replace(asked, by=None, against=None).special if compared else asked.special
    if special or asked.form != "table" or asked.top:
        option = "--html" if page else "--plots"
        raise UsageProblem(
            f"{option} holds every view",
            f"{option} with --phase, --tokens, --op, --layer or --warmup",
        )
    check_usage(asked, page=page is not None)
    if page is not None:
        html.check_target(page, Path(path), force)
    trace = Trace.open(path)
    check_level(trace, asked)
    selections = _selections(trace, asked)
    if compared:
        sections = html.against_sections(trace, selections, asked)
    else:
        sections = html.sections_of(trace, selections, asked)
    if page is not None:
        size = html.write(page, trace, selections, sections)
        click.echo(f"Wrote {page} ({format_bytes(size)}): open it in a browser", err=True)
    if plots is not None:
        files = html.write_plots(plots, sections, force=force)
        click.echo(f"Wrote {format_things(len(files), 'plot')} to {plots}", err=True)


def _whole(trace: Trace) -> WholeRun:
    from profinfer.analysis.findings import findings

    selection = trace.select()
    return WholeRun(selection, findings(trace, selection))


def _explain(trace: Trace, asked: ReportOptions, name: str) -> None:
    """The findings of the whole run, explained."""
    from profinfer.analysis.findings import evidence, result
    from profinfer.analysis.notes import losses
    from profinfer.analysis.unchecked import unchecked
    from profinfer.cli import explain

    whole = _whole(trace)
    chosen, found = whole.selection, explain.wanted(whole.found, name)
    if asked.form == "json":
        from profinfer.render.machine import to_json

        results = [result(trace, chosen, found), evidence(found)]
        click.echo(to_json(results, about(trace), _wanted(asked), found))
    else:
        missing = losses(trace)
        explain.show(found, name, chosen.description, missing, unchecked(trace))


def _selections(trace: Trace, asked: ReportOptions) -> list[Selection]:
    """One selection per phase that is reported, decode first."""

    def select(phase: str | None, warmup: bool = False) -> Selection:
        return trace.select(
            phase=phase,
            tokens=asked.tokens,
            op=asked.op,
            layer=asked.layer,
            warmup=warmup,
            unsampled=asked.by == "token" or not len(trace.ops),
        )

    if asked.phase == "all" or (asked.warmup and asked.phase is None):
        found = [select(None, True)]
    elif asked.phase is not None:
        found = [select(asked.phase)]
    elif asked.tokens is not None or asked.by in STEPS:
        found = [select("decode")]
    elif asked.by == "token":
        found = [select(None)]
    else:
        found = [s for phase in PHASES if not (s := select(phase)).empty]
        found = found or [select(None)]
    found = [s for s in found if not s.empty]
    if not found:
        have = trace.calls["phase"].value_counts()
        said = ", ".join(f"{n} {p}" for p, n in have.items() if n) or "no"
        raise EmptyTrace(
            f"these options select nothing: {trace.path} has {said} calls",
            f"profinfer report {trace.path} --by token",
        )
    if asked.narrowed and not any(trace.sums(s).calls.any() for s in found):
        raise EmptyTrace(
            f"no operator of {trace.path} is selected by these options",
            f"profinfer report {trace.path} --by layer, or --by op, shows what there is",
        )
    return found


def _wanted(asked: ReportOptions) -> dict[str, Any]:
    return {
        "by": asked.by,
        "phase": asked.phase,
        "tokens": asked.tokens,
        "op": asked.op,
        "layer": asked.layer,
        "warmup": asked.warmup,
        "roofline": asked.roofline,
        "faults": asked.faults,
        "counters": asked.counters,
        "explain": asked.explain,
        "ledger": asked.ledger,
        "experts": asked.experts,
    }
