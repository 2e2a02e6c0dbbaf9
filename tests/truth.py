"""What the C target says of itself, as tables: the truth that recordings are compared with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from profinfer.model.trace import Trace


@dataclass
class Truth:
    """One run of fake_ggml. ``ops``: call, node, thread, covered, begin, end, count, tid, ctx."""

    raw: dict
    calls: pd.DataFrame
    ops: pd.DataFrame
    defs: list[list[dict]]


def read_truth(path: Path) -> Truth:
    raw = json.loads(path.read_text())
    calls, ops, defs = [], [], []
    for context in raw["contexts"]:
        frame = pd.DataFrame(context["calls"])
        frame["def"] += len(defs)
        calls.append(frame.assign(ctx=context["ctx"], number=range(len(frame))))
        names = ["call", "node", "thread", "covered", "begin", "end", "count"]
        rows = pd.DataFrame(context["ops"], columns=names)
        tids = dict(enumerate(context["tids"]))
        ops.append(rows.assign(ctx=context["ctx"], tid=rows["thread"].map(tids)))
        defs += [d["nodes"] for d in context["defs"]]
    return Truth(raw, pd.concat(calls), pd.concat(ops), defs)


def matched_ops(trace: Trace, truth: Truth) -> pd.DataFrame:
    """Our operator rows joined with the target's own, one to one by context, call, node, thread."""
    ours = trace.ops.merge(trace.nodes[["node_id", "idx", "name", "op"]], on="node_id")
    ours = ours.merge(trace.graphs[["graph_id", "call_id"]], on="graph_id")
    calls = trace.calls[["call_id", "ctx"]].copy()
    calls["number"] = calls.groupby("ctx").cumcount()
    ours = ours.merge(calls, on="call_id")
    theirs = truth.ops.rename(
        columns={"call": "number", "begin": "their_begin", "end": "their_end"}
    )
    return ours.merge(
        theirs,
        left_on=["ctx", "number", "idx", "tid"],
        right_on=["ctx", "number", "node", "tid"],
        how="outer",
        indicator=True,
    )
