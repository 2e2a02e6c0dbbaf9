"""Layer 6: the same operators in two recordings that ran them on different backends.

What the paper's Fig. 12 shows: which operators won, which lost, by how much; and whether the calls
got faster by as much, or what lies between the operators ate it. Must not import rich or above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from profinfer.analysis import notes
from profinfer.analysis.backendwork import of_selection
from profinfer.analysis.devicetimes import DeviceTimes, on_device
from profinfer.analysis.result import Column, Note, Result
from profinfer.analysis.shapes import with_problem
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace
from profinfer.units import format_ns, format_percent

_KEYS = ["op", "problem", "types"]
# Below this part of a call, a difference is not worth a sentence.
LEAST = 0.02
_COLUMNS = (
    Column("op", "operator", "text", "Operator type."),
    Column("problem", "problem", "text", "MxKxN of a matrix product, else the output's shape."),
    Column("types", "type", "text", "Type of the weights, or of the output."),
    Column(
        "where", "ran on", "text", "Backend here; and, if it is another, in the other recording."
    ),
    Column("backend", "backend", "text", "Backend in this recording.", detail=True),
    Column("other_backend", "other", "text", "Backend in the other recording.", detail=True),
    Column("per_call", "per call", "count", "Times in one call of the model."),
    Column("mean_ns", "mean", "ns", "One operator here.", like="mean"),
    Column("other_mean_ns", "other's", "ns", "One operator in the other recording.", like="mean"),
    Column("speedup", "faster", "number", "The other's time over the time here."),
    Column("saved_ns", "saved", "ns", "Per call of the model; negative: lost."),
)


@dataclass(frozen=True)
class Side:
    """One recording: its operators by key and backend, and the mean time of a call."""

    table: pd.DataFrame
    call_ns: float
    calls: int


def side(trace: Trace, selection: Selection, times: DeviceTimes | None = None) -> Side:
    """Operators of the CPU, and of backends that compute node by node on the host.

    And of a device, by ``times`` of its engine's own profiler.

    Raises:
        UsageProblem: the times cannot be told apart by call, or do not name their operators.
    """
    calls = trace.calls[selection.calls]
    sums = trace.sums(selection)
    nodes = with_problem(trace.nodes)
    cpu = nodes[_KEYS].assign(runs=sums.calls, time_ns=sums.wall, backend="CPU")[sums.calls > 0]
    away = of_selection(trace, selection)
    away = away[away["how"].astype(str) == "computed"].assign(runs=1)
    parts = [cpu, away[[*_KEYS, "runs", "time_ns", "backend"]]]
    if times is not None:
        parts.append(on_device(trace, selection, times))
    both = pd.concat(parts, ignore_index=True)
    both["op"] = both["op"].astype(str)
    grouped = both.groupby(_KEYS, observed=True)
    table = grouped.agg(runs=("runs", "sum"), time_ns=("time_ns", "sum"))
    table["backend"] = grouped["backend"].agg(lambda names: "+".join(sorted(set(names))))
    spent = calls["done_ns"] - calls["begin_ns"]
    return Side(table, float(spent.mean()) if len(calls) else 0.0, len(calls))


def compare(
    trace: Trace,
    selection: Selection,
    other: Trace,
    against: Selection,
    top: int | None = None,
    times: DeviceTimes | None = None,
) -> Result:
    """Operators of the same kind and size in both recordings, by what was won or lost.

    Args:
        trace: this recording.
        selection: which calls of it.
        other: the one to compare with.
        against: which calls of that.
        top: rows.
        times: of the device that this one used, by its engine's own profiler.
    """
    here, there = side(trace, selection, times), side(other, against)
    both = here.table.join(there.table.add_suffix("_other"), how="inner")
    mean, other_mean = (both[f"time_ns{s}"] / both[f"runs{s}"] for s in ("", "_other"))
    per_call = both["runs"] / max(here.calls, 1)
    frame = pd.DataFrame(
        {
            "backend": both["backend"],
            "other_backend": both["backend_other"],
            "per_call": per_call.round().astype("int64"),
            "mean_ns": mean,
            "other_mean_ns": other_mean,
            "speedup": other_mean / mean.where(mean > 0),
            "saved_ns": (other_mean - mean) * per_call,
        }
    ).reset_index()
    alike = frame["backend"] == frame["other_backend"]
    frame["where"] = frame["backend"].where(alike, frame["backend"] + "/" + frame["other_backend"])
    frame = frame.iloc[np.argsort(-frame["saved_ns"].abs().to_numpy(), kind="stable")]
    frame = frame.reset_index(drop=True)
    found = verdicts(frame, here, there)
    only = len(here.table) + len(there.table) - 2 * len(both)
    total = {"saved_ns": float(frame["saved_ns"].sum())} if len(frame) else None
    shown = frame.head(top) if top else frame
    return Result(
        "comparison",
        "Operators, against the other recording",
        f"{selection.description}; against {there.calls:,} calls",
        _COLUMNS,
        shown[[c.name for c in _COLUMNS]],
        (
            *notes.losses(trace),
            *notes.losses(other),
            *notes.cut(len(shown), len(frame)),
            *(Note("info", f"- {outcome.text}") for outcome in found),
            *([] if not only else [_only(only)]),
        ),
        total,
    )


def _kinds(n: int) -> str:
    return f"{n:,} kind{'' if n == 1 else 's'} of operator"


def _only(n: int) -> Note:
    return Note("info", f"{_kinds(n)} ran in one of the two only: left out")


@dataclass(frozen=True)
class Outcome:
    """One thing that going to another backend did.

    Attributes:
        name: ``moved``, ``gain_eaten`` or ``calls``.
        share: of the other recording's time a call; above 0 it is won, of ``gain_eaten`` lost.
        text: a clause.
    """

    name: str
    share: float
    text: str


def verdicts(frame: pd.DataFrame, here: Side, there: Side) -> list[Outcome]:
    """What moved to another backend, what that won, and what the calls have of it."""
    if not here.call_ns or not there.call_ns:
        return []
    out = []
    moved = frame[frame["backend"] != frame["other_backend"]]
    for backend, mine in moved.groupby("backend"):
        won, lost = mine[mine["saved_ns"] > 0], mine[mine["saved_ns"] < 0]
        parts = []
        if len(won):
            parts.append(f"{_kinds(len(won))} won {format_ns(won['saved_ns'].sum())}")
        if len(lost):
            parts.append(f"{len(lost)} lost {format_ns(-lost['saved_ns'].sum())}")
        text = f"on {backend} {' and '.join(parts)} a call"
        out.append(Outcome("moved", float(mine["saved_ns"].sum()) / there.call_ns, text))
    gain = float(moved["saved_ns"].sum())
    calls = there.call_ns - here.call_ns
    eaten = gain - calls
    if gain > LEAST * there.call_ns and eaten > LEAST * there.call_ns:
        where = (
            "to copies and waits between backends, to threads starting and leaving at every split, "
            "and to operators that stayed"
        )
        if eaten <= gain:
            share = format_percent(eaten / gain)
            text = f"of {format_ns(gain)} that operators won a call, {format_ns(eaten)} ({share}) "
            text += f"are lost again: {where}"
        else:
            text = (
                f"operators won {format_ns(gain)} a call, and {format_ns(eaten)} are lost: {where}"
            )
        out.append(Outcome("gain_eaten", eaten / there.call_ns, text))
    if abs(calls) > LEAST * there.call_ns:
        word = "shorter" if calls > 0 else "longer"
        text = f"a call is {format_ns(abs(calls))} ({format_percent(abs(calls) / there.call_ns)}) "
        out.append(Outcome("calls", calls / there.call_ns, f"{text}{word} than in the other"))
    return out
