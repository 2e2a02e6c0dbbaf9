"""Layer 8: ``profinfer scaling --html`` and ``--plots``. Computes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from profinfer._version import __version__
from profinfer.analysis import scaling, scalingsizes
from profinfer.analysis.result import Result
from profinfer.cli import html
from profinfer.cli.htmlsource import parts_of
from profinfer.render.html import scalingfigures as figures
from profinfer.render.html.section import Fold, Page, Section, Tile
from profinfer.units import format_bytes, format_things


def write(
    runs: Sequence[scaling.Run], results: list[Result], page: Path | None, plots: Path | None,
    force: bool,
) -> None:  # fmt: skip
    """Write the comparison as one HTML file, its charts as SVG files.

    Args:
        runs: what is compared.
        results: the tables that a terminal shows, threads and roles first.
        page: the HTML file, or None.
        plots: folder of the charts, or None.
        force: replace what is there.

    Raises:
        UsageProblem: a target holds something else.
        ProfinferError: a target cannot be written.
    """
    for run in runs if page else ():
        assert page is not None
        html.check_target(page, run.trace.path, force)
    sections = _sections(runs, results)
    if page is not None:
        size = html.write_page(page, _page(results, sections))
        click.echo(f"Wrote {page} ({format_bytes(size)}): open it in a browser", err=True)
    if plots is not None:
        files = html.write_plots(plots, sections, force=force)
        click.echo(f"Wrote {format_things(len(files), 'plot')} to {plots}", err=True)


def _sections(runs: Sequence[scaling.Run], results: list[Result]) -> list[Section]:
    threads, roles, *rest = results
    sizes = scalingsizes.by_size(runs)
    counts = scalingsizes.by_counters(runs)
    counted = [n for n, _ in scaling.grouped(runs)]
    made = [
        Section("threads", "Threads", parts_of(figures.speed(threads), threads),
                "How much faster more threads are, and what holds them."),
        Section("roles", "Roles", parts_of(figures.roles(roles, counted), roles)),
        Section("sizes", "Sizes", parts_of(figures.sizes(sizes), Fold(sizes))),
    ]  # fmt: skip
    if counts is not None:
        made.append(Section("counters", "Counters", parts_of(figures.counted(counts), counts)))
    if rest:
        made.append(Section("prompts", "Prompts", rest))
    return made


def _page(results: list[Result], sections: list[Section]) -> Page:
    table = results[0]
    tiles = [
        Tile(format_things(int(n), "thread"), f"{per_s:,.1f}", "tok/s", f"{up:.2f} x")
        for n, per_s, up in zip(
            *(table.frame[c].tolist() for c in ("threads", "per_s", "speedup")), strict=True
        )
    ]
    found = [n for n in table.notes if n.severity == "info"]
    missing = [n for n in table.notes if n.severity != "info"]
    return Page(
        "Threads", [table.scope], tiles, found, missing, sections, f"profinfer {__version__}"
    )
