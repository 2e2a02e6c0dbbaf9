"""Layer 6: what ran where, and what going there cost: splits, copies, waits, by backend.

Must not import rich or anything above.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.analysis import latency, notes
from profinfer.analysis.result import Column, Note, Result
from profinfer.model.backendnames import HOST
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace
from profinfer.units import format_bytes, format_ns, format_things

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
UNKNOWN = "unknown"

_BACKENDS = (
    Column("backend", "backend", "text", "Name; a number where a context has several alike."),
    Column("splits", "splits", "count", "Parts of graphs that were handed to it."),
    Column("nodes", "nodes", "count", "Nodes in them."),
    Column("busy_ns", "busy", "ns", "From a split's begin until it was known to be done.",
           like="busy"),
    Column("share", "share", "ratio", "Part of all backends' time.", bar=True),
    Column("submit_ns", "submit", "ns", "The caller was in ggml_backend_graph_compute_async.",
           like="busy"),
    Column("wait_ns", "wait", "ns", "The caller waited in ggml_backend_synchronize.", like="busy"),
    Column("in_bytes", "in", "bytes", "Copied into its memory."),
    Column("out_bytes", "out", "bytes", "Copied out of its memory."),
    Column("copy_ns", "copying", "ns", "The caller was in these copies.", like="busy"),
    Column("copies", "copies", "count", "How many they were.", detail=True),
    Column("open_splits", "not waited for", "count", "Splits whose end nothing waited for.",
           detail=True),
)  # fmt: skip


def owner(trace: Trace, table: pd.DataFrame) -> I64:
    """The call that each row belongs to: around it, or the latest before it on its thread; -1."""
    out = table["call_id"].to_numpy(np.int64).copy()
    out[out < 0] = latency.latest_call(trace, table[out < 0])
    return out


def chosen(trace: Trace, table: pd.DataFrame, selection: Selection) -> pd.DataFrame:
    """The rows that belong to selected calls; all of them where nothing calls (an RPC server)."""
    if not len(trace.calls):
        return table
    mine: Mask = np.r_[selection.calls, False][owner(trace, table)]
    return table.loc[mine]


def has_others(trace: Trace) -> bool:
    """Whether another backend than the CPU was given anything, or serves somebody."""
    return bool((trace.splits["backend"] != "CPU").any() or len(trace.backend_work))


def labels(splits: pd.DataFrame) -> pd.Series[str]:
    """Name of each split's backend, numbered where a context has several of a name."""
    name = splits["backend"].astype(str).replace("", UNKNOWN)
    number = splits["instance"].astype(str)
    return name.where(splits["instance"] == 1, name + " " + number)


def by_backend(trace: Trace, selection: Selection) -> Result:
    """One row per backend, in order of its time."""
    splits = chosen(trace, trace.splits[trace.splits["outermost"]], selection)
    syncs = chosen(trace, trace.syncs, selection)
    copies = crossing(trace, selection)
    names = labels(splits)
    named = dict(zip(splits["address"].tolist(), names.tolist(), strict=True))
    waits = syncs["address"].map(named)
    spent = syncs["end_ns"] - syncs["begin_ns"]
    rows = []
    for name, mine in splits.groupby(names, sort=False):
        family = str(mine["backend"].iloc[0])
        into, out = copies["target"] == family, copies["source"] == family
        moved = copies[into | out]
        done = mine["done_ns"].where(mine["done_ns"] >= 0, mine["end_ns"])
        rows.append(
            {
                "backend": name,
                "splits": len(mine),
                "nodes": int(mine["n_nodes"].sum()),
                "busy_ns": _union(mine["begin_ns"].to_numpy(), done.to_numpy()),
                "submit_ns": int((mine["end_ns"] - mine["begin_ns"]).sum()),
                "wait_ns": int(spent[(waits == name).to_numpy()].sum()),
                "in_bytes": int(copies["bytes"][into].sum()),
                "out_bytes": int(copies["bytes"][out].sum()),
                "copy_ns": int((moved["end_ns"] - moved["begin_ns"]).sum()),
                "copies": len(moved),
                "open_splits": int((mine["done_ns"] < 0).sum()),
            }
        )
    frame = pd.DataFrame(rows, columns=[c.name for c in _BACKENDS if c.name != "share"])
    busy = int(frame["busy_ns"].sum())
    frame["share"] = frame["busy_ns"] / busy if busy else np.nan
    frame = frame.sort_values("busy_ns", ascending=False, kind="stable").reset_index(drop=True)
    total = {c: int(frame[c].sum()) for c in ("splits", "nodes", "busy_ns", "submit_ns", "wait_ns")}
    extra = [*_load(trace), *_unnamed(frame)]
    return Result(
        "backends",
        "Time by backend",
        _scope(trace, selection),
        _BACKENDS,
        frame[[c.name for c in _BACKENDS]],
        (*notes.losses(trace), *extra),
        total | {"share": 1.0 if busy else None},
    )


def _scope(trace: Trace, selection: Selection) -> str:
    if len(trace.calls):
        return selection.description
    return f"no calls: {format_things(len(trace.splits), 'split')} of the whole recording"


def _union(begin: I64, end: I64) -> int:
    """Nanoseconds that at least one of the spans covers."""
    order = np.argsort(begin, kind="stable")
    begin, end = begin[order], np.maximum.accumulate(end[order])
    before = np.r_[np.int64(-1), end[:-1]]
    return int(np.maximum(end - np.maximum(begin, before), 0).sum())


def crossing(trace: Trace, selection: Selection) -> pd.DataFrame:
    """Outermost copies of the selected calls that leave one backend's memory for another's."""
    copies = trace.copies
    return chosen(trace, copies[copies["outermost"] & copies["crosses"]], selection)


def _load(trace: Trace) -> list[Note]:
    """What was copied to other backends before the first call: weights."""
    copies = trace.copies
    if not len(trace.calls):
        return []
    early = copies[
        (copies["crosses"] & copies["outermost"]).to_numpy() & (owner(trace, copies) < 0)
    ]
    out = []
    for target, mine in early.groupby(early["target"].astype(str)):
        if target not in (HOST, "CPU") and mine["bytes"].sum():
            spent = int((mine["end_ns"] - mine["begin_ns"]).sum())
            text = f"{format_bytes(int(mine['bytes'].sum()))} were copied to {target or UNKNOWN}"
            out.append(Note("info", f"{text} before the first call, in {format_ns(spent)}"))
    return out


def _unnamed(frame: pd.DataFrame) -> list[Note]:
    if not (frame["backend"].astype(str).str.startswith(UNKNOWN)).any():
        return []
    return [Note("warning", "a backend's GUID is not known, and no symbol names it")]


_COPIES = (
    Column("source", "from", "text", "Backend whose memory it comes from; host: the program's."),
    Column("target", "to", "text", "Backend whose memory it goes to."),
    Column("tensor", "tensor", "text", "Tensor; the layer's number left out."),
    Column("copies", "copies", "count", "How many."),
    Column("bytes", "bytes", "bytes", "How much."),
    Column("time_ns", "time", "ns", "The caller was in them."),
    Column("per_s", "rate", "bytes_per_s", "Bytes over time."),
)


def copies(trace: Trace, selection: Selection, top: int | None = None) -> Result:
    """Copies between backends by direction and tensor, longest first."""
    table = crossing(trace, selection)
    # RPC0#inp_embd#0 is the scheduler's copy of inp_embd; l_out-14 one of many layers' l_out.
    plain = table["tensor"].astype(str).str.replace(r"^[^#]*#(.*)#\d+$", r"\1", regex=True)
    plain = plain.str.replace(r"-\d+(?= |$)", "-*", regex=True)
    frame = (
        table.assign(tensor=plain, time_ns=table["end_ns"] - table["begin_ns"])
        .groupby(["source", "target", "tensor"], observed=True)
        .agg(copies=("bytes", "size"), bytes=("bytes", "sum"), time_ns=("time_ns", "sum"))
        .reset_index()
        .sort_values("time_ns", ascending=False, kind="stable")
        .reset_index(drop=True)
    )
    frame["per_s"] = frame["bytes"] * 1e9 / frame["time_ns"].where(frame["time_ns"] > 0)
    total = {c: int(frame[c].sum()) for c in ("copies", "bytes", "time_ns")}
    shown = frame.head(top) if top else frame
    return Result(
        "copies",
        "Copies between backends",
        _scope(trace, selection),
        _COPIES,
        shown[[c.name for c in _COPIES]].astype({"source": str, "target": str}),
        (*notes.losses(trace), *notes.cut(len(shown), len(frame))),
        total,
    )
