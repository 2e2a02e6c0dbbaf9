"""Layer 8: ``profinfer calibrate``: measure this machine's roofs and keep them.

Owns the presentation; what is measured and how is in ``machine/``.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import click

from profinfer.errors import ProfinferError, UsageProblem

if TYPE_CHECKING:
    from profinfer.machine.roofs import Calibration


class NotKept(ProfinferError):
    """There is no calibration to show, or it cannot be written."""


@click.command()
@click.option(
    "--threads",
    metavar="N,N,..",
    help="Numbers of threads to measure; default 1 to all CPUs. Others stay as they were.",
)
@click.option("--show", is_flag=True, help="Print what was measured before; measure nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def command(threads: str | None, show: bool, as_json: bool) -> None:
    """Measure the memory bandwidth and the compute peaks of this machine.

    For each number of threads: bytes read a second, STREAM's triad, 32-bit multiply-adds and 8-bit
    dot products. Takes some seconds, at most half a minute where others use the CPUs. The result
    is kept for this machine; recordings carry it, and reports compare operators with it.
    """
    from profinfer.capture.host import this_machine
    from profinfer.machine import store

    machine = this_machine()
    if show:
        kept = store.load(machine)
        if kept is None:
            raise NotKept(f"no calibration of {machine.key} is kept here", "profinfer calibrate")
        _print(kept, as_json)
        return
    from profinfer.machine.measure import measure, thread_counts

    cpus = len(os.sched_getaffinity(0))
    counts = _counts(threads, cpus) or thread_counts(cpus, machine_cores())
    made = measure(
        machine, counts, progress=lambda n: click.echo(f"measuring {n} of {counts[-1]}", err=True)
    )
    kept = store.load(machine)
    if kept is not None:
        made = _merged(made, kept)
    _print(made, as_json)
    try:
        path = store.save(made)
    except OSError as error:
        raise NotKept(
            f"cannot keep it in {store.folder()}: {error.strerror}", "XDG_STATE_HOME=FOLDER"
        ) from error
    click.echo(f"kept in {path}", err=True)


def _merged(made: Calibration, kept: Calibration) -> Calibration:
    """With what was measured before of other numbers of threads; says what becomes of that."""
    others = [n for n in kept.threads if n not in made.threads]
    if not others:
        return made
    old = f"{', '.join(map(str, others))} thread{'' if others == [1] else 's'}"
    whole = made.with_others_of(kept)
    became = "are kept" if whole.threads != made.threads else f"({kept.method}) are replaced"
    click.echo(f"the roofs of {old}, {kept.created_utc[:10]}, {became}", err=True)
    return whole


def _counts(text: str | None, cpus: int) -> tuple[int, ...]:
    if text is None:
        return ()
    try:
        found = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        found = (0,)
    if found[0] < 1 or found[-1] > 4096:
        raise UsageProblem(f"--threads does not understand '{text}'", "--threads 1,2,4")
    if found[-1] > cpus:
        raise UsageProblem(
            f"{found[-1]} threads would share {cpus} CPUs, and a roof is what a CPU each can do",
            f"--threads {','.join(map(str, [n for n in found if n <= cpus] or [cpus]))}",
        )
    return found


def machine_cores() -> int | None:
    """Physical cores, None where the kernel does not tell."""
    from profinfer.capture.host import describe_host

    cpus = describe_host().topology.get("cpus", {}).values()
    known = {(c.get("package"), c["core"]) for c in cpus if "core" in c}
    return len(known) or None


def _print(calibration: Calibration, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(calibration.to_json(), indent=2))
        return
    from rich.console import Console

    from profinfer.analysis.roofs import table
    from profinfer.render.console import render

    console = Console(highlight=False)
    console.print(render(table(calibration), console))
