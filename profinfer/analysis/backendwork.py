"""Layer 6: what other backends did on the host: operators with the library's part, RPC messages.

Must not import rich or anything above.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from profinfer.analysis import notes
from profinfer.analysis.backends import chosen
from profinfer.analysis.result import Column, Result
from profinfer.analysis.shapes import with_problem
from profinfer.model.opsched import running_during
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace

_OPS = (
    Column("backend", "backend", "text", "Name of the backend."),
    Column("op", "operator", "text", "Operator type."),
    Column("problem", "problem", "text", "MxKxN of a matrix product, else the output's shape."),
    Column("types", "type", "text", "Type of the weights."),
    Column("calls", "calls", "count", "How often it ran."),
    Column("time_ns", "time", "ns", "On the host: computing it, or recording its commands."),
    Column("share", "share", "ratio", "Part of the time in this view.", bar=True),
    Column("mean_ns", "mean", "ns", "Time of one."),
    Column("library_share", "library", "ratio", "Part inside the library behind it (gemm)."),
    Column(
        "threads",
        "threads",
        "number",
        "Threads of the program on a CPU meanwhile, mean: also those that only spin.",
    ),
)


def operators(trace: Trace, selection: Selection, top: int | None = None) -> Result:
    """Operators that other backends ran node by node on the host, by shape."""
    table = of_selection(trace, selection)
    frame = (
        table.groupby(["backend", "op", "problem", "types"], observed=True)
        .agg(
            calls=("time_ns", "size"),
            time_ns=("time_ns", "sum"),
            library=("library_ns", "sum"),
            cpu=("cpu_ns", "sum"),
        )
        .reset_index()
        .sort_values("time_ns", ascending=False, kind="stable")
        .reset_index(drop=True)
    )
    whole = int(frame["time_ns"].sum())
    frame["share"] = frame["time_ns"] / whole if whole else np.nan
    frame["mean_ns"] = frame["time_ns"] / frame["calls"]
    spent = frame["time_ns"].where(frame["library"] > 0)
    frame["library_share"] = frame["library"] / spent
    frame["threads"] = frame["cpu"] / spent if trace.has_sched else np.nan
    total = {"calls": int(frame["calls"].sum()), "time_ns": whole, "share": 1.0 if whole else None}
    if whole and frame["library"].sum():
        total["library_share"] = float(frame["library"].sum() / whole)
    shown = frame.head(top) if top else frame
    return Result(
        "backend_operators",
        "Operators of other backends, on the host",
        selection.description,
        _OPS,
        shown[[c.name for c in _OPS]],
        (*notes.losses(trace), *notes.cut(len(shown), len(frame))),
        total,
    )


def of_selection(trace: Trace, selection: Selection) -> pd.DataFrame:
    """Rows of ``backend_ops`` with backend, op, problem, types, time_ns, cpu_ns of all threads."""
    ops = trace.backend_ops
    splits = trace.splits
    mine = chosen(trace, splits, selection)["split_id"]
    ops = ops[ops["split_id"].isin(mine)]
    if selection.narrowed:
        ops = ops[selection.nodes[ops["node_id"].to_numpy()]]
    nodes = with_problem(trace.nodes)[["op", "problem", "types"]]
    out = ops.assign(
        backend=splits["backend"].astype(str).to_numpy()[ops["split_id"].to_numpy()],
        time_ns=ops["end_ns"] - ops["begin_ns"],
        cpu_ns=running_during(trace.schedule, ops["begin_ns"].to_numpy(), ops["end_ns"].to_numpy()),
    )
    return out.join(nodes.iloc[out["node_id"].to_numpy()].set_axis(out.index))


_WIRE = (
    Column("command", "command", "text", "Command of the RPC protocol."),
    Column("messages", "messages", "count", "How many were sent; of a server, served."),
    Column("sent_bytes", "sent", "bytes", "Bytes given to the connection."),
    Column("received_bytes", "received", "bytes", "Bytes taken from it."),
    Column("send_ns", "sending", "ns", "In the function that sends."),
    Column("receive_ns", "receiving", "ns", "In the one that receives: waiting for an answer."),
    Column("serve_ns", "serving", "ns", "A server doing what the command says."),
)


def messages(trace: Trace, selection: Selection) -> Result:
    """Bytes and time on the wire by command: what a client sent, or a server did."""
    work = wire(trace)
    if len(trace.calls):
        # The thread that talks to the server is not the one that calls: by time.
        chosen_calls = trace.calls[selection.calls]
        work = work[_during(work, chosen_calls, trace)]
    spent = work["end_ns"] - work["begin_ns"]
    kinds = {kind: (work["kind"] == kind).to_numpy() for kind in ("send", "recv", "serve")}
    columns = {
        "messages": work["starts"].astype(np.int64),
        "sent_bytes": work["bytes"].where(kinds["send"], 0),
        "received_bytes": work["bytes"].where(kinds["recv"], 0),
        "send_ns": spent.where(kinds["send"], 0),
        "receive_ns": spent.where(kinds["recv"], 0),
        "serve_ns": spent.where(kinds["serve"], 0),
    }
    frame = (
        pd.DataFrame(columns)
        .groupby(work["message"])
        .sum()
        .reset_index(names="command")
        .sort_values(["receive_ns", "sent_bytes"], ascending=False, kind="stable")
        .reset_index(drop=True)
    )
    total = {c.name: int(frame[c.name].sum()) for c in _WIRE[1:]}
    scope = selection.description if len(trace.calls) else "the whole recording"
    return Result(
        "messages",
        "On the wire",
        scope,
        _WIRE,
        frame[[c.name for c in _WIRE]],
        tuple(notes.losses(trace)),
        total,
    )


def wire(trace: Trace) -> pd.DataFrame:
    """Sends, receives and served commands with ``message`` (its command) and ``starts``.

    What follows a command's first byte on a thread belongs to it. A server's own receives come
    before the command that they bring is known; they count to the one that is served next.
    """
    work = trace.backend_work
    work = work[work["kind"].isin(("send", "recv", "serve"))]
    work = work.sort_values(["tid", "begin_ns"], kind="stable")
    command = work["command"].astype(str)
    server = bool((work["kind"] == "serve").any())
    known = command.where(command != "")
    by_thread = known.groupby(work["tid"])
    before, after = by_thread.ffill(), by_thread.bfill()
    brings = server & (work["kind"] == "recv")
    message = before.mask(brings, after.fillna(before))
    return work.assign(message=message.fillna("other"), starts=(command != "").to_numpy())


def _during(work: pd.DataFrame, calls: pd.DataFrame, trace: Trace) -> np.ndarray:
    """Work between the begin of a selected call and the begin of the next call."""
    every = np.sort(trace.calls["begin_ns"].to_numpy())
    at = np.searchsorted(every, work["begin_ns"].to_numpy(), side="right") - 1
    begun = np.append(every, -1)[at]
    return np.isin(begun, calls["begin_ns"].to_numpy()) & (at >= 0)
