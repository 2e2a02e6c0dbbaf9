"""Layer 8: ``profinfer diff``: which runs are compared, which views are printed, the exit status.

Computes nothing. ``docs/diff.md`` says what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from profinfer.cli import options
from profinfer.errors import ProfinferError, UsageProblem

if TYPE_CHECKING:
    from profinfer.analysis.compare.changes import Changes
    from profinfer.analysis.compare.verdict import Verdict
    from profinfer.analysis.result import Result
    from profinfer.model.trace import Trace

SCHEMA = "profinfer.diff/1"
VIEWS = ("kind", "role", "op", "layer", "node", "shape", "thread", "graph")
BETWEEN = "vs"
WORSE = 3  # exit status of --fail-over
TOP, TOP_SECOND, TOP_VIEW = 12, 5, 20  # rows of the first phase, of further ones, of one view


if TYPE_CHECKING:
    _RatioType = click.ParamType[float]
else:  # not subscriptable before click 8.2
    _RatioType = click.ParamType


class Ratio(_RatioType):
    """``3%`` or ``0.03``."""

    name = "3%"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Parse, or raise a UsageProblem that says how it is written."""
        if isinstance(value, float):
            return value
        text = str(value).strip()
        try:
            number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            number = -1.0
        if not 0 <= number < 100:
            option = param.opts[0] if param else "the option"
            raise UsageProblem(f"{option} does not understand '{text}'", f"{option} 3%")
        return number


@dataclass(frozen=True)
class DiffOptions:
    """What the user asked for.

    Attributes:
        by: one view, None for the short report.
        phase: a phase, None for all that both sides have.
        tokens: decoded tokens [a, b).
        top: rows of long views.
        form: table, json or csv.
        corrected: operators' times without what the probes cost them.
        drift: ratio by which the machine may differ between runs.
        fail_over: ratio by which the time per token may grow.
        fail_over_op: ratio by which a kind of operator may grow by itself.
    """

    by: str | None = None
    phase: str | None = None
    tokens: tuple[int, int] | None = None
    top: int | None = None
    form: str = "table"
    corrected: bool = False
    drift: float | None = None
    fail_over: float | None = None
    fail_over_op: float | None = None


@click.command(short_help="Print what changed between two runs, and how sure that is.")
@click.argument("traces", nargs=-1, required=True, metavar="A.pf B.pf | A.pf... vs B.pf...")
@click.option("--by", type=click.Choice(VIEWS), help="One view instead of the short report.")
@click.option(
    "--phase", type=click.Choice(("decode", "prefill", "mixed", "encode")), help="Only this phase."
)
@options.tokens_option
@click.option("--top", type=click.IntRange(min=1), metavar="N", help="Rows of a long view.")
@options.format_option
@click.option("--corrected", is_flag=True, help="Take from operators what the probes cost them.")
@click.option(
    "--drift", type=Ratio(), metavar="25%",
    help="By how much this machine's speed may differ between two runs, where fewer than three a "
    "side cannot tell.",
)  # fmt: skip
@click.option(
    "--fail-over", type=Ratio(), metavar="3%",
    help="Exit with status 3 if the time per token grew by more than this, with confidence.",
)  # fmt: skip
@click.option(
    "--fail-over-op", type=Ratio(), metavar="10%",
    help="The same if any kind of operator grew by more than this by itself.",
)  # fmt: skip
def command(
    traces: tuple[str, ...],
    by: str | None,
    phase: str | None,
    tokens: tuple[int, int] | None,
    top: int | None,
    form: str,
    corrected: bool,
    drift: float | None,
    fail_over: float | None,
    fail_over_op: float | None,
) -> int:
    """Print what changed from run A to run B, operator by operator, and how sure that is.

    Several runs a side tell the change from the machine's own noise: profinfer diff a*.pf vs b*.pf
    """
    asked = DiffOptions(by, phase, tokens, top, form, corrected, drift, fail_over, fail_over_op)
    return diff(traces, asked)


def sides(words: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Split the arguments at ``vs``; two files need none."""
    at = [i for i, word in enumerate(words) if word == BETWEEN]
    example = "profinfer diff a.pf b.pf, or profinfer diff a1.pf a2.pf vs b1.pf b2.pf"
    if len(at) > 1:
        raise UsageProblem(f"{BETWEEN} stands between two sides, once", example)
    if not at:
        if len(words) != 2:
            raise UsageProblem(f"{len(words)} traces, and which side is each?", example)
        return [words[0]], [words[1]]
    a, b = list(words[: at[0]]), list(words[at[0] + 1 :])
    if not a or not b:
        raise UsageProblem(f"there is no trace on one side of {BETWEEN}", example)
    return a, b


def diff(words: tuple[str, ...], asked: DiffOptions) -> int:
    """Print the comparison to stdout; returns the exit status.

    Raises:
        TraceError: a file is no trace.
        ProfinferError: the sides have no phase in common.
        UsageProblem: the options contradict each other or the traces.
    """
    from profinfer.analysis.compare.changes import Changes
    from profinfer.analysis.compare.runs import compare
    from profinfer.analysis.compare.verdict import gate, verdict
    from profinfer.analysis.compare.whole import measure
    from profinfer.model.trace import Trace

    a, b = ([Trace.open(path) for path in side] for side in sides(words))
    phases = _phases(a, b, asked)
    _check(a, b, phases, asked)
    found: list[tuple[Changes, Verdict]] = []
    for phase in phases:
        of = compare(a, b, phase, tokens=asked.tokens if phase == "decode" else None,
                     corrected=asked.corrected)  # fmt: skip
        if of.a and of.b:
            changes = Changes(of)
            found.append((changes, verdict(changes, measure(of, asked.drift))))
    if not found:
        raise ProfinferError(
            "no call of the sides can be compared: none was recorded whole on both",
            f"profinfer report {a[0].path} --by token",
        )
    worse = gate(*found[0], asked.fail_over, asked.fail_over_op)
    results = list(_views(a, b, found, asked))
    if asked.form == "json":
        from profinfer.render.machine import to_document

        click.echo(to_document(_head(a, b, found, worse, asked), results))
    elif asked.form == "csv":
        from profinfer.render.machine import to_csv

        click.echo(to_csv(results[0]), nl=False)
    else:
        _print(found, results)
    if asked.fail_over is None and asked.fail_over_op is None:
        return 0
    for text in worse:
        click.echo(f"profinfer: FAILED: {text}", err=True)
    if not worse:
        click.echo(f"profinfer: passed: {_passed(found[0][1], asked)}", err=True)
    return WORSE if worse else 0


def _passed(found: Verdict, asked: DiffOptions) -> str:
    limits = [
        f"{100 * limit:g} %{of}"
        for limit, of in ((asked.fail_over, ""), (asked.fail_over_op, " of an operator"))
        if limit is not None
    ]
    text = f"nothing is surely slower by more than {' or '.join(limits)}"
    if not found.whole.by_runs and found.whole.change > (asked.fail_over or 0.0):
        text += "; with so few runs a change of everything cannot be told from the machine"
    return text


def _phases(a: list[Trace], b: list[Trace], asked: DiffOptions) -> list[str]:
    """Phases to compare, those that matter most first."""
    from profinfer.analysis.compare.runs import phases

    have = [[phases(t) for t in side] for side in (a, b)]
    common = [p for p in have[0][0] if all(p in h for side in have for h in side)]
    if asked.phase is not None:
        common = [p for p in common if p == asked.phase]
    elif asked.tokens is not None:
        common = [p for p in common if p == "decode"]
    if common:
        return common
    said = [sorted({p for h in side for p in h}) for side in have]
    text = "; ".join(
        f"{n} has {', '.join(s) or 'no calls'}" for n, s in zip("ab", said, strict=True)
    )
    wanted = asked.phase or ("decode" if asked.tokens else None)
    raise ProfinferError(
        f"the sides have no {wanted or 'phase'} in common: {text}",
        "record both with the same prompt and -n, or look at each with profinfer report",
    )


def _check(a: list[Trace], b: list[Trace], phases: list[str], asked: DiffOptions) -> None:
    from profinfer.analysis.correction import probe_cost_ns

    if asked.form == "csv" and asked.by is None:
        raise UsageProblem("--format csv needs one view", "--format csv --by kind --phase decode")
    if asked.form == "csv" and len(phases) > 1:
        names = ", ".join(f"--phase {p}" for p in phases)
        raise UsageProblem("CSV holds one table, this would be several", f"one of {names}")
    if asked.tokens and asked.phase not in (None, "decode"):
        raise UsageProblem("--tokens counts decoded tokens", "--phase decode --tokens 0:10")
    first = a[0]
    for trace in (*a, *b):
        if trace.narrowed != first.narrowed and len(trace.ops) and len(first.ops):
            raise UsageProblem(
                f"{first.path} and {trace.path} were recorded of different operators or threads",
                "record both with the same --ops, --layers and --threads",
            )
        if asked.corrected and probe_cost_ns(trace) is None:
            raise UsageProblem(
                f"{trace.path} does not say what a probe costs: there is nothing to correct by",
                "leave out --corrected",
            )
        if (asked.by or asked.fail_over_op is not None) and not len(trace.ops):
            level = trace.meta.plan.level or "graph"
            raise UsageProblem(
                f"{trace.path} holds no operators: it was recorded at level {level}",
                "leave out --by and --fail-over-op, or record with --level op",
            )


def _views(
    a: list[Trace], b: list[Trace], found: list[tuple[Changes, Verdict]], asked: DiffOptions
) -> Iterator[Result]:
    """The Results, in order."""
    from profinfer.analysis.compare import conditions, views
    from profinfer.analysis.compare.structure import structure
    from profinfer.analysis.compare.threads import threads

    human = asked.form == "table"
    if asked.by is None:
        yield conditions.setup(a, b)
        held = {r.trace.path: r.held_up for r in (*found[0][0].of.runs, *found[0][0].of.left_out)}
        known = {p: h for p, h in held.items() if h is not None}
        yield conditions.speeds(a, b, known, brief=human)
    for number, (changes, _) in enumerate(found):
        if not len(changes.of.units):
            yield views.totals(changes)
            continue
        top = asked.top or (
            (TOP_VIEW if asked.by else TOP_SECOND if number else TOP) if human else None
        )
        if asked.by == "thread":
            yield threads(changes)
        elif asked.by == "graph":
            yield structure(changes, views.scope(changes.of))
        elif asked.by is not None:
            yield views.by(changes, asked.by, top)
        else:
            yield views.by(changes, "kind", top)
            graph = structure(changes, views.scope(changes.of))
            if not human or (not number and (len(graph.frame) or graph.notes)):
                yield graph


def _print(found: list[tuple[Changes, Verdict]], results: list[Result]) -> None:
    """To stdout: the sentence first, then each view; each note once."""
    from rich.console import Console

    from profinfer.render.console import headline, note_lines, render

    console = Console(highlight=False, soft_wrap=False)
    for _, said in found[:1]:
        for line in headline(said.sentence, console.width):
            console.print(line)
        for line in note_lines(said.notes, console.width):
            console.print(line)
    told = {n.text for n in found[0][1].notes}
    for result in results:
        console.print()
        fresh = [n for n in result.notes if n.text not in told]
        told.update(n.text for n in fresh)
        if result.name == "setup" and not len(result.frame):
            console.print(result.title, style="bold")
        else:
            console.print(render(result, console, footer=False))
        for line in note_lines(fresh, console.width):
            console.print(line)


def _head(
    a: list[Trace], b: list[Trace], found: list[tuple[Changes, Verdict]], worse: list[str],
    asked: DiffOptions,
) -> dict[str, Any]:  # fmt: skip
    """What the JSON document begins with."""
    from profinfer.cli.about import about

    return {
        "schema": SCHEMA,
        "a": [about(t) for t in a],
        "b": [about(t) for t in b],
        "selection": {
            "by": asked.by,
            "phase": asked.phase,
            "tokens": asked.tokens,
            "corrected": asked.corrected,
            "drift": asked.drift,
            "fail_over": asked.fail_over,
            "fail_over_op": asked.fail_over_op,
        },
        "verdicts": [_verdict(changes, said) for changes, said in found],
        "failed": worse,
    }


def _verdict(changes: Changes, said: Verdict) -> dict[str, Any]:
    import math

    from profinfer.analysis.compare.views import scope
    from profinfer.render.machine import plain

    whole = said.whole
    names = ("role", "op", "label", "own", "low", "high", "own_ns", "p", "verdict")
    rows = said.culprits[list(names)].itertuples(index=False)
    return {
        "phase": changes.of.phase,
        "scope": scope(changes.of),
        "sentence": said.sentence,
        "a_ns": plain(changes.total_a),
        "b_ns": plain(changes.total_b),
        "change": plain(math.expm1(whole.change)),
        "low": plain(math.expm1(whole.low)),
        "high": plain(math.expm1(whole.high)),
        "sure": whole.sure,
        "by_runs": whole.by_runs,
        "shared": plain(math.expm1(changes.common)),
        "operators": [dict(zip(names, map(plain, row), strict=True)) for row in rows],
        "notes": [{"severity": n.severity, "text": n.text} for n in said.notes],
    }
