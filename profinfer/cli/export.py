"""Layer 8: ``profinfer export``: a trace becomes a timeline file.

Owns the options, where the file goes and what is said about it.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import click

from profinfer.cli import options as shared
from profinfer.cli.outfile import created
from profinfer.cli.timelineoptions import ExportOptions, timeline_options
from profinfer.errors import ProfinferError, UsageProblem


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
    from profinfer.cli.timelines import chosen
    from profinfer.render.perfetto import write
    from profinfer.units import format_bytes

    plain = _is_plain(options)  # before the work
    wanted = chosen(options)
    with created(options.output, plain, _failed) as out:
        written = write(wanted.timeline, out)
    for line in (*wanted.said, *wanted.about(written)):
        click.echo(line, err=True)
    click.echo(
        f"Wrote {options.output} ({written.slices:,} slices, {format_bytes(written.bytes)}): "
        "open it at ui.perfetto.dev",
        err=True,
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
@timeline_options
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
    folder: Path | None,
    parquet: Path | None,
    **asked: Any,
) -> None:
    """Write a timeline that ui.perfetto.dev opens, or the tables behind the reports.

    TRACE is a file that `profinfer record` wrote. The same trace always gives the same bytes.
    """
    path = Path(trace)
    options = ExportOptions(path, output or path.with_suffix(".pftrace"), force, **asked)
    into = folder or parquet
    if into is not None:
        form = "csv" if folder is not None else "parquet"
        both = folder is not None and parquet is not None
        if both or output is not None or options.narrowed:
            raise UsageProblem(f"--{form} writes every table whole", "leave out the other options")
        _tables(path, into, form, force)
        return
    export(options)
