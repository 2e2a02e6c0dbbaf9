"""Layer 6: the comparison in one sentence, and whether b is worse than is allowed.

Must not import rich or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from profinfer.analysis.compare.changes import Changes
from profinfer.analysis.compare.noise import MATERIAL
from profinfer.analysis.compare.views import unit_of
from profinfer.analysis.compare.whole import DRIFT, Whole
from profinfer.analysis.result import Note
from profinfer.units import TIMES_FROM, format_change, format_ns, format_percent, format_times

_SAME = 0.0005  # logarithm of b / a: nothing that one decimal would show
_NAMED = 2  # operators that the sentence names
_EXPLAINS = (0.1, 1.5)  # own change / whole difference: what can be called a part of it


@dataclass(frozen=True)
class Verdict:
    """What came out.

    Attributes:
        sentence: for people.
        whole: of the time per token.
        culprits: kinds of operators that changed by themselves, most time first.
        notes: what to do for more certainty.
    """

    sentence: str
    whole: Whole
    culprits: pd.DataFrame
    notes: tuple[Note, ...]


def verdict(changes: Changes, whole: Whole) -> Verdict:
    """Say it."""
    kinds = changes.by("kind")
    found = kinds[kinds["verdict"].isin(("slower", "faster"))]
    found = found.loc[found["own_ns"].abs().sort_values(ascending=False, kind="stable").index]
    graph = _graph(changes, kinds)
    if graph:
        # Other operators do the same: the role says what came of it.
        roles = changes.by("role")
        sure = roles[roles["verdict"].isin(("slower", "faster"))]
        sure = sure.assign(label=sure["role"], op="")
        parts = [_whole(changes, whole), graph]
        if len(sure) or len(found):
            parts.append(_operators(changes, whole, sure if len(sure) else found))
    else:
        parts = [_whole(changes, whole), _operators(changes, whole, found)]
    return Verdict("; ".join(parts) + ".", whole, found, tuple(_advice(changes, whole)))


def _percent(log: float) -> str:
    return f"{100 * float(np.expm1(log)):.1f}"


def _whole(changes: Changes, whole: Whole) -> str:
    unit = unit_of(changes.of.phase)
    if abs(whole.change) < _SAME:
        return f"a and b need the same time per {unit}"
    grown = float(np.expm1(whole.change))
    many = grown >= TIMES_FROM - 1
    if many:
        needs = f"b needs {format_change(grown)} the time per {unit}"
        ends = [format_times(float(np.exp(x))) for x in (whole.low, whole.high)]
    else:
        more = "more" if grown > 0 else "less"
        needs = f"b needs {format_change(grown)} {more} time per {unit}"
        ends = [_percent(x) for x in (whole.low, whole.high)]
    if whole.high < 0:  # "less" has been said
        ends = [end.lstrip("-") for end in reversed(ends)]
    interval = f"95 %: {ends[0]} to {ends[1]}"
    if whole.sure:
        return f"{needs} ({interval})"
    if whole.by_runs:
        return f"{needs}, which is not sure ({interval})"
    if whole.drift is None:
        return f"{needs}, which may be the machine's doing"
    return f"{needs}, but runs of one program may differ by {100 * np.expm1(whole.drift):.0f} %"


def _operators(changes: Changes, whole: Whole, found: pd.DataFrame) -> str:
    if not len(changes.of.units):
        return "operators were not recorded on both sides"
    if not len(found):
        return "no operator stands out"
    diff = changes.total_b - changes.total_a
    said = []
    for _, row in found.head(_NAMED).iterrows():
        name = f"{row['label']} {row['op']}".strip()
        part = row["own_ns"] / diff if diff else np.inf
        if whole.sure and _EXPLAINS[0] <= part <= _EXPLAINS[1]:
            said.append(f"{name} explains {100 * part:.0f} % of it")
        else:
            said.append(f"{name} {_by_itself(row['own'])} ({format_ns(abs(row['own_ns']))})")
    if len(found) > _NAMED:
        said.append(f"{len(found) - _NAMED} more")
    return ", ".join(said)


def _by_itself(own: float, least: str = "") -> str:
    """How much slower or faster an operator is, beyond what all share."""
    if own >= TIMES_FROM - 1:
        return f"takes {least}{format_change(own)} as long by itself"
    return f"is {least}{format_change(own)} {'slower' if own > 0 else 'faster'} by itself"


def _graph(changes: Changes, kinds: pd.DataFrame) -> str:
    """Operator types that only one side has, or its CPU, those that take time."""
    least = MATERIAL * changes.total_a
    heavy = np.maximum(kinds["a_ns"], kinds["b_ns"]) >= least
    parts = []
    for word, side in (("gone", "a_ns"), ("new", "b_ns")):
        mine = kinds[heavy & (kinds["verdict"] == word)]
        parts.append((word, mine.groupby("op")[side].sum().sort_values(ascending=False)))
    for side in "ba":
        moved = changes.moved(side)
        parts.append((f"on another backend in {side}", moved[moved >= least]))
    said = []
    for word, spent in parts:
        ops = list(map(str, spent.index))
        if ops:
            more = f" and {len(ops) - 3} more" if len(ops) > 3 else ""
            said.append(f"{word}: {', '.join(ops[:3])}{more}, {format_ns(spent.sum())}")
    return f"the graphs differ ({'; '.join(said)})" if said else ""


def _advice(changes: Changes, whole: Whole) -> list[Note]:
    of = changes.of
    out = []
    if not whole.by_runs:
        n = f"{len(of.a)} and {len(of.b)} runs" if len(of.runs) > 2 else "one run a side"
        text = (
            f"{n} cannot tell how much runs differ: {100 * DRIFT:.0f} % is granted (--drift). "
            "Better: 5 or more a side, recorded in turns: profinfer diff a*.pf vs b*.pf"
        )
        out.append(Note("info", text))
        for side, runs in (("a", of.a), ("b", of.b)):
            if any(r.disturbed for r in runs):
                share = max(r.held_up or 0.0 for r in runs)
                text = (
                    f"other processes had {side}'s CPUs for {100 * share:.0f} % of its threads' "
                    "time: nothing can be said of the whole"
                )
                out.append(Note("warning", text))
    return out


def gate(
    changes: Changes, found: Verdict, limit: float | None, op_limit: float | None
) -> list[str]:
    """Why b fails: sentences; none if it passes.

    Args:
        changes: of the phase.
        found: the verdict on it.
        limit: ratio by which the time per token may grow; None: not asked.
        op_limit: ratio by which a kind of operator may, by itself.

    The time that operators lost by themselves counts even where the whole cannot be told from the
    machine; or roles, where other operators do the same.
    """
    out = []
    unit = unit_of(changes.of.phase)
    if limit is not None:
        own = max(_own(changes.by(key)) for key in ("kind", "role")) / max(changes.total_a, 1.0)
        if found.whole.worse_than(limit):
            least = float(np.expm1(found.whole.at_least))
            grew = "grew to" if least >= TIMES_FROM - 1 else "grew by"
            out.append(
                f"time per {unit} {grew} at least {format_change(least)} (95 %), "
                f"over {100 * limit:g} %"
            )
        elif own > limit:
            out.append(
                f"operators that changed by themselves add at least {format_percent(own)} to the "
                f"time per {unit} (95 %), over {100 * limit:g} %"
            )
    if op_limit is not None:
        bad = found.culprits[found.culprits["low"] > op_limit]
        out += [
            f"{row['label']} {row['op']} {_by_itself(row['low'], 'at least ')} "
            f"(95 %), over {100 * op_limit:g} %"
            for _, row in bad.iterrows()
        ]
    return out


def _own(groups: pd.DataFrame) -> float:
    """What groups that changed by themselves add at least, ns per token."""
    sure = groups[groups["verdict"].isin(("slower", "faster"))]
    return float((sure["own_ns"] * sure["low"] / sure["own"]).sum())
