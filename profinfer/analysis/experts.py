"""Layer 6: which experts the router chose: by layer, by expert, by token.

Owns the tables of ``report --experts``; those of reuse are in ``expertreuse``. Must not import rich
or anything above.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pandas as pd

from profinfer.analysis import notes
from profinfer.analysis.expertcosts import chosen, faults, needed_experts, passes, sizes
from profinfer.analysis.expertuse import FIRST, spread
from profinfer.analysis.result import Column, Note, Result
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace

_LAYER = Column("layer", "layer", "id", "Layer.")
_FAULTS = (
    Column("majors", "major", "count", "Major faults on experts' weights."),
    Column("held_ns", "held up", "ns", "Time of threads inside these, summed."),
)


def overview(trace: Trace, selection: Selection) -> Result:
    """One row: sizes, and what a token needs of them."""
    size = sizes(trace)
    needed = needed_experts(trace, selection)
    every = _of(trace, selection)
    tokens = selection.n_tokens
    addressed = int(size.bytes_of(needed["layer"].to_numpy()).sum())
    again = needed["gap"].to_numpy() == 1
    routing = trace.routing
    fields: list[tuple[Column, Any]] = [
        (Column("layers", "layers", "count", "Layers with experts."), len(size.experts)),
        (Column("experts", "experts", "count", "Experts a layer; the most."),
         max(size.experts.values(), default=0)),
        (Column("used", "used", "count", "Experts a token and layer; the most."),
         max(size.used.values(), default=0)),
        (Column("whole", "all experts", "bytes", "Weights of all experts."), size.whole),
        (Column("choices", "choices", "count", "Experts chosen, over tokens and layers."),
         len(every)),
        (Column("addressed", "a token", "bytes", "Weights of experts that graphs needed / tokens."),
         addressed / tokens if tokens else None),
        (Column("again", "again", "ratio", "Part of them that the pass before needed, too."),
         float(again.mean()) if len(needed) else None),
        (Column("read_ns", "reading ids", "ns", "profinfer's own time, a layer and graph, mean."),
         routing.read_ns / routing.reads if routing.reads else None),
    ]  # fmt: skip
    columns = tuple(c for c, _ in fields)
    frame = pd.DataFrame([[v for _, v in fields]], columns=[c.name for c in columns], dtype=object)
    return Result("experts", "Mixture of experts", selection.description, columns, frame,
                  notes.of(trace, selection), layout="record")  # fmt: skip


def by_layer(trace: Trace, selection: Selection) -> Result:
    """One row a layer: how its choices spread, and what it took."""
    size, every = sizes(trace), _of(trace, selection)
    done = passes(trace, selection)
    needed = needed_experts(trace, selection)
    rows = []
    for layer, mine in every.groupby("layer"):
        layer = int(str(layer))
        n = size.experts[layer]
        s = spread(np.bincount(mine["expert"].to_numpy(), minlength=n))
        of = done[done["layer"] == layer]
        gaps = needed["gap"].to_numpy()[needed["layer"].to_numpy() == layer]
        known = gaps[gaps != FIRST]
        tokens = int((mine["slot"] == 0).sum())
        rows.append(
            {
                "layer": layer,
                "tokens": tokens,
                "experts": n,
                **asdict(s),
                "gap": float(known.mean()) if len(known) else np.nan,
                "again": float((gaps == 1).mean()) if len(gaps) else np.nan,
                "addressed": size.size.get(layer, 0) * len(gaps) / tokens,
                "op_ns": float(of["op_ns"].sum()) / tokens,
                "majors": int(of["majors"].sum()),
                "held_ns": int(of["held_ns"].sum()),
            }
        )
    columns = (
        _LAYER,
        Column("tokens", "tokens", "count", "Tokens that it computed."),
        Column("experts", "experts", "count", "Experts to choose from.", detail=True),
        Column("used", "seen", "count", "Experts that were chosen at all.", detail=True),
        Column("entropy", "entropy", "number", "-sum f log2 f of choices, bits.", detail=True),
        Column("evenness", "even", "ratio", "Entropy / log2(experts); 100 %: all alike."),
        Column("busiest", "busiest", "number", "Most choices of an expert / mean choices."),
        Column("variation", "cv", "number", "Standard deviation / mean of choices.", detail=True),
        Column("half", "hot 50", "count", "Least experts that get 50 % of the choices."),
        Column("most", "hot 90", "count", "Least experts that get 90 % of the choices."),
        Column("excess", "excess", "number", "(chi2 - d) / sqrt(2 d), d = experts - 1.",
               detail=True),
        Column("gap", "reuse", "number", "Passes since an expert was needed before; mean."),
        Column("again", "again", "ratio", "Part of accesses that the pass before needed, too."),
        Column("addressed", "a token", "bytes", "Weights of the experts needed / tokens."),
        Column("op_ns", "time", "ns", "Of its operators with experts / tokens."),
        *((_FAULTS[0], replace(_FAULTS[1], detail=True)) if trace.has_faults else ()),
    )  # fmt: skip
    frame = pd.DataFrame(rows, columns=[c.name for c in columns])
    return _result("experts_by_layer", "Experts by layer", trace, selection, columns, frame)


def by_expert(trace: Trace, selection: Selection, top: int | None) -> Result:
    """One row an expert of a layer, the most chosen first; those never chosen are among them."""
    size, every = sizes(trace), _of(trace, selection)
    layers = sorted(every["layer"].unique().tolist())
    index = pd.MultiIndex.from_tuples(
        [(layer, e) for layer in layers for e in range(size.experts[layer])],
        names=["layer", "expert"],
    )
    needed = needed_experts(trace, selection)
    needed = needed.assign(
        gap=needed["gap"].where(needed["gap"] != FIRST),
        distance=needed["distance"].where(needed["distance"] != FIRST),
    )
    keys = ["layer", "expert"]
    frame = pd.DataFrame(index=index)
    frame["choices"] = every.groupby(keys).size()
    of = needed.groupby(keys).agg(
        passes=("gap", "size"), gap=("gap", "mean"), distance=("distance", "mean")
    )
    frame = frame.join(of).fillna({"choices": 0, "passes": 0})
    frame["share"] = frame["choices"] / frame.groupby("layer")["choices"].transform("sum")
    per_layer = frame.index.get_level_values("layer").map(size.experts).to_numpy()
    frame["load"] = frame["share"] * per_layer
    frame["bytes"] = size.bytes_of(frame.index.get_level_values("layer").to_numpy())
    hit = faults(trace)
    hit = hit[hit["major"] & _in_graphs(hit, selection)]
    frame["majors"] = hit.groupby(keys)["faults"].sum()
    frame["held_ns"] = hit.groupby(keys)["held_ns"].sum()
    whole = ["choices", "passes", "majors", "held_ns"]
    frame[whole] = frame[whole].fillna(0).astype(np.int64)
    frame = frame.reset_index().sort_values("choices", ascending=False, kind="stable")
    rows = len(frame)
    frame = frame.head(top) if top else frame
    columns = (
        _LAYER,
        Column("expert", "expert", "id", "Number of the expert."),
        Column("choices", "tokens", "count", "Tokens that it was chosen for."),
        Column("share", "share", "ratio", "Part of the layer's choices.", bar=True),
        Column("load", "load", "number", "Its choices / mean choices of the layer's experts."),
        Column("passes", "passes", "count", "Passes that needed it."),
        Column("gap", "reuse", "number", "Passes since the one before that needed it; mean."),
        Column("distance", "between", "number", "Other experts needed since then; mean."),
        Column("bytes", "size", "bytes", "Its weights.", detail=True),
        *(_FAULTS if trace.has_faults else ()),
    )
    extra = notes.cut(len(frame), rows, "most chosen")
    return _result(
        "experts_by_expert", "Experts one by one", trace, selection, columns, frame, tuple(extra)
    )


def by_token(trace: Trace, selection: Selection, top: int | None) -> Result:
    """One row a call: the experts that it needed and what they took."""
    size, done = sizes(trace), passes(trace, selection)
    one = size.bytes_of(done["layer"].to_numpy())
    done = done.assign(
        call=trace.graphs["call_id"].to_numpy()[done["graph_id"].to_numpy()],
        addressed=one * done["experts"],
        loaded=one * done["fresh"],
    )
    sums = done.groupby("call").agg(
        experts=("experts", "sum"), fresh=("fresh", "sum"), first=("first", "sum"),
        gap=("gap", "mean"), addressed=("addressed", "sum"), loaded=("loaded", "sum"),
        op_ns=("op_ns", "sum"), majors=("majors", "sum"), held_ns=("held_ns", "sum"),
    )  # fmt: skip
    sums = sums[sums.index >= 0]
    calls = trace.calls.loc[sums.index]
    frame = sums.assign(
        token=calls["token_index"].astype("Int64").where(calls["token_index"] >= 0),
        tokens=calls["n_tokens"],
        call_ns=calls["done_ns"] - calls["begin_ns"],
    ).reset_index()
    rows = len(frame)
    if top and top < rows:
        frame = frame.nlargest(top, "call_ns", keep="first").sort_values("call")
    columns = (
        Column("call", "call", "id", "Number of the call in the recording."),
        Column("token", "token", "id", "Number of the decoded token in its generation."),
        Column("tokens", "tokens", "count", "Tokens of the call."),
        Column("call_ns", "call", "ns", "Begin to end of the call."),
        Column("op_ns", "experts", "ns", "Of its operators with experts."),
        Column("experts", "needed", "count", "Experts that its passes needed."),
        Column("fresh", "fresh", "count", "Of these, not needed by the pass before."),
        Column("first", "first", "count", "Of these, never needed before.", detail=True),
        Column("gap", "reuse", "number", "Passes since the ones before that needed them; mean."),
        Column("addressed", "weights", "bytes", "Of the experts needed.", detail=True),
        Column("loaded", "new", "bytes", "Weights of the fresh ones."),
        *(_FAULTS if trace.has_faults else ()),
    )
    extra = [*notes.cut(len(frame), rows), *_held_by_several(frame)]
    return _result(
        "experts_by_token", "Experts by token", trace, selection, columns, frame, tuple(extra)
    )


def _held_by_several(frame: pd.DataFrame) -> list[Note]:
    """Where threads stood in faults for longer than their call took: that is no mistake."""
    if not (frame["held_ns"] > frame["call_ns"]).any():
        return []
    text = "held up is summed over threads: several that wait at once exceed the time of the call"
    return [Note("info", text)]


def _of(trace: Trace, selection: Selection) -> pd.DataFrame:
    """The choices of the selected graphs."""
    return trace.experts[chosen(trace, selection, trace.experts)]


def _in_graphs(table: pd.DataFrame, selection: Selection) -> Any:
    graph = table["graph_id"].to_numpy()
    return (graph >= 0) & np.r_[selection.graphs, False][graph]


def _result(
    name: str, title: str, trace: Trace, selection: Selection, columns: tuple[Column, ...],
    frame: pd.DataFrame, extra: tuple[Note, ...] = (),
) -> Result:  # fmt: skip
    frame = frame[[c.name for c in columns]].reset_index(drop=True)
    every = (*extra, *notes.of(trace, selection))
    return Result(name, title, selection.description, columns, frame, every)
