"""Layer 8: sections of the page about the whole run: its ledger, its requests, its backends."""

from __future__ import annotations

from profinfer.analysis import firsttoken, generations, lifeledger
from profinfer.analysis.backends import has_others
from profinfer.analysis.contexts import contexts
from profinfer.analysis.devicetimes import device_times
from profinfer.cli.htmlsource import Source, parts_of
from profinfer.cli.views import backends_of
from profinfer.render.html.section import Fold, Section

ROWS_MAX = 300  # of tables that may be long


def ledger_section(source: Source) -> Section | None:
    """Every nanosecond of the recording in one row."""
    if source.narrowed or not len(source.trace.calls):
        return None
    return Section(
        "run",
        "The whole run",
        [lifeledger.ledger(source.trace)],
        "Every moment of the recording, whatever the program did: loading, calls, between them.",
    )


def requests_section(source: Source) -> Section | None:
    """Prompts and their answers, what each waited for, and the contexts that computed them."""
    trace = source.trace
    if source.narrowed or not len(trace.calls):
        return None
    answers = generations.generations(trace, ROWS_MAX)
    waited = firsttoken.first_tokens(trace, ROWS_MAX)
    models = contexts(trace)
    return Section(
        "requests",
        "Requests",
        parts_of(
            answers if len(answers.frame) else None,
            waited if len(waited.frame) else None,
            models if len(models.frame) > 1 else None,
        ),
        "Each prompt and what was generated after it.",
    )


def backend_section(source: Source, number: int = 0) -> Section | None:
    """Time by backend of a phase, copies between them, operators and messages."""
    trace = source.trace
    if source.narrowed or number >= len(source.selections) or not has_others(trace):
        return None
    chosen = source.selections[number]
    by, *more = backends_of(trace, chosen, ROWS_MAX)
    if source.device_times is not None:
        more.insert(0, device_times(trace, chosen, source.device_times, ROWS_MAX))
    parts = [by, *(map(Fold, more) if number else more)]
    key, title = ("backends", "Backends") if not number else (
        f"backends-{number + 1}", f"Backends, {chosen.phase or 'all phases'}"
    )  # fmt: skip
    return Section(key, title, parts, "What other backends than the CPU were given.")
