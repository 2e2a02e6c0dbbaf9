"""Layer 8: ``profinfer view``: a trace's timeline in the browser, through ui.perfetto.dev.

Owns what is said and which browser is opened; ``serving`` owns the server.
"""

from __future__ import annotations

import os
import socket
import sys
import tempfile
import webbrowser
from pathlib import Path
from typing import Any

import click

from profinfer.cli import options as shared
from profinfer.cli.serving import PORT, FileServer
from profinfer.cli.timelineoptions import ExportOptions, timeline_options
from profinfer.errors import ProfinferError, UsageProblem


def _is_timeline(path: Path) -> bool:
    """Whether the file is an export already: Perfetto's files begin with a packet."""
    try:
        with path.open("rb") as file:
            return file.read(1) == b"\x0a"
    except OSError:
        return False  # opening it as a recording says what is wrong


def _has_screen() -> bool:
    if sys.platform != "linux":
        return True
    if os.geteuid() == 0 and "SUDO_USER" in os.environ:
        return False  # browsers refuse to run as root on another user's screen
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _say(server: FileServer, *, browser: bool) -> None:
    """Where to look; opens it if there is a screen."""
    remote = "SSH_CONNECTION" in os.environ
    if browser and not remote and _has_screen() and webbrowser.open(server.link):
        click.echo(f"Opened {server.link}", err=True)
    else:
        click.echo(f"Open {server.link}", err=True)
    if remote:
        user = os.environ.get("SUDO_USER") or os.environ.get("USER", "you")
        click.echo(
            "in a browser on your own machine, after this there: "
            f"ssh -N -L {PORT}:127.0.0.1:{PORT} {user}@{socket.gethostname()}",
            err=True,
        )
    click.echo("Waiting for the page to fetch the timeline; Ctrl-C ends.", err=True)


def _write(options: ExportOptions) -> None:
    from profinfer.cli.timelines import chosen
    from profinfer.render.perfetto import write
    from profinfer.units import format_bytes

    wanted = chosen(options)
    try:
        with options.output.open("wb") as out:
            written = write(wanted.timeline, out)
    except OSError as error:
        raise ProfinferError(
            f"cannot write the timeline to {options.output.parent}: {error.strerror}",
            "TMPDIR=FOLDER to use another place, or a part with --tokens A:B",
        ) from error
    for line in (*wanted.said, *wanted.about(written)):
        click.echo(line, err=True)
    click.echo(f"{written.slices:,} slices, {format_bytes(written.bytes)}", err=True)


@click.command("view")
@shared.trace_argument
@timeline_options
@click.option(
    "--browser/--no-browser", default=True, help="Open a browser; default where there is a screen."
)
def command(trace: str, browser: bool, **asked: Any) -> None:
    """Show a trace's timeline at ui.perfetto.dev, in your browser.

    TRACE is a file that `profinfer record` or `profinfer export` wrote. The timeline is read by
    the page from this machine, over loopback, and not uploaded.
    """
    path = Path(trace)
    with tempfile.TemporaryDirectory(prefix="profinfer-view-") as folder:
        options = ExportOptions(path, Path(folder) / "timeline.pftrace", **asked)
        served = path if _is_timeline(path) else options.output
        if served == path and options.narrowed:
            raise UsageProblem(
                f"{path} is a timeline already, no part of it can be chosen",
                "give the recording, the .pf file",
            )
        with FileServer(served) as server:  # before the work: the port may be taken
            if served != path:
                _write(options)
            _say(server, browser=browser)
            try:
                server.run()
            except KeyboardInterrupt as stop:
                raise click.Abort from stop
        click.echo("Fetched: the page has it now.", err=True)
