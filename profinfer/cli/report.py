"""Layer 8: ``profinfer report``: choose the views, hand them to a renderer.

Decides which views there are and in which order; computes nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from profinfer.cli import options
from profinfer.cli.show import to_terminal
from profinfer.cli.views import (
    BY_EXPERTS,
    PHASES,
    STEPS,
    VIEWS,
    ReportOptions,
    fault_views,
    views,
)
from profinfer.errors import ProfinferError, UsageProblem

if TYPE_CHECKING:
    from profinfer.model.selection import Selection
    from profinfer.model.trace import Trace

# Views of calls and the like, which need no operators.
_NO_OPERATORS = ("token", "generation", "tensor", "prompt", "backend", "context", *STEPS)
_OWN_VIEWS = ("thread", "matmul", *_NO_OPERATORS)


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
    "--against",
    metavar="TRACE",
    help="With --by backend: the same operators in another recording, and who was faster.",
)
@click.option(
    "--device-times",
    metavar="FILE",
    help="With --by backend: what the engine's own profiler wrote (GGML_VK_PERF_LOGGER=1).",
)
@click.option(
    "--explain",
    is_flag=False,
    flag_value="all",
    metavar="[NAME]",
    help="Explain the findings, or one of them: evidence, what to try, how to check.",
)
@click.option("--ledger", is_flag=True, help="Where the whole run went, from start to end.")
@click.option("--experts", is_flag=True, help="Mixture of experts: what was chosen, and reuse.")
@click.option(
    "--html",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write it all as one HTML file with charts instead.",
)
@click.option(
    "--plots",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Write its charts as SVG files there instead.",
)
@click.option("-f", "--force", is_flag=True, help="Let --html and --plots replace any file.")
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
    against: str | None,
    device_times: str | None,
    html: Path | None,
    plots: Path | None,
    force: bool,
) -> None:
    """Print what TRACE says: how fast, where the time went, what is missing.

    Without options: the run, and for decode and prefill where the time goes, by operator type,
    role and layer, the slowest operators, the threads. Warm-up runs are left out.
    """
    op = op and op.upper()
    asked = ReportOptions(
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
        against,
        device_times,
    )
    if html is not None or plots is not None:
        write_files(trace, asked, html, plots, force)
    else:
        report(trace, asked)


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
        click.echo(to_json(results, about(trace), _wanted(asked), found))
    elif asked.form == "csv":
        from profinfer.render.machine import to_csv

        if len(results) != 1 and selections:
            names = ", ".join(f"--phase {s.phase}" for s in selections)
            raise UsageProblem("CSV holds one table, this would be several", f"one of {names}")
        click.echo(to_csv(results[0]), nl=False)
    else:
        to_terminal(results)


def write_files(
    path: str, asked: ReportOptions, page: Path | None, plots: Path | None, force: bool
) -> None:
    """Write the report of the trace at ``path`` as one HTML file, its charts as SVG files.

    Raises:
        TraceError: the file is no trace.
        EmptyTrace: it holds neither calls nor graphs, or none that were asked for.
        UsageProblem: the options contradict each other, or the target holds something else.
        ProfinferError: the target cannot be written.
    """
    from profinfer.cli import html
    from profinfer.model.trace import Trace
    from profinfer.units import format_bytes, format_things

    if asked.special or asked.form != "table" or asked.top:
        option = "--html" if page else "--plots"
        raise UsageProblem(
            f"{option} holds every view",
            f"{option} with --phase, --tokens, --op, --layer or --warmup",
        )
    _check_usage(asked)
    if page is not None:
        html.check_target(page, Path(path), force)
    trace = Trace.open(path)
    _check_level(trace, asked)
    selections = _selections(trace, asked)
    if page is not None:
        size = html.write(page, trace, selections, narrowed=asked.narrowed)
        click.echo(f"Wrote {page} ({format_bytes(size)}): open it in a browser", err=True)
    if plots is not None:
        files = html.write_plots(plots, trace, selections, narrowed=asked.narrowed, force=force)
        click.echo(f"Wrote {format_things(len(files), 'plot')} to {plots}", err=True)


def _explain(trace: Trace, asked: ReportOptions, name: str) -> None:
    """The findings of the whole run, explained."""
    from profinfer.analysis.findings import evidence, findings, result
    from profinfer.cli import explain

    chosen = trace.select()
    found = explain.wanted(findings(trace, chosen), name)
    if asked.form == "json":
        from profinfer.render.machine import to_json

        results = [result(trace, chosen, found), evidence(found)]
        click.echo(to_json(results, about(trace), _wanted(asked), found))
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
    if asked.by in ("token", "prompt", *STEPS) and asked.narrowed:
        raise UsageProblem(f"--by {asked.by} shows whole calls", "leave out --op and --layer")
    if asked.by in STEPS and asked.phase not in (None, "decode", "all"):
        raise UsageProblem(f"--by {asked.by} is about decoded tokens", f"--by {asked.by}")
    if asked.device_times is not None and asked.by != "backend":
        raise UsageProblem("--device-times goes with backends", "--by backend --device-times FILE")
    if asked.against is not None and asked.by != "backend":
        raise UsageProblem("--against compares backends", "--by backend --against OTHER.pf")
    if asked.roofline and asked.counters:
        raise UsageProblem("--roofline and --counters are two views", "give one of them")
    view = "--roofline" if asked.roofline else "--counters" if asked.counters else None
    if view and asked.by in _OWN_VIEWS:
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
    needs_ops = asked.by not in (None, *_NO_OPERATORS)
    needs_ops = needs_ops or asked.against is not None
    needs_ops = needs_ops or asked.narrowed or asked.roofline or asked.corrected
    needs_ops = needs_ops or (asked.counters and not len(trace.system_counters))
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
    if (
        asked.counters
        and not trace.meta.plan.counters
        and (asked.by is not None or not len(trace.system_counters))
    ):
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
    elif asked.tokens is not None or asked.by in STEPS:
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


def about(trace: Trace) -> dict[str, Any]:
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
