"""Layer 8: ``report --html``: the sections become one file. Computes nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import TYPE_CHECKING

from profinfer.cli.outfile import created
from profinfer.errors import ProfinferError, UsageProblem

if TYPE_CHECKING:
    from profinfer.analysis.result import Result
    from profinfer.cli.views import ReportOptions
    from profinfer.model.selection import Selection
    from profinfer.model.trace import Trace
    from profinfer.render.html.section import Page, Section, Tile


def check_target(path: Path, trace: Path, force: bool) -> None:
    """Refuse, before any work, a file that is there and is no report of ours.

    Raises:
        UsageProblem: it is the trace, a folder, or something that profinfer did not write.
    """
    from profinfer.render.html.page import SIGNATURE

    if path.is_dir():
        raise UsageProblem(f"{path} is a folder", f"--html {path / 'report.html'}")
    if not path.exists():
        return
    if trace.exists() and os.path.samefile(path, trace):
        raise UsageProblem(f"{path} is the recording itself", "another name with --html")
    if force or not path.is_file():
        return
    try:
        with path.open("rb") as file:
            begin = file.read(len(SIGNATURE))
    except OSError as error:
        raise _failed(path, error) from error
    if begin and begin != SIGNATURE.encode():
        raise UsageProblem(
            f"{path} exists and is no report of profinfer",
            "--force to replace it, or another name with --html",
        )


def sections_of(trace: Trace, selections: list[Selection], asked: ReportOptions) -> list[Section]:
    """What the page and the plots are made of.

    Raises:
        UsageProblem: there are device times, and no backend whose they could be.
    """
    from profinfer.analysis.backends import has_others
    from profinfer.cli import htmlsections, htmlsource
    from profinfer.cli.views import read_times

    times = None
    if asked.device_times is not None:
        if not has_others(trace):
            raise UsageProblem(
                f"{trace.path} has no other backend than the CPU whose device times these could be",
                "leave out --device-times",
            )
        times = read_times(asked.device_times)
    return htmlsections.sections(htmlsource.source(trace, selections, asked.narrowed, times))


def against_sections(
    trace: Trace, selections: list[Selection], asked: ReportOptions
) -> list[Section]:
    """One for each phase that both recordings have.

    Raises:
        EmptyTrace: there is none.
    """
    from profinfer.cli.reportchecks import EmptyTrace
    from profinfer.cli.views import against_views
    from profinfer.render.html.backendfigures import against
    from profinfer.render.html.section import Section

    name = Path(asked.against or "").name
    made: list[Section] = []
    for result in against_views(trace, selections, asked, None):
        phase = result.scope.split(":")[0]
        chart = against(result, f"against-{phase.replace(' ', '-')}", trace.path.name, name)
        parts = [part for part in (chart, result) if part is not None]
        made.append(Section(f"against-{len(made) + 1}", phase.capitalize(), parts,
                            f"The same operators in {trace.path.name} and {name}."))  # fmt: skip
    if not made:
        raise EmptyTrace(
            f"{asked.against} has no phase that {trace.path} has",
            f"profinfer report {asked.against}",
        )
    return made


def write(path: Path, trace: Trace, selections: list[Selection], sections: list[Section]) -> int:
    """Write the report; returns its bytes.

    Raises:
        ProfinferError: the file cannot be written.
    """
    return write_page(path, _page(trace, selections, sections))


def write_page(path: Path, page: Page) -> int:
    """Write a page; returns its bytes.

    Raises:
        ProfinferError: the file cannot be written.
    """
    from profinfer.render.html.page import render

    text = render(page).encode("utf-8", "replace")
    with created(path, path.is_file() or not path.exists(), _failed) as out:
        out.write(text)
    return len(text)


def write_plots(folder: Path, sections: list[Section], *, force: bool) -> list[Path]:
    """Write every chart and drawing of the report as an SVG file; returns the files.

    Raises:
        UsageProblem: one of them is there already.
        ProfinferError: they cannot be written.
    """
    from profinfer.render.html.charts import Chart
    from profinfer.render.html.standalone import standalone

    charts = [p for section in sections for p in section.parts if isinstance(p, Chart)]
    files = {folder / f"{chart.name}.svg": chart for chart in charts}
    there = [path for path in files if path.exists()]
    if there and not force:
        raise UsageProblem(f"{there[0]} exists", "--force to overwrite it, or another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, chart in files.items():
            path.write_text(standalone(chart), encoding="utf-8", errors="replace")
    except OSError as error:
        raise _failed(folder, error) from error
    return list(files)


def _failed(path: Path, error: OSError) -> ProfinferError:
    hint = "free some space, or another disk" if error.errno == errno.ENOSPC else None
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EROFS, errno.EPERM):
        hint = f"a folder that exists and that you may write to, not {path.parent}"
    return ProfinferError(f"cannot write {path}: {error.strerror or error}", hint)


def _page(trace: Trace, selections: list[Selection], sections: list[Section]) -> Page:
    from profinfer.analysis import findings, notes, overview
    from profinfer.render.html.section import Page

    run = overview.overview(trace)
    row = run.frame.iloc[0]
    name = row["model"] or row["program"]
    facts = [str(row[n]) for n in ("engine", "program", "cpu") if row[n]]
    if row["threads"]:
        facts.append(f"{row['threads']} thread{'' if row['threads'] == '1' else 's'}")
    facts.append(f"level {row['level']}")
    facts.append((trace.meta.created_utc or "")[:16].replace("T", " ") + " UTC")
    main = selections[0]
    wrong = findings.result(trace, trace.select())  # of the whole run, as on the terminal
    missing = notes.of(trace, main)
    return Page(
        str(name),
        facts,
        _tiles(run),
        wrong.notes,
        [n for n in missing if n.severity != "info"],
        sections,
        f"profinfer {trace.meta.profinfer}, from {trace.path.name}; {main.description}",
    )


# Of the overview, what a reader looks for first.
_TILES = ("tpot_p50_ns", "decode_per_s", "ttft_ns", "prefill_per_s", "tpot_p99_ns", "probe_cost")


def _tiles(run: Result) -> list[Tile]:
    from profinfer.render.cells import missing, single
    from profinfer.render.html.section import Tile

    columns = {c.name: c for c in run.columns}
    row = run.frame.iloc[0]
    out = []
    for name in _TILES:
        column = columns[name]
        if missing(row[name]):
            continue
        value, _, unit = single(row[name], column.unit).partition(" ")
        out.append(Tile(column.title, value, unit, column.description))
    return out
