"""Layer 7: Results as JSON and CSV, in the units they are stored in. Computes nothing.

The JSON schema is ``profinfer.report/1``, described in ``docs/json.md`` and held to the letter by
``report.schema.json``: keys may be added within a version, which raises its minor number, never
renamed or given another meaning. That of ``profinfer diff`` is in
``docs/diff.md``. Must not import the command line.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from profinfer.analysis.explanations import EXPLANATIONS
from profinfer.analysis.finding import Finding
from profinfer.analysis.result import Result

SCHEMA = "profinfer.report/1"
# Grows when keys are added: 1: minor, findings; 2: phase of results, traces; 3: bound of a prize.
MINOR = 4


def plain(value: Any) -> Any:
    """A value as JSON knows it: numpy numbers become Python's, what is missing becomes None."""
    if value is None or value is pd.NA:
        return None
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        # Counts of nanoseconds that pandas keeps as floats because one of them is missing.
        return int(value) if value.is_integer() and abs(value) < 1 << 53 else round(value, 6)
    return value


def as_object(result: Result) -> dict[str, Any]:
    """One Result as a JSON object."""
    names = [c.name for c in result.columns]
    values = [[plain(v) for v in result.frame[name].tolist()] for name in names]
    total = None
    if result.total is not None:
        total = {k: plain(v) for k, v in result.total.items() if k in names}
    return {
        "name": result.name,
        "title": result.title,
        "scope": result.scope,
        "phase": result.phase,
        "columns": [
            {"name": c.name, "title": c.title, "unit": c.unit, "description": c.description}
            for c in result.columns
        ],
        "rows": [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)],
        "total": total,
        "notes": [{"severity": n.severity, "text": n.text} for n in result.notes],
    }


def finding_object(found: Finding) -> dict[str, Any]:
    """One finding as a JSON object, with its evidence and what it means."""
    about = EXPLANATIONS[found.name]
    prize = None
    if found.prize is not None:
        prize = {
            "total_ns": found.prize.ns,
            "per_token_ns": plain(found.prize.per_token_ns),
            "share": plain(found.prize.share),
            "how": found.prize.how,
            "bound": "at_least" if found.prize.more else "at_most",
        }
    return {
        "name": found.name,
        "kind": about.kind,
        "text": found.text,
        "scope": found.scope,
        "prize": prize,
        "try": found.tries or None,
        "check": about.check,
        "means": about.means,
        "found": about.found,
        "evidence": {
            name: {"value": plain(n.value), "unit": n.unit, "about": n.about}
            for name, n in found.evidence.items()
        },
    }


def to_json(
    results: Sequence[Result],
    trace: dict[str, Any],
    selection: dict[str, Any],
    findings: Sequence[Finding] | None = None,
    others: Sequence[dict[str, Any]] = (),
) -> str:
    """All Results as one JSON document.

    Args:
        results: in the order of the report.
        trace: what the trace says of itself; of several the first one.
        selection: what the user asked for.
        findings: ranked; None where the document is about something else.
        others: further traces.
    """
    head: dict[str, Any] = {
        "schema": SCHEMA,
        "minor": MINOR,
        "trace": trace,
        "selection": selection,
    }
    if others:
        head["traces"] = [trace, *others]
    if findings is not None:
        head["findings"] = [finding_object(found) for found in findings]
    return to_document(head, results)


def to_document(head: dict[str, Any], results: Sequence[Result]) -> str:
    """Results as one JSON document that begins with ``head``."""
    document = {**head, "results": [as_object(result) for result in results]}
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)


def to_csv(result: Result) -> str:
    """One Result as CSV; the header gives each column's unit in brackets. Missing is empty."""
    out = io.StringIO()
    write = csv.writer(out, lineterminator="\n")
    write.writerow([f"{c.name} [{c.unit}]" for c in result.columns])
    columns = [[plain(v) for v in result.frame[c.name].tolist()] for c in result.columns]
    write.writerows(["" if v is None else v for v in row] for row in zip(*columns, strict=True))
    return out.getvalue()
