"""Layer 8: ``profinfer report``: choose the views, hand them to a renderer.

Decides which views there are and in which order; computes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from profinfer.cli import options
from profinfer.cli.views import (
    BY_EXPERTS,
    PHASES,
    VIEWS,
    ReportOptions,
    fault_views,
    views,
)
from profinfer.errors import ProfinferError, UsageProblem

if TYPE_CHECKING:
    from profinfer.analysis.result import Result
    from profinfer.model.selection import Selection
    from profinfer.model.trace import Trace


class EmptyTrace(ProfinferError):
    """There is nothing to report."""


@click.command(short_help="Print what a trace says.")
@options.trace_argument
@click.option(
    "--by",
    type=click.Choice(VIEWS),
    metavar="VIEW",
    help=f"One view instead of the whole report: {', '.join(VIEWS)}.",
)
@options.phase_option
@options.tokens_option
@options.op_option
@options.layer_option
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="Rows of a long view.")
@options.format_option
@click.option("--warmup", is_flag=True, help="Count warm-up runs, which are left out otherwise.")
@click.option(
    "--roofline", is_flag=True, help="GFLOP/s, GB/s, and how far below the machine's roofs."
)
@click.option(
    "--corrected", is_flag=True, help="Also operators' times without what the probes cost them."
)
@click.option("--faults", is_flag=True, help="Page faults, disk reads, and memory over time.")
@click.option("--counters", is_flag=True, help="What counters counted: see record --counters.")
@click.option(
    "--explain",
    is_flag=False,
    flag_value="all",
    metavar="[NAME]",
    help="Explain the findings, or one of them: evidence, what to try, how to check.",
)
@click.option("--ledger", is_flag=True, help="Where the whole run went, from start to end.")
@click.option("--experts", is_flag=True, help="Mixture of experts: what was chosen, and reuse.")
def command(
    trace: str,
    by: str | None,
    phase: str | None,
    tokens: tuple[int, int] | None,
    op: str | None,
    layer: tuple[int, int] | None,
    top: int | None,
    form: str,
    warmup: bool,
    roofline: bool,
    corrected: bool,
    faults: bool,
    counters: bool,
    explain: str | None,
    ledger: bool,
    experts: bool,
) -> None:
    """Print what TRACE says: how fast, where the time went, what is missing.

    Without options: the run, and for decode and prefill where the time goes, by operator type,
    role and layer, the slowest operators, the threads. Warm-up runs are left out.
    """
    op = op and op.upper()
    report(
        trace,
        ReportOptions(
            by,
            phase,
            tokens,
            op,
            layer,
            top,
            form,
            warmup,
            roofline,
            corrected,
            faults,
            counters,
            explain,
            ledger,
            experts,
        ),
    )


def report(path: str, asked: ReportOptions) -> None:
    """Print the report of the trace at ``path`` to stdout.

    Raises:
        TraceError: the file is no trace.
        EmptyTrace: it holds neither calls nor graphs, or none that were asked for.
        UsageProblem: the options contradict each other or the trace.
    """
    from profinfer.model.trace import Trace

    _check_usage(asked)
    trace = Trace.open(path)
    _check_level(trace, asked)
    if asked.explain is not None:
        _explain(trace, asked, asked.explain)
        return
    selections = [] if asked.faults or asked.ledger else _selections(trace, asked)
    results = list(fault_views(trace, asked) if asked.faults else views(trace, asked, selections))
    if asked.form == "json":
        from profinfer.render.machine import to_json

        found = None
        if not asked.special:
            from profinfer.analysis.findings import findings

            found = findings(trace, trace.select())
        click.echo(to_json(results, _about(trace), _wanted(asked), found))
    elif asked.form == "csv":
        from profinfer.render.machine import to_csv

        if len(results) != 1 and selections:
            names = ", ".join(f"--phase {s.phase}" for s in selections)
            raise UsageProblem("CSV holds one table, this would be several", f"one of {names}")
        click.echo(to_csv(results[0]), nl=False)
    else:
        _print(results)


def _explain(trace: Trace, asked: ReportOptions, name: str) -> None:
    """The findings of the whole run, explained."""
    from profinfer.analysis.findings import evidence, findings, result
    from profinfer.cli import explain

    chosen = trace.select()
    found = explain.wanted(findings(trace, chosen), name)
    if asked.form == "json":
        from profinfer.render.machine import to_json

        results = [result(trace, chosen, found), evidence(found)]
        click.echo(to_json(results, _about(trace), _wanted(asked), found))
    else:
        explain.show(found, name, chosen.description)


def _check_usage(asked: ReportOptions) -> None:
    if asked.explain is not None:
        if asked.other_view or asked.narrowed or asked.tokens or asked.phase or asked.form == "csv":
            raise UsageProblem("--explain is a view of its own", "report TRACE --explain [NAME]")
        return
    if asked.ledger:
        other = asked.by or asked.roofline or asked.counters or asked.faults or asked.corrected
        if other or asked.experts or asked.narrowed or asked.tokens or asked.phase:
            raise UsageProblem("--ledger covers the whole run", "report TRACE --ledger")
        return
    if asked.form == "csv" and asked.by is None:
        raise UsageProblem("--format csv needs one view", "--format csv --by op --phase decode")
    if asked.tokens and asked.phase not in (None, "decode", "all"):
        raise UsageProblem("--tokens counts decoded tokens", "--phase decode --tokens 0:10")
    if asked.by == "token" and asked.narrowed:
        raise UsageProblem("--by token shows whole calls", "leave out --op and --layer")
    if asked.roofline and asked.counters:
        raise UsageProblem("--roofline and --counters are two views", "give one of them")
    view = "--roofline" if asked.roofline else "--counters" if asked.counters else None
    if view and asked.by in ("thread", "token", "generation", "tensor"):
        raise UsageProblem(f"{view} knows no --by {asked.by}", f"{view} --by op")
    if asked.of_experts:
        _check_experts(asked)
    if asked.faults:
        _check_faults(asked)
    elif asked.by == "tensor":
        raise UsageProblem("--by tensor is a view of page faults", "--faults --by tensor")


def _check_experts(asked: ReportOptions) -> None:
    if asked.roofline or asked.counters or asked.faults or asked.corrected:
        raise UsageProblem("what experts were chosen is a view of its own", "--experts alone")
    if asked.by is not None and asked.by not in BY_EXPERTS:
        known = ", ".join(BY_EXPERTS)
        raise UsageProblem(f"--experts knows no --by {asked.by}", f"one of {known}")
    if asked.op not in (None, "MUL_MAT_ID"):
        raise UsageProblem("experts are chosen for MUL_MAT_ID alone", "leave out --op")


def _check_faults(asked: ReportOptions) -> None:
    from profinfer.analysis.memory import KEYS

    if asked.roofline or asked.counters:
        raise UsageProblem("--faults and the other one are two views", "one of the two")
    if asked.narrowed or asked.tokens:
        raise UsageProblem("--faults shows whole phases", "--faults --phase decode --by tensor")
    if asked.by is not None and asked.by not in KEYS:
        raise UsageProblem(f"--faults knows no --by {asked.by}", f"one of {', '.join(KEYS)}")


def _check_level(trace: Trace, asked: ReportOptions) -> None:
    """A clear line for what this trace cannot tell."""
    from profinfer.analysis.correction import probe_cost_ns

    if not len(trace.calls) and not len(trace.graphs):
        if trace.meta.nothing_probed:
            raise EmptyTrace(
                f"{trace.path} holds no call and no graph: {options.NO_ENGINE}",
                "record it again, until the program has generated something",
            )
        raise EmptyTrace(
            f"{trace.path} holds no call and no graph: the program ran no inference while recorded",
            f"profinfer info {trace.path}",
        )
    if asked.faults and not trace.has_faults:
        why = trace.meta.memory.get("why") or "profinfer was older"
        raise UsageProblem(f"{trace.path} holds no page faults: {why}", "profinfer record --faults")
    needs_ops = asked.by not in (None, "token", "generation", "tensor")
    needs_ops = needs_ops or asked.narrowed or asked.roofline or asked.corrected or asked.counters
    if needs_ops and not len(trace.ops):
        level = trace.meta.plan.level or "graph"
        raise UsageProblem(
            f"{trace.path} holds no operators: it was recorded at level {level}",
            "profinfer record --level op -- PROGRAM ...",
        )
    if asked.of_experts and not len(trace.experts):
        _no_experts(trace)
    if asked.corrected and probe_cost_ns(trace) is None:
        raise UsageProblem(
            f"{trace.path} does not say what a probe costs: there is nothing to correct by",
            "leave out --corrected",
        )
    if asked.counters and not trace.meta.plan.counters:
        raise UsageProblem(
            f"{trace.path} was recorded without counters",
            "profinfer record --preset faults -- PROGRAM ...",
        )
    if asked.op is not None and asked.op not in trace.nodes["op"].cat.categories:
        ran = trace.nodes["op"][~trace.nodes["empty"]].unique()
        known = ", ".join(sorted(map(str, ran))[:12])
        raise UsageProblem(f"no operator {asked.op} in this trace", f"one of {known}")


def _no_experts(trace: Trace) -> None:
    if not len(trace.expert_places.node):
        raise UsageProblem(
            f"{trace.path} is of a model without experts: no graph has MUL_MAT_ID",
            f"profinfer report {trace.path}",
        )
    why = trace.meta.experts.get("why") or "profinfer was older"
    if trace.has_experts:
        why = f"{trace.losses['lost_expert_rows']:,} tokens of a layer were lost"
    raise UsageProblem(
        f"{trace.path} does not say which experts were chosen: {why}", "profinfer record --experts"
    )


def _selections(trace: Trace, asked: ReportOptions) -> list[Selection]:
    """One selection per phase that is reported, decode first."""

    def select(phase: str | None, warmup: bool = False) -> Selection:
        return trace.select(
            phase=phase,
            tokens=asked.tokens,
            op=asked.op,
            layer=asked.layer,
            warmup=warmup,
            unsampled=asked.by == "token" or not len(trace.ops),
        )

    if asked.phase == "all" or (asked.warmup and asked.phase is None):
        found = [select(None, True)]
    elif asked.phase is not None:
        found = [select(asked.phase)]
    elif asked.tokens is not None:
        found = [select("decode")]
    elif asked.by == "token":
        found = [select(None)]
    else:
        found = [s for phase in PHASES if not (s := select(phase)).empty]
        found = found or [select(None)]
    found = [s for s in found if not s.empty]
    if not found:
        have = trace.calls["phase"].value_counts()
        said = ", ".join(f"{n} {p}" for p, n in have.items() if n) or "no"
        raise EmptyTrace(
            f"these options select nothing: {trace.path} has {said} calls",
            f"profinfer report {trace.path} --by token",
        )
    if asked.narrowed and not any(trace.sums(s).calls.any() for s in found):
        raise EmptyTrace(
            f"no operator of {trace.path} is selected by these options",
            f"profinfer report {trace.path} --by layer, or --by op, shows what there is",
        )
    return found


def _print(results: list[Result]) -> None:
    """To stdout. Each note once, but every view that something is missing from says so."""
    from rich.console import Console

    from profinfer.analysis.result import Note
    from profinfer.render.console import note_lines, render

    console = Console(highlight=False, soft_wrap=False)
    said: set[str] = set()
    for number, result in enumerate(results):
        if number:
            console.print()
        if result.name == "self_check":
            well = all(n.severity == "info" for n in result.notes)
            told = result.notes
            if well:
                told = (Note("info", f"Self-check: all well. {_sentence(result)}"),)
            else:
                console.print("Self-check: not all is well", style="bold")
            for line in note_lines(told, console.width):
                console.print(line)
            continue
        if result.name == "findings":
            console.print("Findings", style="bold", end="")
            console.print(f"  {result.scope}", style="dim")
            for line in note_lines(result.notes, console.width):
                console.print(line, style="default")
            continue
        fresh = [n for n in result.notes if n.text not in said]
        if any(n.severity != "info" and n.text in said for n in result.notes):
            fresh.append(Note("warning", "not everything was recorded, see the warnings above"))
        said |= {n.text for n in result.notes}
        console.print(render(result, console, footer=False))
        for line in note_lines(fresh, console.width):
            console.print(line)


def _sentence(result: Result) -> str:
    text = result.notes[0].text
    return text[:1].upper() + text[1:] + "."


def _about(trace: Trace) -> dict[str, Any]:
    """What the trace says of itself, for the JSON document."""
    meta = trace.meta
    return {
        "path": str(trace.path),
        "profinfer": meta.profinfer,
        "created_utc": meta.created_utc,
        "argv": list(meta.target.argv),
        "engine": meta.engine.name,
        "engine_version": meta.engine.version,
        "machine": meta.host.machine,
        "cpu_model": meta.host.cpu_model,
        "level": meta.plan.level,
        "complete": trace.reader.complete,
        "losses": {k: n for k, n in trace.losses.items() if n},
    }


def _wanted(asked: ReportOptions) -> dict[str, Any]:
    return {
        "by": asked.by,
        "phase": asked.phase,
        "tokens": asked.tokens,
        "op": asked.op,
        "layer": asked.layer,
        "warmup": asked.warmup,
        "roofline": asked.roofline,
        "faults": asked.faults,
        "counters": asked.counters,
        "explain": asked.explain,
        "ledger": asked.ledger,
        "experts": asked.experts,
    }
