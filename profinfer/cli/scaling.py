"""Layer 8: ``profinfer scaling``: traces of the same work with different numbers of threads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from profinfer.cli import options
from profinfer.cli.about import about as about_trace
from profinfer.cli.show import to_terminal
from profinfer.errors import UsageProblem


@click.command("scaling", short_help="Compare the same work with more and more threads.")
@click.argument("traces", nargs=-1, required=True, type=click.Path(), metavar="TRACE...")
@click.option(
    "--phase",
    type=click.Choice(("decode", "prefill")),
    default="decode",
    show_default=True,
    help="What is compared; prefill adds its speed over the length of the prompt.",
)
@options.tokens_option
@options.format_option
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write it as one HTML file with charts instead.",
)
@click.option(
    "--plots",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write its charts as SVG files there instead.",
)
@click.option("-f", "--force", is_flag=True, help="Let --html and --plots replace any file.")
def command(
    traces: tuple[str, ...], phase: str, tokens: tuple[int, int] | None, form: str,
    html: Path | None, plots: Path | None, force: bool,
) -> None:  # fmt: skip
    """Compare TRACEs of the same work with 1, 2, 4, ... threads: speed-up, and what stops it.

    Of several traces with the same number of threads the median counts.
    """
    from profinfer.analysis import prompts, scaling, scalingsizes
    from profinfer.model.trace import Trace

    if tokens and phase != "decode":
        raise UsageProblem("--tokens counts decoded tokens", "--phase decode --tokens 0:10")
    drawn = html is not None or plots is not None
    if drawn and form != "table":
        raise UsageProblem("--html and --plots are forms of their own", "leave out --format")
    opened = [Trace.open(path) for path in traces]
    runs = []
    for trace in opened:
        measured = scaling.run(trace, trace.select(phase=phase, tokens=tokens))
        if measured is None:
            raise UsageProblem(
                f"{trace.path} holds no operators of phase {phase}",
                f"profinfer report {trace.path}, to see what there is",
            )
        runs.append(measured)
    results = [scaling.by_threads(runs)]
    if form != "csv":
        results.append(scaling.by_role(runs))
        if phase == "prefill":
            results.append(prompts.prompts(opened))
    if drawn:
        from profinfer.cli import scalingpage

        scalingpage.write(runs, results, html, plots, force)
        return
    if form != "csv" and (counted := scalingsizes.by_counters(runs)) is not None:
        results.append(scalingsizes.brief(counted) if form == "table" else counted)
    if form == "json":
        from profinfer.render.machine import to_json

        results.append(scalingsizes.by_size(runs))
        told = [replace(result, phase=phase) for result in results]
        about = [about_trace(trace) for trace in opened]
        # What this document had before it named its traces.
        first = about[0] | {"paths": list(traces)}
        click.echo(to_json(told, first, {"phase": phase, "tokens": tokens}, others=about[1:]))
    elif form == "csv":
        from profinfer.render.machine import to_csv

        click.echo(to_csv(results[0]), nl=False)
    else:
        to_terminal(results)
