"""Layer 8: ``profinfer record``: run a program and keep what its inference did."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from profinfer.cli.options import Span
from profinfer.cli.recordargs import (
    counters_of,
    only_of,
    ring_bytes_of,
    seconds_of,
    share_of,
    speed_of,
)
from profinfer.cli.recorded import finish
from profinfer.errors import UsageProblem

if TYPE_CHECKING:
    from profinfer.capture.session import RecordOptions
    from profinfer.probes.plan import ProbePlan


@click.command(
    "record",
    context_settings={"allow_interspersed_args": False, "help_option_names": ["-h", "--help"]},
)
@click.option("-p", "--pid", type=int, help="Record this running process instead of a COMMAND.")
@click.option(
    "--duration",
    metavar="TIME",
    help="End the recording after this time, such as 30s or 2m. Default: when the target ends.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("trace.pf"),
    show_default=True,
    help="The trace file.",
)
@click.option("-f", "--force", is_flag=True, help="Replace an existing trace file.")
@click.option(
    "--level",
    type=click.Choice(["token", "graph", "op"]),
    default="op",
    show_default=True,
    help="How deep to look; each level includes those before it.",
)
@click.option("--ops", metavar="LIST", help="Record only operators of these types: MUL_MAT,ROPE.")
@click.option(
    "--layers", type=Span(), metavar="N|A:B", help="Record only operators of these layers."
)
@click.option(
    "--threads",
    type=click.Choice(["all", "main"]),
    default="all",
    show_default=True,
    help="Threads to record operators of; 'main' are those that begin graphs, and their waits are "
    "not told from computing then.",
)
@click.option(
    "--tokens",
    type=Span(),
    metavar="A:B",
    help="Record operators only in decode steps A up to B of each generation.",
)
@click.option(
    "--every",
    type=click.IntRange(min=1, max=1 << 31),
    metavar="N",
    help="Record operators only in every Nth decode step.",
)
@click.option(
    "--max-overhead",
    metavar="PERCENT",
    help="Keep the cost of the operators' probes below this share of the time, such as 2%, by "
    "recording operators in windows of time.",
)
@click.option(
    "--min-tps",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Record no operators while the target decodes fewer tokens a second.",
)
@click.option(
    "--counters",
    metavar="LIST",
    help="Count at each operator and thread: page-faults,task-clock,cycles,instructions, codes "
    "such as r04cb, names that sysfs lists. At most 6. Of the whole machine over time: "
    "uncore_imc/cas_count_read/, system:context-switches.",
)
@click.option(
    "--preset",
    type=click.Choice(["memory", "stalls", "faults"]),
    help="The counters for a question, instead of their names.",
)
@click.option(
    "--ring-size",
    default="16M",
    show_default=True,
    metavar="SIZE",
    help="Buffer between kernel and recorder, such as 512K or 64M; a power of two.",
)
@click.option(
    "--debug-file",
    "debug_files",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file with symbols that were stripped from the program or a library; repeatable.",
)
@click.option(
    "--progress/--no-progress",
    default=None,
    help="Progress line on stderr. Default: when stderr is a terminal that the target does "
    "not write to.",
)
@click.option(
    "--sched/--no-sched",
    default=True,
    show_default=True,
    help="Record when the target's threads run, wait for a CPU, or sleep.",
)
@click.option(
    "--faults/--no-faults",
    default=True,
    show_default=True,
    help="Record page faults, the tensors that they hit, and what disks are made to read.",
)
@click.option(
    "--experts/--no-experts",
    default=True,
    show_default=True,
    help="Record which experts the tokens are routed to, if the model is a mixture of experts.",
)
@click.option(
    "--dry-run", is_flag=True, help="Set everything up, then stop before the target runs."
)
@click.option("--print-bpf", is_flag=True, help="Print the BPF program and stop.")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def command(
    pid: int | None,
    duration: str | None,
    output: Path,
    force: bool,
    level: str,
    ops: str | None,
    layers: tuple[int, int] | None,
    threads: str,
    tokens: tuple[int, int] | None,
    every: int | None,
    max_overhead: str | None,
    min_tps: float | None,
    counters: str | None,
    preset: str | None,
    ring_size: str,
    debug_files: tuple[Path, ...],
    progress: bool | None,
    sched: bool,
    faults: bool,
    experts: bool,
    dry_run: bool,
    print_bpf: bool,
    command: tuple[str, ...],
) -> int:
    """Run COMMAND, or watch a process, and record every token, graph and operator.

    \b
    profinfer record -- ./llama-completion -m model.gguf -p "Hello" -n 64
    profinfer record -- python app.py
    profinfer record --pid 1234 --duration 30s
    """  # noqa: D301 - click wants the character
    from profinfer.capture.governor import QosLimits
    from profinfer.capture.native import require_native
    from profinfer.capture.preflight import require_recording
    from profinfer.capture.session import RecordOptions, attach, record, rehearse
    from profinfer.capture.steps import Steps
    from profinfer.capture.wanted import Wanted

    if (pid is None) == (not command):
        raise UsageProblem(
            "give either a COMMAND to run or the --pid of a running process",
            hint="profinfer record -- ./llama-completion -m model.gguf",
        )
    ring_bytes = ring_bytes_of(ring_size)
    qos = QosLimits(None if max_overhead is None else share_of(max_overhead), speed_of(min_tps))
    steps = None
    if tokens is not None or every is not None:
        steps = Steps(*(tokens or (0, 1 << 31)), every or 1)
    if steps and level != "op":
        raise UsageProblem(
            f"--tokens and --every choose among operators, and --level {level} has none",
            hint="leave out --level",
        )
    if qos and level != "op":
        raise UsageProblem(
            "--max-overhead and --min-tps take the operators' probes away for a while, and "
            f"--level {level} has none",
            hint="leave out --level",
        )
    counted = counters_of(counters, preset, level)
    only = only_of(ops, layers, threads, level, bool(counted))
    plan, options = prepare(
        pid,
        command,
        RecordOptions(
            argv=list(command),
            exe=Path(),
            output=output,
            force=force,
            level=level,
            wanted=Wanted(
                ring_bytes=ring_bytes,
                sched=sched,
                steps=steps,
                faults=faults,
                counters=tuple(c for c in counted if not c.system),
                only=only,
                experts=experts,
                system=tuple(c for c in counted if c.system),
            ),
            debug_files=debug_files,
            qos=qos,
            duration_s=None if duration is None else seconds_of(duration),
            # A line that rewrites itself on the terminal the target prints to would spoil both.
            progress=sys.stderr.isatty() and not sys.stdout.isatty()
            if progress is None
            else progress,
            shown={"level": level, "ring_bytes": ring_bytes}
            | qos.to_json()
            | only.to_json()
            | (steps.to_json() if steps else {})
            | ({"counters": [counter.name for counter in counted]} if counted else {}),
        ),
    )
    if print_bpf:
        return _print_bpf(plan, options)
    if plan is not None:
        require_native(plan.images[0].elf)
    require_recording()
    if not dry_run and output.exists() and not force:
        raise UsageProblem(
            f"{output} exists already", hint="-o another.pf, or --force to replace it"
        )
    if plan is not None:
        _warn_reduced(plan, level)
    if dry_run:
        if plan is not None:
            rehearse(plan, options)
        click.echo("everything can be set up; nothing was run", err=True)
        return 0
    if pid is not None:
        assert plan is not None
        return finish(attach(plan, pid, options), options)
    return finish(record(plan, options), options)


def prepare(
    pid: int | None, command: tuple[str, ...], options: RecordOptions
) -> tuple[ProbePlan | None, RecordOptions]:
    """The plan, or None when the engine will be loaded later, and what is known of the target."""
    from profinfer.capture.native import require_native
    from profinfer.elf.loader import loader_hook
    from profinfer.elf.modules import open_program
    from profinfer.elf.plugins import plugins
    from profinfer.elf.process import ProcessImages
    from profinfer.probes.plan import make_plan

    if pid is not None:
        program = ProcessImages(pid, options.debug_files).program()
        argv = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")[:-1]
        options = replace(
            options, argv=argv, exe=program.path, shown={**options.shown, "attached": True}
        )
        return make_plan(program, level=options.level), options
    program = open_program(command[0], debug_files=options.debug_files)
    options = replace(options, exe=program.path)
    linked = any("ggml-cpu" in image.roles for image in program.images)
    if linked and next(plugins(program, os.environ, Path.cwd()), None) is None:
        return make_plan(program, level=options.level), options
    # No engine yet, or one whose backends are plug-ins: wait for it to be loaded.
    for image in (*(i.elf for i in program.images), *program.others):
        require_native(image)
    loader_hook(program.path)
    return None, options


def _print_bpf(plan: ProbePlan | None, options: RecordOptions) -> int:
    from profinfer.capture.memory import Memory
    from profinfer.capture.sched import Scheduler
    from profinfer.capture.source import build_source

    if plan is None:
        raise UsageProblem("the program loads its engine later: there is no BPF program yet")
    wanted = options.wanted
    source = build_source(
        plan,
        ring_bytes=wanted.ring_bytes,
        sched=Scheduler.wanted(wanted.sched).definitions,
        steps=wanted.steps,
        memory=Memory(wanted.faults).definitions,
        counters=len(wanted.counters),
        only=wanted.only,
        experts=wanted.experts,
    )
    click.echo("// cflags: " + " ".join(source.cflags))
    click.echo(source.text)
    return 0


def _warn_reduced(plan: ProbePlan, level: str) -> None:
    """Say before the run what this build does not let us see."""
    if level == "op" and plan.ops.mode == "none":
        seen = "graph" if plan.reads_graphs else "token"
        click.echo(f"profinfer: {seen} level only: {plan.ops.why}", err=True)
        click.echo(f"  see: profinfer probes {plan.images[0].elf.path}", err=True)
