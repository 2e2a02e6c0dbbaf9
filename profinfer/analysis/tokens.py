"""Layer 6: every call and graph as a row: how long each token took.

Must not import rich or anything above.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from profinfer.analysis import latency, notes
from profinfer.analysis.result import Column, Result
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace

COLUMNS = (
    Column("call", "call", "id", "Number of the call in the recording."),
    Column("phase", "phase", "text", "Warm-up, prefill, decode, encode."),
    Column("token", "token", "id", "Number of the decoded token in its generation."),
    Column("position", "position", "id", "Position of its first token, if the caller gave it."),
    Column("tokens", "tokens", "count", "Tokens of the call."),
    Column("call_ns", "call", "ns", "Begin to end of the call."),
    Column("graph_ns", "graphs", "ns", "Part of it in graphs."),
    Column("wait_share", "wait", "ratio", "Waiting in barriers, of computing and waiting."),
    Column("sampling_ns", "sampling", "ns", "Sampling after it."),
    Column("step_ns", "step", "ns", "From the end of the decode call before to its own end."),
    Column("sequences", "seqs", "count", "Sequences that its tokens belong to.", detail=True),
    Column("generation", "generation", "id", "Number of the prompt.", detail=True),
    Column("begin_ns", "begin", "ns", "Since the first call of the recording.", detail=True),
)


def tokens(trace: Trace, selection: Selection, top: int | None = None) -> Result:
    """One row per selected call."""
    calls = trace.calls
    begin = calls["begin_ns"].to_numpy()
    graphs = trace.graphs
    owner = graphs["call_id"].to_numpy()
    owned = owner >= 0
    in_graphs, compute, wait = (np.zeros(len(calls), np.int64) for _ in range(3))
    np.add.at(in_graphs, owner[owned], (graphs["end_ns"] - graphs["begin_ns"]).to_numpy()[owned])
    walls = trace.op_walls
    of_wall = owner[walls["graph_id"].to_numpy()]
    use = walls["complete"].to_numpy() & (of_wall >= 0)
    np.add.at(compute, of_wall[use], walls["compute_sum"].to_numpy()[use])
    np.add.at(wait, of_wall[use], walls["wait_sum"].to_numpy()[use])
    both = compute + wait
    step = latency.token_steps(trace).groupby("call_id")["step_ns"].max()
    frame = pd.DataFrame(
        {
            "call": calls["call_id"],
            "phase": calls["phase"].astype(str),
            "token": _known(calls["token_index"]),
            "position": _known(calls["pos_first"]),
            "tokens": _known(calls["n_tokens"]),
            "call_ns": latency.call_times(trace),
            # At level token no graph was seen, which is not that they took no time.
            "graph_ns": in_graphs if len(graphs) else pd.array([pd.NA] * len(calls), "Int64"),
            "wait_share": np.divide(wait, both, where=both > 0, out=np.full(len(calls), np.nan)),
            "sampling_ns": latency.sampling_per_call(trace),
            "step_ns": step.reindex(calls["call_id"]).astype("Int64").to_numpy(),
            "sequences": _known(calls["n_seqs"]),
            "generation": _known(calls["generation"]),
            "begin_ns": begin - (begin[0] if len(begin) else 0),
        }
    )[selection.calls].reset_index(drop=True)
    total = {
        "tokens": selection.n_tokens,
        "call_ns": int(frame["call_ns"].sum()),
        "graph_ns": int(frame["graph_ns"].sum()) if len(graphs) else None,
        "sampling_ns": int(frame["sampling_ns"].sum()),
    }
    if top:
        frame = frame.nlargest(top, "call_ns", keep="first").sort_index().reset_index(drop=True)
    return Result(
        "tokens",
        "Calls, token by token" if not top else f"The {len(frame)} slowest calls",
        selection.description,
        COLUMNS,
        frame,
        notes.of(trace, selection),
        total,
    )


def _known(values: pd.Series) -> pd.Series:
    return values.astype("Int64").where(values >= 0)


def graphs(trace: Trace, selection: Selection) -> Result:
    """Graphs by the backend and the number of nodes, for a trace without operators."""
    table = trace.graphs[selection.graphs]
    frame = (
        table.assign(length=table["end_ns"] - table["begin_ns"])
        .groupby(["n_nodes", "n_threads"], sort=True)
        .agg(graphs=("length", "size"), time_ns=("length", "sum"), mean_ns=("length", "mean"))
        .reset_index()
    )
    whole = int(frame["time_ns"].sum())
    frame["share"] = frame["time_ns"] / whole if whole else np.nan
    columns = (
        Column("n_nodes", "nodes", "count", "Nodes of the graph, those without work included."),
        Column("n_threads", "threads", "count", "Threads asked for."),
        Column("graphs", "graphs", "count", "How many."),
        Column("time_ns", "time", "ns", "Sum of their time."),
        Column("share", "share", "ratio", "Part of all graphs' time.", bar=True),
        Column("mean_ns", "mean", "ns", "Time of one."),
    )
    return Result(
        "graphs",
        "Graphs",
        selection.description,
        columns,
        frame[[c.name for c in columns]],
        notes.of(trace, selection),
        {"graphs": len(table), "time_ns": whole, "share": 1.0 if whole else None},
    )
