"""Layer 8: ``profinfer graph``: a trace's graph of operators in words, as a drawing, compared.

Owns the options and where the output goes; ``graphchoice`` owns which graph is meant.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from profinfer.cli import options
from profinfer.cli.about import about
from profinfer.cli.graphchoice import Opened, Wanted, opened, part
from profinfer.errors import ProfinferError, UsageProblem

if TYPE_CHECKING:
    from profinfer.analysis.opgraph import OpGraph
    from profinfer.analysis.result import Result

_COLORS = "time|bytes|rate|wait|role|COUNTER"
_THEMES = ("light", "dark", "none")
_FORMS = ("dot", "svg", "png", "pdf")


@click.command("graph")
@options.trace_argument
@click.argument("other", type=click.Path(), metavar="[OTHER]", required=False)
@click.option("--phase", type=click.Choice(options.PHASES[:-1]), help="Default: decode.")
@click.option("--token", type=click.IntRange(min=0), metavar="N", help="Of this decoded token.")
@click.option("--def", "def_id", type=click.IntRange(min=0), metavar="N", help="This definition.")
@click.option("--nodes", type=options.Span(), metavar="A:B", help="Only nodes A up to B.")
@options.layer_option
@click.option("--all", "whole", is_flag=True, help="Draw every operator, however many.")
@click.option("--views", is_flag=True, help="Draw views too, instead of looking through them.")
@click.option(
    "--color", metavar=_COLORS, default="time", show_default=True,
    help="What the colours of a drawing mean; also a counter that was recorded.",
)  # fmt: skip
@click.option("--theme", type=click.Choice(_THEMES), default="light", show_default=True)
@click.option("--dot", is_flag=True, help="Print the graph in Graphviz' language.")
@click.option("--svg", is_flag=True, help="Print a drawing; needs Graphviz.")
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), metavar="FILE",
    help="Draw into this file: .svg, .png, .pdf or .dot.",
)  # fmt: skip
@click.option("-f", "--force", is_flag=True, help="Overwrite the output file.")
@click.option(
    "--format", "form", type=click.Choice(("table", "json")), default="table", show_default=True
)
def command(
    trace: str, other: str | None, dot: bool, svg: bool, output: Path | None, force: bool,
    form: str, **asked: Any,
) -> None:  # fmt: skip
    """Show the graph of operators that a model is: nodes, layers, critical path.

    With a second trace, what one graph has that the other lacks. Without options it is told in
    words; --dot, --svg and -o draw it, one layer where it is large.
    """
    if sum((dot, svg, output is not None)) > 1:
        raise UsageProblem("--dot, --svg and -o each say where the drawing goes", "one of them")
    drawn = "dot" if dot else "svg" if svg else _form_of(output) if output else None
    if drawn and form == "json":
        raise UsageProblem("--format json is for the numbers", "leave out the drawing")
    wanted = Wanted(drawn=drawn is not None, **asked)
    if wanted.nodes is not None and wanted.layer is not None:
        raise UsageProblem("--nodes and --layer each choose a part of the graph", "one of them")
    if other is not None:
        _compare(trace, other, wanted, drawn, output, force=force, form=form)
        return
    found = opened(trace, wanted)
    graph = found.graph
    if drawn is None:
        _print(_tables(graph, found.others, wanted, form), form, wanted, (found,))
        return
    from profinfer.render.dot import to_dot

    places, look = part(graph, wanted)
    _write(to_dot(graph, places, look), drawn, output, force=force)
    if look.subtitle and output is not None:
        click.echo(look.subtitle, err=True)


def _form_of(output: Path) -> str:
    form = output.suffix.removeprefix(".").lower()
    if form not in _FORMS:
        raise UsageProblem(
            f"{output}: the ending says how to draw it", f"-o {output.stem or 'graph'}.svg"
        )
    return form


def _tables(graph: OpGraph, others: int, wanted: Wanted, form: str) -> list[Result]:
    from profinfer.analysis import dagviews, dagwidths

    if wanted.narrowed:
        places, look = part(graph, wanted)
        return [dagviews.nodes(graph, places or [], look.title)]
    told = dagviews.summary(graph, others)
    # Hundreds of steps: for machines; a person sees how many are how wide.
    return [*told, dagwidths.steps(graph)] if form == "json" else told


def _compare(
    trace: str, other: str, wanted: Wanted, drawn: str | None, output: Path | None, *,
    force: bool, form: str,
) -> None:  # fmt: skip
    from profinfer.analysis import dagcompare
    from profinfer.render.dotcompare import compared_dot
    from profinfer.render.dottext import Look

    if wanted.narrowed or wanted.whole or wanted.views:
        raise UsageProblem("two graphs are compared whole", "leave out --nodes, --layer, --all")
    both = opened(trace, wanted), opened(other, wanted)
    first, second = (one.graph for one in both)
    compared = dagcompare.compare(first, second)
    names = _names(trace, other)
    if drawn is None:
        _print(dagcompare.results(compared, names), form, wanted, both)
        return
    title = f"{names[0]} → {names[1]}"
    look = Look(theme=wanted.theme, title=title, subtitle=first.scope)
    _write(compared_dot(compared, look), drawn, output, force=force)


def _names(trace: str, other: str) -> tuple[str, str]:
    """Names of the files without what they share."""
    a, b = Path(trace), Path(other)
    return (a.stem, b.stem) if a.stem != b.stem else (str(a), str(b))


def _print(
    results: list[Result], form: str, wanted: Wanted, found: tuple[Opened, ...]
) -> None:  # fmt: skip
    if form == "json":
        from profinfer.render.machine import to_json

        phases = {one.phase for one in found}
        told = [replace(r, phase=found[0].phase if len(phases) == 1 else None) for r in results]
        selection = {
            "paths": [str(one.trace.path) for one in found],
            "phase": wanted.phase,
            "token": wanted.token,
            "def": wanted.def_id,
            "nodes": wanted.nodes,
            "layer": wanted.layer,
        }
        traces = [about(one.trace) for one in found]
        click.echo(to_json(told, traces[0], selection, others=traces[1:]))
        return
    from rich.console import Console

    from profinfer.render.console import render

    console = Console(highlight=False, soft_wrap=False)
    for number, result in enumerate(results):
        if number:
            console.print()
        console.print(render(result, console))


def _write(dot: str, form: str, output: Path | None, *, force: bool) -> None:
    """The drawing, to stdout or to a file."""
    from profinfer.render.svg import draw

    if output is not None and output.exists() and not force:
        raise UsageProblem(f"{output} exists", "--force to overwrite it, or another name with -o")
    data = dot.encode() if form == "dot" else draw(dot, form)
    if output is None:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    try:
        output.write_bytes(data)
    except OSError as error:
        raise ProfinferError(
            f"cannot write {output}: {error.strerror}", "another name with -o"
        ) from error
    click.echo(f"Wrote {output}", err=True)
