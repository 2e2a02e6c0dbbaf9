"""Layer 8: ``profinfer top``: a live view of a program that runs. Owns the options and the loop."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from profinfer.cli.recordargs import share_of
from profinfer.errors import UsageProblem

if TYPE_CHECKING:
    from profinfer.capture.liveport import LivePort, LiveRecorder
    from profinfer.capture.session import RecordOptions
    from profinfer.probes.plan import ProbePlan

_RING_BYTES = 16 << 20
_WINDOWS = 3  # operators of this many intervals are looked at
_LEAST_WINDOW_S = 4.0
_SLOW_S = 30.0  # without an answer for longer, the recorder hangs


@click.command(
    "top",
    context_settings={"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]},
)
@click.option("-p", "--pid", type=int, help="Watch this running process instead of a COMMAND.")
@click.option(
    "-i",
    "--interval",
    type=click.FloatRange(min=0.2),
    default=2.0,
    show_default=True,
    metavar="SECONDS",
    help="Time between two looks.",
)
@click.option("-n", "count", type=click.IntRange(min=1), metavar="COUNT", help="Looks, then end.")
@click.option(
    "--by",
    type=click.Choice(["role", "op", "layer"]),
    default="role",
    show_default=True,
    help="What operators are grouped by.",
)
@click.option(
    "--max-overhead",
    default="1%",
    show_default=True,
    metavar="PERCENT",
    help="Keep the cost of the operators' probes below this; they are in place a part of the time.",
)
@click.option("--plain", is_flag=True, help="A block of text a look. Default without a terminal.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="json: one object a line and look.",
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where COMMAND's own output goes. Default: profinfer-top.log.",
)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def command(
    pid: int | None,
    interval: float,
    count: int | None,
    by: str,
    max_overhead: str,
    plain: bool,
    form: str,
    output: Path | None,
    command: tuple[str, ...],
) -> int:
    """Watch a program: speed, phase, operators, threads, what probes cost.

    \b
    profinfer top --pid 1234
    profinfer top -- ./llama-completion -m model.gguf -p "Hello" -n 256

    A process that runs goes on when the view ends (q or Ctrl-C). A COMMAND is started with its
    output in a file, and ends with the view.
    """  # noqa: D301 - click wants the character
    from profinfer.capture.governor import QosLimits
    from profinfer.capture.liveport import LiveRecorder
    from profinfer.capture.native import require_native
    from profinfer.capture.preflight import require_recording
    from profinfer.capture.session import RecordOptions
    from profinfer.capture.wanted import Wanted
    from profinfer.cli.record import prepare

    if (pid is None) == (not command):
        raise UsageProblem(
            "give either a COMMAND to run or the --pid of a running process",
            hint="profinfer top --pid $(pidof llama-server)",
        )
    if pid is not None and output is not None:
        raise UsageProblem("--output is for a COMMAND's output", "leave it out with --pid")
    limit = share_of(max_overhead)
    plan, options = prepare(
        pid,
        command,
        RecordOptions(
            argv=list(command),
            exe=Path(),
            output=Path("/nonexistent/live"),
            wanted=Wanted(_RING_BYTES, sched=True, faults=False),
            qos=QosLimits(max_overhead=limit),
            faults=False,
            shown={"level": "op", "ring_bytes": _RING_BYTES},
        ),
    )
    if plan is not None:
        require_native(plan.images[0].elf)
    require_recording()
    if pid is None:
        output = output or Path("profinfer-top.log")
        output.unlink(missing_ok=True)
    window_s = max(_LEAST_WINDOW_S, _WINDOWS * interval)
    recorder = LiveRecorder(lambda port: _record(plan, options, pid, port), window_s, output)
    try:
        return _watch(recorder, options, pid, interval, count, by, limit, plain, form, output)
    finally:
        if recorder.end is None:
            recorder.stop()
            recorder.wait()


def _record(
    plan: ProbePlan | None, options: RecordOptions, pid: int | None, port: LivePort
) -> dict[str, Any]:
    """In the recorder's process: record until the end, and say how it went."""
    from profinfer.capture.session import attach, record

    options = replace(options, live=port)
    if pid is not None:
        assert plan is not None
        result = attach(plan, pid, options)
    else:
        result = record(plan, options)
    status = result.status
    return {
        "status": None if status is None else status.as_exit_code,
        "text": "still runs" if status is None else status.text,
        "calls": result.calls,
        "implausible": None if result.implausible is None else result.implausible.reason,
    }


def _watch(
    recorder: LiveRecorder,
    options: RecordOptions,
    pid: int | None,
    interval: float,
    count: int | None,
    by: str,
    limit: float,
    plain: bool,
    form: str,
    output: Path | None,
) -> int:
    """Look, show, sleep, until the end."""
    from profinfer.cli.screen import open_screen
    from profinfer.cli.topviews import Looks

    os.nice(5)  # whoever only looks comes last
    goes_on = "the program goes on" if pid is not None else "the program ends"
    live = not plain and form == "text" and sys.stdout.isatty()
    end = f"q or Ctrl-C: end; {goes_on}" if live else ""
    looks = Looks(options, by, limit, interval, end)
    shown = 0
    # The first Ctrl-C is a key like q; the second may come while a look is worked out.
    with open_screen(live, sys.stdin) as screen, contextlib.suppress(KeyboardInterrupt):
        asked = time.monotonic()
        while recorder.end is None and (count is None or shown < count):
            if screen.wait(max(asked + interval - time.monotonic(), 0), recorder.fileno()):
                break
            if time.monotonic() < asked + interval:
                # It said something without being asked: that it has ended.
                recorder.take(0.1)
                continue
            asked = time.monotonic()
            recorder.ask()
            told = recorder.take(_SLOW_S)
            if told is None:
                break
            view = looks.look(told, recorder.snapshot(told))
            if view is None:
                continue
            shown += 1
            if form == "json":
                click.echo(json.dumps(looks.as_object(view), allow_nan=False))
            else:
                screen.show(looks.lines(view, screen.width, screen.height))
    if recorder.end is None:
        recorder.stop()
    recorder.wait()
    return _finish(recorder.end or {}, output, shown)


def _finish(end: dict[str, Any], output: Path | None, shown: int) -> int:
    """Say how the target is, and where its output went."""
    if output is not None:
        click.echo(f"profinfer: the program {end.get('text')}; its output is in {output}", err=True)
    elif end.get("text"):
        click.echo(f"profinfer: the program {end['text']}", err=True)
    if not shown and not end.get("calls"):
        click.echo("  it ran no inference while it was watched", err=True)
    return int(end.get("status") or 0)
