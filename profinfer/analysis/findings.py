"""Layer 6: everything that was found out about a run, ranked by what could be won.

The findings themselves are in ``*findings``, ``bandwidth`` and ``stragglers``; what they mean is in
``explanations``. Must not import rich or above.
"""

from __future__ import annotations

import pandas as pd

from profinfer.analysis import (
    backendfindings,
    expertfindings,
    memoryfindings,
    notes,
    prefillfindings,
    schedfindings,
    stepfindings,
    surroundings,
)
from profinfer.analysis.bandwidth import bandwidth_wall
from profinfer.analysis.explanations import EXPLANATIONS
from profinfer.analysis.finding import Finding, as_notes, ranked
from profinfer.analysis.result import Column, Result
from profinfer.analysis.scopes import Scope
from profinfer.analysis.unchecked import unchecked
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace

COLUMNS = (
    Column("finding", "finding", "id", "Stable key."),
    Column("kind", "kind", "id", "disturbance, setting, limit or start."),
    Column("share", "share", "ratio", "Part of the operators' thread time that it is about."),
    Column("text", "what", "text", "What was found, with numbers."),
    Column("try", "try", "text", "One concrete thing to do about it."),
    Column("prize_ns", "saves", "ns", "Saved in all; missing: cannot be told."),
    Column("prize_per_token_ns", "a token", "ns", "The same a token; missing: paid once."),
    Column("prize_share", "share", "ratio", "The same, as a part of the time of its scope."),
    Column("scope", "scope", "text", "The part of the run that it is about."),
)
EVIDENCE = (
    Column("finding", "finding", "id", "Stable key of the finding."),
    Column("number", "number", "id", "Stable key of the number."),
    Column("value", "value", "text", "In its unit, as JSON stores it."),
    Column("unit", "unit", "id", "Unit of the value."),
    Column("about", "what", "text", "What exactly is meant."),
)


def findings(trace: Trace, selection: Selection) -> list[Finding]:
    """Everything that was found, the largest prize first.

    Args:
        trace: the trace.
        selection: operators that the scheduler's findings look at; the others look at the whole
            run or at the phase that they are about.
    """
    wall = bandwidth_wall(trace)
    # These weigh operators against the whole: what record --ops and --layers left out is missing.
    weighed = []
    if not trace.narrowed.by_node:
        weighed = [*stepfindings.findings(trace), *prefillfindings.findings(trace)]
    return ranked(
        [
            *schedfindings.findings(Scope(trace, selection)),
            *memoryfindings.findings(trace),
            *backendfindings.findings(trace, selection),
            *expertfindings.findings(trace, selection),
            *surroundings.findings(trace),
            *([wall] if wall is not None else []),
            *weighed,
        ]
    )


def result(trace: Trace, selection: Selection, found: list[Finding] | None = None) -> Result:
    """The findings as a view."""
    found = findings(trace, selection) if found is None else found
    rows = [
        (
            f.name, EXPLANATIONS[f.name].kind, f.share, f.text, f.tries,
            f.prize.ns if f.prize else None, f.prize.per_token_ns if f.prize else None,
            f.prize.share if f.prize else None, f.scope,
        )
        for f in found
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=[c.name for c in COLUMNS])
    said = (*notes.losses(trace), *as_notes(found), *unchecked(trace))
    return Result("findings", "Findings", selection.description, COLUMNS, frame, said)


def evidence(found: list[Finding]) -> Result:
    """The numbers that findings rest on, one a row."""
    rows = [
        (f.name, name, number.value, number.unit, number.about)
        for f in found
        for name, number in f.evidence.items()
    ]
    frame = pd.DataFrame(rows, columns=[c.name for c in EVIDENCE], dtype=object)
    return Result("evidence", "Evidence", "of the findings", EVIDENCE, frame)
