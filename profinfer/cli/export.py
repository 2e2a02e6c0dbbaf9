"""Layer 8: ``profinfer export``: a trace becomes a timeline file.

Owns the options, where the file goes and what is said about it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import click

from profinfer.cli import options as shared
from profinfer.errors import ProfinferError, UsageProblem


@dataclass(frozen=True)
class ExportOptions:
    """What the user asked for.

    Attributes:
        trace: the recording.
        output: where the timeline goes.
        force: overwrite it.
        phase: only calls of this phase; "all" for everything, warm-up included.
        tokens: only decode steps whose index lies in [a, b).
    """

    trace: Path
    output: Path
    force: bool
    phase: str
    tokens: tuple[int, int] | None


def _is_plain(options: ExportOptions) -> bool:
    """Whether the output is, or will be, an ordinary file.

    Raises:
        UsageProblem: the place is taken or is no place for a file.
        ProfinferError: the place cannot be looked at.
    """
    path = options.output
    try:
        found = path.stat()
    except FileNotFoundError:
        found = None
    except OSError as error:
        raise _failed(path, error) from error
    if found is not None:
        if stat.S_ISDIR(found.st_mode):
            raise UsageProblem(f"{path} is a directory", f"-o {path / 'out.pftrace'}")
        if options.trace.exists() and os.path.samefile(options.trace, path):
            raise UsageProblem(f"{path} is the recording itself", "another name with -o")
        if not options.force:
            raise UsageProblem(f"{path} exists", "--force to overwrite it, or another name with -o")
    return found is None or stat.S_ISREG(found.st_mode)


@contextlib.contextmanager
def _create(path: Path, whole: bool) -> Iterator[BinaryIO]:
    """The output file.

    Args:
        path: where.
        whole: it appears under its name when it is complete, or not at all; a device or a pipe
            has to be written as it is.

    Raises:
        ProfinferError: it could not be written.
    """
    part = path.with_name(path.name + ".part") if whole else path
    try:
        with part.open("wb") as out:
            yield out
        if whole:
            part.replace(path)
    except OSError as error:
        raise _failed(path, error) from error
    finally:
        if whole:
            part.unlink(missing_ok=True)


def _failed(path: Path, error: OSError) -> ProfinferError:
    hint = None
    if error.errno == errno.ENOSPC:
        hint = "free some space, or export a part with --tokens A:B"
    elif error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EROFS):
        hint = f"a directory that exists and that you may write to, not {path.parent}"
    return ProfinferError(f"cannot write {path}: {error.strerror or error}", hint)


def export(options: ExportOptions) -> None:
    """Write the timeline and say what was written.

    Raises:
        ProfinferError: the trace cannot be read, nothing is selected, or the file cannot be
            written.
    """
    from profinfer.model.trace import Trace
    from profinfer.render.perfetto import write
    from profinfer.render.timeline import Timeline
    from profinfer.units import format_bytes

    plain = _is_plain(options)  # before the work
    trace = Trace.open(options.trace)
    selection = None
    phase = None if options.phase == "all" else options.phase
    if phase is not None or options.tokens is not None:
        selection = trace.select(phase=phase, tokens=options.tokens, unsampled=True)
        if selection.empty:
            raise UsageProblem(
                f"nothing to export: {options.trace} has no such calls ({selection.description})",
                f"profinfer report {options.trace}, to see what there is",
            )
    timeline = Timeline.of_trace(trace, selection)
    if timeline.empty and trace.meta.nothing_probed:
        raise ProfinferError(
            f"nothing to export: {options.trace} holds no call and no graph: {shared.NO_ENGINE}",
            "record it again, until the program has generated something",
        )
    if timeline.empty:
        raise ProfinferError(
            f"nothing to export: {options.trace} holds no call and no graph",
            f"profinfer info {options.trace}, to see how it was recorded",
        )
    with _create(options.output, plain) as out:
        written = write(timeline, out)

    def say(text: str) -> None:
        click.echo(text, err=True)

    for problem in trace.problems:
        say(f"warning: {problem}")
    if timeline.recording.losses:
        lost = ", ".join(f"{name} {n:,}" for name, n in timeline.recording.losses.items())
        say(f"warning: the recording is not whole: {lost}")
    if written.orphans:
        say(f"warning: {written.orphans:,} operators of unknown graphs were left out")
    if written.adjusted:
        say(f"note: {written.adjusted:,} slices were cut to fit into the slice around them")
    say(
        f"Wrote {options.output} ({written.slices:,} slices, {format_bytes(written.bytes)}): "
        "open it at ui.perfetto.dev"
    )


def _tables(path: Path, folder: Path, form: str, force: bool) -> None:
    from profinfer.cli.tablefiles import write_tables
    from profinfer.model.trace import Trace
    from profinfer.units import format_bytes

    trace = Trace.open(path)
    size = write_tables(trace, folder, form, force=force)
    for problem in trace.problems:
        click.echo(f"warning: {problem}", err=True)
    click.echo(f"Wrote {len(trace.tables)} tables to {folder} ({format_bytes(size)})", err=True)


@click.command("export")
@shared.trace_argument
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Where to write; default: the trace's name with .pftrace.",
)
@click.option("-f", "--force", is_flag=True, help="Overwrite the output file.")
@click.option(
    "--phase",
    type=click.Choice(shared.PHASES),
    default="all",
    show_default=True,
    help="Only calls of this phase.",
)
@shared.tokens_option
@click.option(
    "--csv",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write the trace's tables there as CSV files instead (docs/tables.md).",
)
@click.option(
    "--parquet",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help="The same as Parquet files, with units in their schemas; needs pyarrow.",
)
def command(
    trace: str,
    output: Path | None,
    force: bool,
    phase: str,
    tokens: tuple[int, int] | None,
    folder: Path | None,
    parquet: Path | None,
) -> None:
    """Write a timeline that ui.perfetto.dev opens, or the tables behind the reports.

    TRACE is a file that `profinfer record` wrote. The same trace always gives the same bytes.
    """
    path = Path(trace)
    into = folder or parquet
    if into is not None:
        form = "csv" if folder is not None else "parquet"
        both = folder is not None and parquet is not None
        if both or output is not None or tokens is not None or phase != "all":
            raise UsageProblem(f"--{form} writes every table whole", "leave out the other options")
        _tables(path, into, form, force)
        return
    export(ExportOptions(path, output or path.with_suffix(".pftrace"), force, phase, tokens))
