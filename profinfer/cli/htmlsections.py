"""Layer 8: which sections the page of ``report --html`` has, and in which order.

A section is one function here: what it shows of a trace, or None. Add one to ``SECTIONS`` and it is
in the page and in its contents. Computes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from profinfer.analysis import (
    counters,
    growth,
    layerroles,
    matmuls,
    memory,
    operators,
    outliers,
    overview,
    prompts,
    roofline,
    scheduling,
    surroundings,
    threads,
    throughput,
    tokens,
)
from profinfer.analysis.roofs import of_trace
from profinfer.analysis.steps import decode_steps
from profinfer.cli.htmlmodel import expert_section, graph_section
from profinfer.cli.htmlsource import Part, Source, parts_of
from profinfer.cli.htmlwhole import backend_section, ledger_section, requests_section
from profinfer.model.selection import Selection
from profinfer.render.html import operatorfigures, threadfigures, tokenfigures
from profinfer.render.html.section import Fold, Section

OUTLIERS_MAX = 300  # slow tokens whose reason is looked for
NODES_MAX = 1000  # rows of single operators
ROWS_MAX = 300  # of other tables that may be long; each says what it leaves out


def sections(made_from: Source) -> list[Section]:
    """All sections that have something to show."""
    made = [make(made_from) for make in SECTIONS]
    return [s for s in made if s is not None and s.parts]


def _tokens(source: Source) -> Section | None:
    decode = next((s for s in source.selections if s.phase in ("decode", None)), None)
    if source.narrowed or decode is None:
        return None
    trace = source.trace
    steps = decode_steps(trace, decode)
    if len(steps.call) < tokenfigures.STEPS_MIN:
        return None
    slow = outliers.outliers(trace, decode, OUTLIERS_MAX)
    found = outliers.found(steps)
    over_time = throughput.throughput(trace, trace.select(unsampled=True))
    return Section(
        "tokens",
        "Tokens",
        parts_of(
            tokenfigures.token_times(steps, slow, *found),
            tokenfigures.token_times_log(steps, *found),
            tokenfigures.throughput(over_time),
            slow if len(slow.frame) else None,
            outliers.percentiles(trace, decode),
            Fold(tokens.tokens(trace, trace.select(unsampled=True))),
        ),
        "How long each decoded token took, how they spread, and why some took far longer.",
    )


def _kv(source: Source) -> Section | None:
    decode = next((s for s in source.selections if s.phase in ("decode", None)), None)
    if source.narrowed or decode is None or not source.has_ops:
        return None
    trace = source.trace
    steps = decode_steps(trace, decode)
    if len(steps.call) < growth.STEPS_MIN:
        return None
    stairs = growth.staircase(trace, decode)
    return Section(
        "kv-cache",
        "KV cache",
        parts_of(
            tokenfigures.growth(steps),
            growth.growth(trace, decode),
            stairs if len(stairs.frame) > 1 else None,
        ),
        "What a token costs more, the more tokens came before it.",
    )


def _where(source: Source, chosen: Selection, key: str, title: str) -> Section:
    """Where a phase's time goes; prefill tells of its prompts as well."""
    trace = source.trace
    parts: list[Part] = []
    if chosen.phase == "prefill":
        every = prompts.prompts([trace])
        parts += parts_of(tokenfigures.prefill_speed(every), every if len(every.frame) else None)
    if chosen.n_calls and not source.narrowed:
        wall = overview.ledger(trace, chosen)
        parts += [operatorfigures.ledger(wall), wall]
    if source.has_ops:
        main = chosen is source.main
        if main:
            picture = operatorfigures.layers(layerroles.layer_roles(trace, chosen), source.colours)
            parts += parts_of(picture)
        parts += [
            operators.by(trace, chosen, "role"),
            Fold(operators.by(trace, chosen, "op")),
            Fold(operators.by(trace, chosen, "layer")),
            Fold(operators.by_node(trace, chosen, NODES_MAX)),
            Fold(operators.by_shape(trace, chosen, ROWS_MAX)),
        ]
    elif chosen.n_graphs:
        parts.append(tokens.graphs(trace, chosen))
    return Section(key, title, parts, "Where the time of a token goes.")


def _main_phase(source: Source) -> Section | None:
    chosen = source.main
    name = (chosen.phase or "all phases").capitalize()
    return _where(source, chosen, "time", name)


def _other_phase(source: Source, number: int) -> Section | None:
    if number >= len(source.selections):
        return None
    chosen = source.selections[number]
    key = f"time-{number + 1}"
    return _where(source, chosen, key, (chosen.phase or "all phases").capitalize())


def _matmuls(source: Source) -> Section | None:
    if not source.has_ops:
        return None
    found = matmuls.matmuls(source.trace, source.main, ROWS_MAX)
    picture = operatorfigures.matmuls(found, source.colours)
    if picture is None:
        return None
    return Section("matmuls", "Matrix products", [picture, found])


def _roofline(source: Source) -> Section | None:
    if not source.has_ops:
        return None
    trace, chosen = source.trace, source.main
    found = of_trace(trace)
    by_shape = roofline.roofline(trace, chosen, "shape", found, ROWS_MAX)
    ran = int(trace.graphs["threads_seen"].to_numpy()[chosen.graphs].max(initial=1))
    peaks = found.calibration.peaks(ran) if found.calibration else None
    picture = operatorfigures.roofline(by_shape, peaks, ran)
    by_role = roofline.roofline(trace, chosen, "role", found)
    return Section(
        "roofline",
        "Memory or compute",
        parts_of(picture, by_role, Fold(by_shape)),
        "How fast operators compute and move data, from shapes and types alone.",
    )


def _threads(source: Source) -> Section | None:
    if not source.has_ops:
        return None
    trace, chosen = source.trace, source.main
    told = threads.threads(trace, chosen, states=False)
    parts = parts_of(threadfigures.threads(told), told)
    if trace.has_sched:
        states = scheduling.thread_states(trace, chosen)
        parts += parts_of(threadfigures.states(states), states)
    return Section("threads", "Threads", parts)


def _counters(source: Source) -> Section | None:
    trace, chosen = source.trace, source.main
    parts = parts_of(
        surroundings.system_counters(trace) if len(trace.system_counters) else None,
        surroundings.frequency(trace) if len(trace.frequency) else None,
    )
    if source.has_ops and trace.meta.plan.counters:
        parts += [
            counters.counters(trace, chosen, "op"),
            counters.counters(trace, chosen, "role"),
            Fold(counters.counters(trace, chosen, "layer")),
            Fold(counters.counters(trace, chosen, "node", ROWS_MAX)),
        ]
    return Section("counters", "Counters", parts, "What the CPUs and the kernel counted.")


def _memory(source: Source) -> Section | None:
    trace = source.trace
    if not trace.has_faults:
        return None
    over_time = memory.over_time(trace, None)
    phase = source.main.phase
    hit = memory.by(trace, "tensor", phase, 50)
    return Section(
        "memory",
        "Memory and disk",
        parts_of(
            memory.overview(trace),
            threadfigures.memory(over_time),
            memory.by_when(trace),
            Fold(hit) if len(hit.frame) else None,
        ),
    )


def _recording(source: Source) -> Section | None:
    trace = source.trace
    return Section(
        "recording",
        "The recording",
        parts_of(
            overview.overview(trace),
            overview.phases(trace) if len(trace.calls) else None,
            overview.self_check(trace),
        ),
    )


_OTHERS = (1, 2, 3)  # phases beside the main one
SECTIONS: tuple[Callable[[Source], Section | None], ...] = (
    _main_phase, _tokens, _kv, _matmuls, expert_section, _roofline, _threads, _counters,
    _memory, backend_section, graph_section,
    *(partial(_other_phase, number=n) for n in _OTHERS),
    *(partial(backend_section, number=n) for n in _OTHERS),
    requests_section, ledger_section, _recording,
)  # fmt: skip
