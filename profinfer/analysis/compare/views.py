"""Layer 6: changes as Results. Must not import rich or anything above."""

from __future__ import annotations

import numpy as np
import pandas as pd

from profinfer.analysis import notes
from profinfer.analysis.compare import noise, student
from profinfer.analysis.compare.changes import GROUPS, Changes
from profinfer.analysis.compare.runs import Comparison, Run
from profinfer.analysis.operators import NO_LAYER
from profinfer.analysis.result import Column, Note, Result
from profinfer.units import format_percent, format_things

TIMES = (
    Column("a_ns", "a", "ns", "Time per token in a: mean over its runs.", like="time"),
    Column("b_ns", "b", "ns", "Time per token in b.", like="time"),
    Column("diff_ns", "b - a", "ns", "Difference per token.", like="time", signed=True),
    Column("change", "change", "ratio", "b / a - 1.", signed=True),
)
OWN = Column("own", "own", "ratio", "Change beyond what all operators share.", signed=True)
WAIT = Column(
    "wait_ns", "wait", "ns", "Part of the difference in barriers, mean over threads.",
    like="time", signed=True,
)  # fmt: skip
COMPUTE = Column(
    "compute_ns", "compute", "ns", "Part of the difference in computing, mean over threads.",
    like="time", signed=True, detail=True,
)  # fmt: skip
SURE = (
    Column(
        "verdict", "sure", "text",
        "slower or faster: the own change is no noise; new; gone; moved: on another backend.",
    ),
    Column("low", "low", "ratio", "95 % interval of the own change.", detail=True, signed=True),
    Column("high", "high", "ratio", "Its other end.", detail=True, signed=True),
    Column("own_ns", "own", "ns", "Own change per token.", detail=True, like="time", signed=True),
    Column("p", "p", "ratio", "Chance of as much by noise, Holm's correction included.",
           detail=True),
)  # fmt: skip
TITLES = {
    "kind": "What changed", "role": "By role", "op": "By operator type", "layer": "By layer",
    "node": "By node", "shape": "By shape", "thread": "By thread",
}  # fmt: skip
OUTSIDE = "(outside operators)"


def unit_of(phase: str) -> str:
    """What a phase's time is divided by, in words."""
    return {"decode": "decoded token", "prefill": "prompt token", "graphs": "graph"}.get(
        phase, "token"
    )


def scope(of: Comparison) -> str:
    """Phase, how many tokens of each side are compared, and at which positions."""
    what = "graphs" if of.phase == "graphs" else "tokens"

    def counted(runs: list[Run]) -> str:
        mine = sum(r.samples.n_tokens for r in runs)
        return f"{mine:,} of {sum(r.taken.of_tokens for r in runs):,}"

    parts = [f"{of.phase}: {counted(of.a)} {what} of a, {counted(of.b)} of b"]
    if len(of.runs) > 2:
        parts.append(f"{len(of.a)} and {len(of.b)} runs")
    if of.window:
        parts.append(f"KV positions {of.window[0]:,} to {of.window[1]:,}")
    if of.corrected:
        parts.append("probe cost taken off")
    return ", ".join(parts)


def by(changes: Changes, key: str, top: int | None = None) -> Result:
    """What changed, by "kind", "role", "op", "layer", "node" or "shape"."""
    frame = changes.by(key)
    first = _names(frame, key)
    told = pd.concat([first.frame, frame], axis=1)
    columns = [*first.columns, *TIMES, OWN, WAIT, COMPUTE, *SURE]
    names = [c.name for c in columns]
    told = told.loc[:, ~told.columns.duplicated()][names]
    sums = {c: float(frame[c].sum()) for c in ("a_ns", "b_ns", "wait_ns", "compute_ns")}
    rows = len(told)
    told = told.head(top) if top else told
    rest = {"a_ns": changes.total_a - sums["a_ns"], "b_ns": changes.total_b - sums["b_ns"]}
    told = pd.concat([told, _outside(first.columns[0].name, rest)], ignore_index=True)
    total = {
        "a_ns": changes.total_a,
        "b_ns": changes.total_b,
        "diff_ns": changes.total_b - changes.total_a,
        "change": changes.total_b / changes.total_a - 1 if changes.total_a else None,
        "wait_ns": sums["wait_ns"],
        "compute_ns": sums["compute_ns"],
    }
    extra = [*shared(changes)] if key in ("kind", "role", "op") else []
    if top and top < rows:
        extra.append(Note("info", f"the {top} that differ most of {rows:,}; more: --top N"))
    return Result(f"diff_by_{key}", TITLES[key], scope(changes.of), tuple(columns), told[names],
                  (*losses(changes.of), *extra), total)  # fmt: skip


def _outside(column: str, rest: dict[str, float]) -> pd.DataFrame:
    """The time per token in no operator, as one more row."""
    a, b = rest["a_ns"], rest["b_ns"]
    row = {column: OUTSIDE, **rest, "diff_ns": b - a, "change": b / a - 1 if a > 0 else np.nan,
           "verdict": "", "types": ""}  # fmt: skip
    return pd.DataFrame([row])


class _Named:
    """The columns that say which group a row is."""

    def __init__(self, columns: tuple[Column, ...], frame: pd.DataFrame) -> None:
        self.columns, self.frame = columns, frame


def _names(frame: pd.DataFrame, key: str) -> _Named:
    out = frame[GROUPS[key]].astype(str)
    types = _change(frame["types_a"], frame["types_b"])
    kinds = Column(
        "types", "type", "text", "Type of the weights of a matrix product, else its own."
    )
    if key == "layer":
        out["layer"] = out["layer"].replace("-1", NO_LAYER)
        return _Named((Column("layer", "layer", "text", "Layer."),), out)
    if key in ("role", "op"):
        title = "operator" if key == "op" else "role"
        return _Named((Column(key, title, "text", "What is summed up."),), out)
    if key == "shape":
        out["problem"] = _change(frame["problem_a"], frame["problem_b"])
        out["types"] = types
        shape = Column("problem", "shape", "text", "MxKxN of a matrix product, else the output.")
        return _Named((Column("op", "operator", "text", "Operator type."), shape, kinds), out)
    out["operator"] = (out["label"] + " " + out["op"]).str.strip()
    if key == "node":
        inside = out["layer"] != "-1"
        out["operator"] = (out["operator"] + "  L" + out["layer"]).where(inside, out["operator"])
    columns = [Column("operator", "operator", "text", "Weight or name, and operator type.")]
    if (frame["types_a"] != frame["types_b"])[(frame["a_ns"] > 0) & (frame["b_ns"] > 0)].any():
        out["types"] = types.where(frame["types_a"] != frame["types_b"], "")
        columns.append(kinds)
    out["role"] = frame["role"] if key == "kind" else out["name"]
    what = "role" if key == "kind" else "node"
    columns.append(Column("role", what, "text", "Role, or name of the node.", detail=True))
    return _Named(tuple(columns), out)


def _change(a: pd.Series, b: pd.Series) -> pd.Series:
    """What both have, or "a > b"."""
    one = a.where(a != "", b)
    return one.where((a == b) | (a == "") | (b == ""), a + ">" + b)


def shared(changes: Changes) -> list[Note]:
    """What all operators share, and from where on one of them stands out."""
    learned = changes.noise
    if learned.scatter is None:
        text = "too few operators are the same on both sides to tell what they share"
        return [Note("info", text)]
    level = noise.LEVEL / max(learned.count, 1)
    limit = student.quantile(1 - level, noise.PRIOR_DF + learned.df)
    floor = float(np.expm1(limit * changes.typical_error))
    if floor > 1:
        text = "but they scatter too much for any of them to stand out"
    else:
        text = f"'own' is beyond that, and no noise from about {format_percent(floor, 0)} on"
    text = f"all operators share {100 * float(np.expm1(changes.common)):+.1f} %; {text}"
    return [Note("info", text)]


def losses(of: Comparison) -> list[Note]:
    """What is not compared, and why."""
    out = []
    for side, runs in (("a", of.a), ("b", of.b)):
        if n := int(of.units[f"away_{side}"].sum()):
            text = (
                f"{format_things(n, 'operator')} of {side} ran on other backends, which do not "
                f"tell their times: these are in '{OUTSIDE}'"
            )
            out.append(Note("info", text))
        for run in runs:
            lost = notes.losses(run.trace)
            out += [Note(n.severity, f"{run.trace.path.name}: {n.text}") for n in lost]
        if torn := sum(r.taken.torn for r in runs):
            text = f"{torn:,} calls of {side} are left out: records of their operators are missing"
            out.append(Note("warning", text))
        if held := sum(r.held_back for r in runs):
            text = f"{held:,} tokens of {side} are left out: other processes had its CPUs"
            out.append(Note("info", text))
        if skipped := sum(r.taken.unsampled for r in runs):
            text = f"operators were not recorded during {skipped:,} tokens of {side}, left out here"
            out.append(Note("info", text))
    for run in of.left_out:
        text = (
            f"{run.trace.path.name} is left out: other processes had its CPUs for "
            f"{format_percent(run.held_up)} of its threads' time"
        )
        out.append(Note("warning", text))
    if of.why_all:
        out.append(Note("warning", f"all tokens are compared: {of.why_all}"))
    sizes = [np.median(np.concatenate([r.samples.tokens for r in side])) for side in (of.a, of.b)]
    if sizes[0] != sizes[1]:
        text = (
            f"a call has {sizes[0]:,.0f} tokens in a and {sizes[1]:,.0f} in b: a token is cheaper "
            "among many"
        )
        out.append(Note("warning", text))
    return out


def totals(changes: Changes) -> Result:
    """The time per token alone, of traces without operators."""
    a, b = changes.total_a, changes.total_b
    columns = (Column("what", "what", "text", "What was timed."), *TIMES)
    what = f"calls, per {unit_of(changes.of.phase)}"
    change = b / a - 1 if a else np.nan
    row = {"what": what, "a_ns": a, "b_ns": b, "diff_ns": b - a, "change": change}
    return Result("diff_total", "Time in calls", scope(changes.of), columns, pd.DataFrame([row]),
                  tuple(losses(changes.of)))  # fmt: skip
