"""Layer 6: where the operators' time goes: by operator type, layer, role, node, shape.

Must not import rich or anything above.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from profinfer.analysis import notes, scheduling, shapes
from profinfer.analysis.result import Column, Note, Result
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace

TIME = (
    Column("wall_ns", "time", "ns", "From the release of the operator before to its own, summed."),
    Column("share", "share", "ratio", "Part of the operators' time in this view.", bar=True),
    Column(
        "per_token_ns", "per token", "ns", "Time divided by the tokens of this view.", like="token"
    ),
    Column("calls", "calls", "count", "How often it ran: graphs times nodes."),
)
SPLIT = (
    Column(
        "compute_ns", "compute", "ns", "Computing per token, mean over the threads.", like="token"
    ),
    Column(
        "wait_ns",
        "wait",
        "ns",
        "Waiting in its barrier per token, mean over the threads.",
        like="token",
    ),
    Column("wait_share", "wait", "ratio", "Waiting as a part of computing and waiting."),
)
BY: dict[str, tuple[str, Column, list[str]]] = {
    "op": ("Time by operator type", Column("op", "operator", "text", "Operator type."), ["op"]),
    "role": (
        "Time by role",
        Column("role", "role", "text", "Part that the operator plays in the transformer."),
        ["role"],
    ),
    "layer": (
        "Time by layer",
        Column("layer", "layer", "text", "Layer; none for what belongs to no layer."),
        ["layer"],
    ),
}
NO_LAYER = "none"
BRIEF_LAYERS = 16  # more than these are summed up in the short report


def _grouped(
    trace: Trace, selection: Selection, nodes: pd.DataFrame, keys: list[str]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Sums per key over the selected operators, slowest first, and their totals."""
    sums = trace.sums(selection)
    frame = nodes[keys].assign(
        calls=sums.calls,
        wall_ns=sums.wall,
        compute_ns=sums.compute,
        wait_ns=sums.wait,
        max_ns=sums.slowest,
    )
    summed = ["wall_ns", "calls", "compute_ns", "wait_ns"]
    states = scheduling.per_node(trace, selection) if trace.has_sched else None
    if states is not None:
        states = states.drop(columns=["compute_ns"])
        frame = frame.join(states)
    groups = frame[sums.calls > 0].groupby(keys, observed=True, sort=True)
    # All sums at once: a dictionary of how to work out each column takes ten times as long.
    out = groups[[c for c in frame if c not in (*keys, "max_ns")]].sum()
    out = out.assign(max_ns=groups["max_ns"].max()).reset_index()
    out = out.sort_values("wall_ns", ascending=False, kind="stable").reset_index(drop=True)
    total: dict[str, Any] = {k: int(out[k].sum()) for k in summed}
    if states is not None:
        total |= scheduling.whole_shares(states)
        # Shares take the place of the sums that they are made of.
        out = out.drop(columns=states.columns).join(scheduling.shares(out[states.columns]))
    return out, total


def _states(trace: Trace) -> tuple[Column, ...]:
    """Columns of what the scheduler did, if it was recorded."""
    return scheduling.OPERATOR_STATES if trace.has_sched else ()


def _finished(
    out: pd.DataFrame, total: dict[str, Any], n_tokens: int
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Shares and per-token values."""
    wall = total["wall_ns"]
    out["share"] = out["wall_ns"] / wall if wall else np.nan
    both = out["compute_ns"] + out["wait_ns"]
    out["wait_share"] = (out["wait_ns"] / both).where(both > 0)
    out["mean_ns"] = out["wall_ns"] / out["calls"]
    every = total["compute_ns"] + total["wait_ns"]
    total["share"] = 1.0 if wall else None
    total["wait_share"] = total["wait_ns"] / every if every else None
    out["per_token_ns"] = out["wall_ns"] / n_tokens if n_tokens else np.nan
    total["per_token_ns"] = wall / n_tokens if n_tokens else None
    for name in ("compute_ns", "wait_ns"):
        out[name] = out[name] / n_tokens if n_tokens else np.nan
        total[name] = total[name] / n_tokens if n_tokens else None
    return out, total


def _fused_note(trace: Trace, selection: Selection) -> list[Note]:
    fused = trace.sums(selection).fused
    if not fused:
        return []
    return [Note("info", f"{fused:,} operators ran fused: their time stands at the last one")]


def in_layer_order(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows by layer number, -1 last and named: what belongs to no layer."""
    place = frame["layer"].where(frame["layer"] >= 0, 1 << 30)
    frame = frame.iloc[place.argsort(kind="stable")].reset_index(drop=True)
    frame["layer"] = frame["layer"].astype(str).replace("-1", NO_LAYER)
    return frame


def by(trace: Trace, selection: Selection, key: str) -> Result:
    """Time by "op", "role" or "layer"."""
    title, column, keys = BY[key]
    out, total = _grouped(trace, selection, trace.nodes, keys)
    out, total = _finished(out, total, selection.n_tokens)
    if key == "layer":
        out = in_layer_order(out)
        inferred = bool(trace.nodes["layer_inferred"].any())
    columns = (column, *TIME, *SPLIT, *_states(trace))
    extra = _fused_note(trace, selection) if key == "op" else []
    if key == "layer" and inferred:
        extra = [Note("info", "unnamed nodes count to the layer of the node before them")]
    return Result(
        f"operators_by_{key}",
        title,
        selection.description,
        columns,
        out[[c.name for c in columns]],
        (*notes.of(trace, selection), *notes.elsewhere(trace, selection), *extra),
        total,
    )


def layers_brief(trace: Trace, selection: Selection, top: int = 5) -> Result:
    """Time by layer; of many layers the slowest, the median and the fastest."""
    full = by(trace, selection, "layer")
    frame = full.frame
    inside = frame[frame["layer"] != NO_LAYER]
    if len(inside) <= BRIEF_LAYERS:
        return full
    order = inside.sort_values("wall_ns", ascending=False, kind="stable")
    middle, last = order.iloc[[len(order) // 2]], order.iloc[[-1]]
    middle = middle.assign(layer=[f"median ({middle['layer'].iloc[0]})"])
    last = last.assign(layer=[f"fastest ({last['layer'].iloc[0]})"])
    brief = pd.concat([order.head(top), middle, last, frame[frame["layer"] == NO_LAYER]])
    text = f"the {top} slowest of {len(order)} layers; all of them: --by layer"
    return Result(
        "layers_brief",
        full.title,
        full.scope,
        full.columns,
        brief.reset_index(drop=True),
        (*full.notes, Note("info", text)),
        full.total,
    )


def by_node(trace: Trace, selection: Selection, top: int | None = None) -> Result:
    """The slowest individual operators, each named node over all graphs."""
    nodes = shapes.with_problem(trace.nodes)
    keys = ["name", "op", "weight"]
    out, total = _grouped(trace, selection, nodes, keys)
    out, _ = _finished(out, total, selection.n_tokens)
    rows = len(out)
    out = out.head(top) if top else out
    ran = np.flatnonzero(trace.sums(selection).calls)
    seen = nodes.iloc[ran][[*keys, "problem", "types", "layer"]].astype(
        {"name": str, "op": str, "weight": str}
    )
    facts = seen.groupby(keys, sort=False).agg(
        problem=("problem", "last"),
        shapes=("problem", "nunique"),
        types=("types", "last"),
        layer=("layer", "last"),
    )
    out = out.astype({"name": str, "op": str, "weight": str}).join(facts, on=keys)
    several = out["shapes"] > 1
    out["problem"] = out["problem"].where(~several, out["problem"] + " ..")
    out["layer"] = out["layer"].astype("Int64").where(out["layer"] >= 0)
    columns = (
        Column("name", "node", "text", "Name that the engine gives the tensor."),
        Column("op", "operator", "text", "Operator type."),
        Column(
            "problem",
            "shape",
            "text",
            "MxKxN of a matrix product, else the output; '..' if it changed.",
        ),
        Column("types", "type", "text", "Type of the weights of a matrix product, else of itself."),
        Column("layer", "layer", "id", "Layer, if it belongs to one.", detail=True),
        Column("weight", "weight", "text", "Name of its weight tensor.", detail=True),
        TIME[0],
        Column("share", "share", "ratio", TIME[1].description),
        Column("mean_ns", "mean", "ns", "Time of one execution, mean."),
        Column("max_ns", "max", "ns", "Time of the slowest execution.", detail=True),
        Column("calls", "calls", "count", TIME[3].description, detail=True),
        Column("wait_share", "wait", "ratio", SPLIT[2].description),
        *_states(trace),
    )
    return Result(
        "operators_by_node",
        "Slowest operators",
        selection.description,
        columns,
        out[[c.name for c in columns]],
        (
            *notes.of(trace, selection),
            *notes.elsewhere(trace, selection),
            *notes.cut(len(out), rows),
        ),
    )


def by_shape(trace: Trace, selection: Selection, top: int | None = None) -> Result:
    """Time by what was computed: operator, size and type."""
    nodes = shapes.with_problem(trace.nodes)
    out, total = _grouped(trace, selection, nodes, ["op", "problem", "types"])
    out, total = _finished(out, total, selection.n_tokens)
    rows = len(out)
    out = out.head(top) if top else out
    columns = (
        Column("op", "operator", "text", "Operator type."),
        Column("problem", "shape", "text", "MxKxN of a matrix product, else the output."),
        Column("types", "type", "text", "Type of the weights of a matrix product, else of itself."),
        TIME[0],
        Column("share", "share", "ratio", TIME[1].description),
        TIME[3],
        Column("mean_ns", "mean", "ns", "Time of one execution, mean."),
        SPLIT[2],
        *_states(trace),
    )
    return Result(
        "operators_by_shape",
        "Time by shape",
        selection.description,
        columns,
        out[[c.name for c in columns]].astype({"op": str}),
        (
            *notes.of(trace, selection),
            *notes.elsewhere(trace, selection),
            *notes.cut(len(out), rows),
        ),
        None if len(out) < rows else total,
    )
