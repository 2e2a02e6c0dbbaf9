"""Layer 6: what one pass over the model ran: one graph, or several, split over backends.

On the CPU alone a pass is one graph. Where other backends are in use the engine cuts it into
splits, each with nodes of its own: a token is all of them in order. Must not import rich or above.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.analysis.backends import chosen, has_others, labels
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pass:
    """Definitions that ran one after the other.

    Attributes:
        defs: the definitions, each once.
        backends: of each, empty where it is not known.
        handed: of each the tensors that were copied to its backend before it began.
        runs: how often.
        time_ns: of all of them.
        unread: splits among them whose nodes were not read.
    """

    defs: tuple[int, ...]
    backends: tuple[str, ...]
    handed: tuple[tuple[str, ...], ...]
    runs: int
    time_ns: int
    unread: int = 0


def passes(trace: Trace, selection: Selection) -> list[Pass]:
    """The distinct passes of the selected calls, most of the time first."""
    if not has_others(trace) or not len(trace.calls):
        return _graphs(trace, selection)
    rows = _runs(trace, selection)
    if not len(rows):
        return _graphs(trace, selection)
    found: dict[tuple[int, ...], list[pd.DataFrame]] = {}
    for one in _cut(trace, rows):
        known = one[(one["def_id"] >= 0).to_numpy()]
        if len(known):
            found.setdefault(tuple(dict.fromkeys(known["def_id"].tolist())), []).append(one)
    out = [_pass(trace, defs, runs) for defs, runs in found.items()]
    return sorted(out, key=lambda p: (-p.time_ns, p.defs))


def _graphs(trace: Trace, selection: Selection) -> list[Pass]:
    """Each graph is a pass."""
    graphs = trace.graphs[selection.graphs]
    graphs = graphs[graphs["def_id"] >= 0]
    spent = (graphs["end_ns"] - graphs["begin_ns"]).groupby(graphs["def_id"])
    out = spent.agg(runs="size", time_ns="sum").reset_index()
    out = out.sort_values(["time_ns", "def_id"], ascending=[False, True])
    return [
        Pass((int(d),), ("",), ((),), int(n), int(ns))
        for d, n, ns in zip(out["def_id"], out["runs"], out["time_ns"], strict=True)
    ]


def _runs(trace: Trace, selection: Selection) -> pd.DataFrame:
    """Outermost splits of the calls in order: call_id, def_id, backend, begin_ns, end_ns."""
    splits = trace.splits[trace.splits["outermost"].to_numpy()]
    splits = chosen(trace, splits, selection)
    splits = splits[(splits["call_id"] >= 0).to_numpy()]
    graphs = trace.graphs[(trace.graphs["split_id"] >= 0).to_numpy()]
    of_split = graphs.drop_duplicates("split_id").set_index("split_id")["def_id"]
    inside = splits["split_id"].map(of_split).fillna(-1).astype(np.int64)
    own = splits["def_id"].astype(np.int64)
    done = splits["done_ns"].where(splits["done_ns"] >= 0, splits["end_ns"])
    out = pd.DataFrame(
        {
            "call_id": splits["call_id"].astype(np.int64),
            "def_id": own.where(own >= 0, inside),
            "backend": labels(splits).astype(object),
            "begin_ns": splits["begin_ns"],
            "end_ns": done,
        }
    )
    return out.sort_values(["call_id", "begin_ns"], kind="stable").reset_index(drop=True)


def _cut(trace: Trace, rows: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """One pass after the other: it begins as the first of its call does."""
    first = trace.nodes.drop_duplicates("def_id").set_index("def_id")[["op", "name"]].astype(str)
    heads = first["op"].str.cat(first["name"], " ").reindex(rows["def_id"])
    codes: I64 = pd.factorize(heads.astype(object).to_numpy())[0].astype(np.int64)  # -1: unknown
    call = rows["call_id"].to_numpy()
    new = np.r_[True, call[1:] != call[:-1]]
    opening = codes[np.maximum.accumulate(np.where(new, np.arange(len(rows)), 0))]
    begins = np.flatnonzero(new | ((codes == opening) & (codes >= 0)))
    for begin, end in zip(begins.tolist(), [*begins[1:].tolist(), len(rows)], strict=True):
        yield rows.iloc[begin:end]


def _pass(trace: Trace, defs: tuple[int, ...], runs: list[pd.DataFrame]) -> Pass:
    last = runs[-1]
    known = last[(last["def_id"] >= 0).to_numpy()].drop_duplicates("def_id")
    copies = trace.copies
    mine = copies["call_id"] == int(last["call_id"].iloc[0])
    crossing = copies[(mine & copies["outermost"] & copies["crosses"]).to_numpy()]
    crossing = crossing.sort_values("begin_ns", kind="stable")
    when, names = crossing["begin_ns"].to_numpy(), crossing["tensor"].astype(str).tolist()
    begins = known["begin_ns"].to_numpy()
    since: I64 = np.concatenate([begins[:1], begins])
    bounds = np.searchsorted(when, since)
    handed = [
        tuple(dict.fromkeys(names[a:b]))
        for a, b in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    ]
    return Pass(
        defs,
        tuple(known["backend"].tolist()),
        tuple(handed),
        len(runs),
        sum(int(run["end_ns"].max() - run["begin_ns"].min()) for run in runs),
        int((last["def_id"] < 0).sum()),
    )
