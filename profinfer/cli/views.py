"""Layer 8: which views a report has, and in which order. Computes nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from profinfer.analysis.devicetimes import DeviceTimes
    from profinfer.analysis.finding import Finding
    from profinfer.analysis.result import Result
    from profinfer.model.selection import Selection
    from profinfer.model.trace import Trace

VIEWS = (
    "op", "layer", "role", "node", "shape", "thread", "token", "generation", "tensor",
    "position", "outlier", "matmul", "prompt", "backend", "context", "expert", "reuse", "cache",
)  # fmt: skip
# Views of decode steps.
STEPS = ("position", "outlier")
EXPERT_VIEWS = ("expert", "reuse", "cache")  # of experts alone; those that follow have others too
BY_EXPERTS = (*EXPERT_VIEWS, "layer", "token")
# Reported one by one, those that the trace has.
PHASES = ("decode", "verify", "prefill", "mixed", "encode")
TOP = 10  # slowest operators in the short report
TOP_VIEW = 20  # rows of a long view when a person reads it


@dataclass(frozen=True)
class ReportOptions:
    """What the user asked for.

    Attributes:
        by: one view, None for the whole report.
        phase: a phase, "all", or None for decode and prefill.
        tokens: decoded tokens [a, b).
        op: an operator type.
        layer: layers [a, b).
        top: rows of long views.
        form: table, json or csv.
        warmup: keep warm-up calls.
        roofline: work and rates instead of computing and waiting.
        corrected: operators' times without the probes' cost, beside the raw ones.
        faults: page faults and disk reads instead.
        counters: what counters counted, instead.
        explain: explain findings instead: the name of one, or "all".
        ledger: where the whole run went, instead.
        experts: what the router of a mixture of experts chose, instead.
        against: another trace that operators are compared with.
        device_times: file with times that the engine's own profiler wrote.
    """

    by: str | None
    phase: str | None
    tokens: tuple[int, int] | None
    op: str | None
    layer: tuple[int, int] | None
    top: int | None
    form: str
    warmup: bool
    roofline: bool = False
    corrected: bool = False
    faults: bool = False
    counters: bool = False
    explain: str | None = None
    ledger: bool = False
    experts: bool = False
    against: str | None = None
    device_times: str | None = None

    @property
    def narrowed(self) -> bool:
        """Only a part of each graph is wanted."""
        return self.op is not None or self.layer is not None

    @property
    def special(self) -> bool:
        """One view, and not the whole report."""
        return self.explain is not None or self.other_view

    @property
    def other_view(self) -> bool:
        """One view other than the explanations."""
        views = (
            self.roofline,
            self.faults,
            self.counters,
            self.ledger,
            self.corrected,
            self.experts,
        )
        return self.by is not None or any(views)

    @property
    def complete(self) -> bool:
        """The whole report, with corrected times or without."""
        return not replace(self, corrected=False).special

    @property
    def of_experts(self) -> bool:
        """Only what the router chose is wanted."""
        return self.experts or self.by in EXPERT_VIEWS


@dataclass(frozen=True)
class WholeRun:
    """What the whole report says of the whole run, whatever phases it goes through.

    Attributes:
        selection: everything but warm-up.
        found: its findings.
    """

    selection: Selection
    found: list[Finding]


def views(
    trace: Trace, asked: ReportOptions, selections: list[Selection], whole: WholeRun | None = None
) -> Iterator[Result]:
    """The Results, in order.

    Args:
        trace: the trace.
        asked: what the user asked for.
        selections: one per phase.
        whole: of the whole report; None where one view is asked for.
    """
    from profinfer.analysis import findings, firsttoken, generations, lifeledger, overview, prompts

    human = asked.form == "table"
    if asked.ledger:
        yield lifeledger.ledger(trace)
        return
    if asked.by == "backend":
        yield from backend_views(trace, selections, asked, TOP_VIEW if human else None)
        return
    if asked.by == "context":
        from profinfer.analysis.contexts import contexts

        yield contexts(trace)
        return
    if asked.by == "generation":
        yield generations.generations(trace, asked.top)
        if asked.form != "csv":
            yield firsttoken.first_tokens(trace, asked.top)
        return
    if asked.by == "prompt":
        yield prompts.prompts([trace])
        return
    top = asked.top or (TOP_VIEW if human else None)
    if asked.roofline:
        yield from _rooflines(trace, asked, selections, top)
        return
    if asked.counters:
        yield from _counters(trace, asked, selections, top)
        return
    if asked.of_experts:
        yield from _experts(trace, asked, selections)
        return
    if asked.by is not None:
        for chosen in selections:
            yield from _told(chosen, _view(trace, asked, chosen, top))
        return
    assert whole is not None
    yield overview.overview(trace)
    if len(trace.calls):
        yield overview.phases(trace)
        answers = generations.generations(trace, TOP if human else None)
        if len(answers.frame) > 1:
            yield answers
    if not human:
        yield lifeledger.ledger(trace)
    found_all = findings.result(trace, whole.selection, whole.found)
    if len(found_all.frame) or not human:
        yield found_all
    for number, chosen in enumerate(selections):
        yield from _told(chosen, _of_phase(trace, asked, chosen, brief=human and number > 0))
    yield overview.self_check(trace)


def _told(chosen: Selection, results: Iterable[Result]) -> Iterator[Result]:
    """Results of one selection, that say its phase."""
    for result in results:
        yield replace(result, phase=chosen.phase)


def _shown(trace: Trace, asked: ReportOptions, chosen: Selection, result: Result) -> Result:
    from profinfer.analysis.correction import corrected

    return corrected(result, trace, chosen) if asked.corrected else result


def _view(
    trace: Trace, asked: ReportOptions, chosen: Selection, top: int | None
) -> Iterator[Result]:
    """One view of one selection."""
    from profinfer.analysis import findings, matmuls, operators, scheduling, threads, tokens
    from profinfer.analysis.finding import as_notes

    human = asked.form == "table"
    if asked.by == "node":
        yield _shown(trace, asked, chosen, operators.by_node(trace, chosen, top))
    elif asked.by == "shape":
        yield _shown(trace, asked, chosen, operators.by_shape(trace, chosen, top))
    elif asked.by == "thread":
        yield threads.threads(trace, chosen, states=not human)
        if trace.has_sched and asked.form != "csv":
            found = as_notes(findings.findings(trace, chosen))
            yield scheduling.thread_states(trace, chosen, found)
    elif asked.by == "token":
        yield tokens.tokens(trace, chosen, asked.top)
    elif asked.by in STEPS:
        yield from _steps(trace, asked, chosen, top)
    elif asked.by == "matmul":
        yield matmuls.matmuls(trace, chosen, top)
    else:
        assert asked.by is not None
        yield _shown(trace, asked, chosen, operators.by(trace, chosen, asked.by))


def _of_phase(
    trace: Trace, asked: ReportOptions, chosen: Selection, *, brief: bool
) -> Iterator[Result]:
    """A phase's part of the whole report; in brief without layers, slowest operators, threads."""
    from profinfer.analysis import operators, overview, scheduling, threads, tokens

    human = asked.form == "table"
    if chosen.n_calls and not asked.narrowed:
        yield overview.ledger(trace, chosen)
    if not len(trace.ops):
        if chosen.n_graphs:
            yield tokens.graphs(trace, chosen)
        return
    yield _shown(trace, asked, chosen, operators.by(trace, chosen, "op"))
    yield _shown(trace, asked, chosen, operators.by(trace, chosen, "role"))
    if brief:
        return  # a person asks for the details of a second phase with --phase
    layers = (operators.layers_brief if human else _by_layer)(trace, chosen)
    yield _shown(trace, asked, chosen, layers)
    slowest = operators.by_node(trace, chosen, asked.top or (TOP if human else None))
    yield _shown(trace, asked, chosen, slowest)
    yield threads.threads(trace, chosen, states=not human)
    if trace.has_sched:
        yield scheduling.thread_states(trace, chosen)


def _rooflines(
    trace: Trace, asked: ReportOptions, selections: list[Selection], top: int | None
) -> Iterator[Result]:
    """The view that was asked for, or by operator, by role and the slowest nodes."""
    from profinfer.analysis.roofline import roofline
    from profinfer.analysis.roofs import of_trace

    found = of_trace(trace)
    short = asked.top or (top and TOP)
    for chosen in selections:
        for by in (asked.by,) if asked.by else ("op", "role", "node"):
            rows = top if asked.by else short
            rows = rows if by in ("node", "shape") else None
            yield from _told(chosen, [roofline(trace, chosen, by, found, rows)])


def _counters(
    trace: Trace, asked: ReportOptions, selections: list[Selection], top: int | None
) -> Iterator[Result]:
    """The view that was asked for, or by operator, by role and the slowest nodes."""
    from profinfer.analysis import surroundings
    from profinfer.analysis.counters import counters

    if asked.by is None and len(trace.system_counters):
        yield surroundings.system_counters(trace)
    if asked.by is None and len(trace.frequency):
        yield surroundings.frequency(trace)
    if not trace.meta.plan.counters:
        return
    short = asked.top or (top and TOP)
    for chosen in selections:
        for by in (asked.by,) if asked.by else ("op", "role", "node"):
            rows = top if asked.by else short
            rows = rows if by in ("node", "shape") else None
            yield from _told(chosen, [counters(trace, chosen, by, rows)])


def backend_views(
    trace: Trace, selections: list[Selection], asked: ReportOptions, top: int | None
) -> Iterator[Result]:
    """By backend: time, copies, operators on the host, messages; those that there are."""
    from profinfer.analysis.devicetimes import device_times

    if asked.against is not None:
        yield from against_views(trace, selections, asked, top)
        return
    for chosen in selections:
        rows = asked.top or top
        by, *parts = backends_of(trace, chosen, rows)
        if asked.form == "csv":
            parts = []
        elif asked.device_times is not None:
            parts.insert(0, device_times(trace, chosen, read_times(asked.device_times), rows))
        yield from _told(chosen, [by, *parts])


def backends_of(trace: Trace, chosen: Selection, top: int | None) -> list[Result]:
    """Of one phase: time by backend, then what there is of copies, operators, messages."""
    from profinfer.analysis import backends, backendwork
    from profinfer.analysis.backendfindings import findings
    from profinfer.analysis.finding import as_notes

    by = backends.by_backend(trace, chosen)
    by = replace(by, notes=(*by.notes, *as_notes(findings(trace, chosen))))
    parts = (
        backends.copies(trace, chosen, top),
        backendwork.operators(trace, chosen, top),
        backendwork.messages(trace, chosen),
    )
    return [by, *(part for part in parts if len(part.frame))]


def against_views(
    trace: Trace, selections: list[Selection], asked: ReportOptions, top: int | None
) -> Iterator[Result]:
    """The comparison with the other recording, of the phases that both have."""
    from profinfer.analysis.comparison import compare
    from profinfer.model.trace import Trace

    assert asked.against is not None
    other = Trace.open(asked.against)
    for chosen in selections:
        same = other.select(phase=chosen.phase, op=asked.op, layer=asked.layer)
        if not same.empty:
            times = None if asked.device_times is None else read_times(asked.device_times)
            yield from _told(chosen, [compare(trace, chosen, other, same, asked.top or top, times)])


def read_times(path: str) -> DeviceTimes:
    """What the engine's own profiler wrote.

    Raises:
        UsageProblem: the file cannot be read, or is something else.
    """
    from profinfer.analysis.devicetimes import read
    from profinfer.errors import UsageProblem

    try:
        text = Path(path).read_text("utf-8", "replace")
    except OSError as error:
        raise UsageProblem(f"{path} cannot be read: {(error.strerror or str(error)).lower()}",
                           "the file that the engine's profiler wrote") from error  # fmt: skip
    return read(text, path)


def _experts(trace: Trace, asked: ReportOptions, selections: list[Selection]) -> Iterator[Result]:
    """The view that was asked for, or all of them."""
    human = asked.form == "table"
    for number, chosen in enumerate(selections):
        yield from _told(chosen, _experts_of(trace, asked, chosen, brief=human and number > 0))


def _experts_of(
    trace: Trace, asked: ReportOptions, chosen: Selection, *, brief: bool
) -> Iterator[Result]:
    from profinfer.analysis import expertpasses, expertreuse, experts

    human = asked.form == "table"
    top = asked.top or ((TOP_VIEW if asked.by else TOP) if human else None)
    every = asked.by is None and not brief
    if asked.by is None:
        yield experts.overview(trace, chosen)
    if asked.by == "layer" or asked.by is None:
        yield experts.by_layer(trace, chosen)
    if asked.by == "reuse" or every:
        yield expertreuse.by_reuse(trace, chosen)
    if asked.by == "cache" or every:
        yield expertreuse.by_cache(trace, chosen, brief=human and not asked.top)
    if asked.by == "token" and asked.layer is not None:
        yield expertpasses.by_pass(trace, chosen, top)
    elif asked.by == "token" or (every and not human):
        yield experts.by_token(trace, chosen, top if asked.top or asked.by is None else None)
    if asked.by == "expert" or every:
        yield experts.by_expert(trace, chosen, top)


def _steps(
    trace: Trace, asked: ReportOptions, chosen: Selection, top: int | None
) -> Iterator[Result]:
    """How decode steps grow and where they jump, or how they spread and which are slow."""
    from profinfer.analysis import growth, outliers

    if asked.by == "position":
        yield growth.growth(trace, chosen)
        if asked.form != "csv" and len(trace.ops):
            yield growth.staircase(trace, chosen)
        return
    if asked.form != "csv":
        yield outliers.percentiles(trace, chosen)
    yield outliers.outliers(trace, chosen, top)


def _by_layer(trace: Trace, selection: Selection) -> Result:
    from profinfer.analysis import operators

    return operators.by(trace, selection, "layer")


def fault_views(trace: Trace, asked: ReportOptions) -> Iterator[Result]:
    """The view that was asked for, or sizes, phases, roles, tensors and memory over time."""
    from profinfer.analysis import memory

    human = asked.form == "table"
    phase = None if asked.phase == "all" else asked.phase
    if asked.by is not None:
        short = human and asked.by in ("tensor", "node")
        yield memory.by(trace, asked.by, phase, asked.top or (TOP_VIEW if short else None))
        return
    yield memory.overview(trace)
    yield memory.by_when(trace)
    for key in ("role", "tensor", "op"):
        short = human and key == "tensor"
        yield memory.by(trace, key, phase, (asked.top or TOP) if short else None)
    yield memory.over_time(trace, 12 if human else None)
