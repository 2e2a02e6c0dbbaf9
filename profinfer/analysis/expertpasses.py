"""Layer 6: experts over tokens, pass by pass: what each needed, and what its products took.

Owns what charts of experts are made from and the table of it. Must not import rich or anything
above.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from profinfer.analysis import notes
from profinfer.analysis.expertcosts import needed_experts, passes
from profinfer.analysis.expertuse import FIRST
from profinfer.analysis.result import Column, Result
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace

# Experts that are written out of a pass; a prompt's passes need nearly all.
WRITTEN_MAX = 16


def in_order(trace: Trace, table: pd.DataFrame) -> pd.DataFrame:
    """Rows with a graph_id, with ``step``: the graph's number among those of the table, in time."""
    graphs = np.unique(table["graph_id"].to_numpy())
    begin = trace.graphs["begin_ns"].to_numpy()[graphs]
    step = np.empty(len(graphs), np.int64)
    step[np.argsort(begin, kind="stable")] = np.arange(len(graphs))
    at = np.searchsorted(graphs, table["graph_id"].to_numpy())
    return table.assign(step=step[at]).sort_values("step", kind="stable", ignore_index=True)


def needed(trace: Trace, selection: Selection) -> pd.DataFrame:
    """``expertcosts.needed_experts`` in order of time, with ``step``."""
    return in_order(trace, needed_experts(trace, selection))


def costs(trace: Trace, selection: Selection) -> pd.DataFrame:
    """``expertcosts.passes`` in order of time, with ``step``."""
    return in_order(trace, passes(trace, selection))


def slowest_layers(done: pd.DataFrame, most: int) -> list[int]:
    """The layers whose passes took longest, of ``costs``; in the order of the model."""
    slowest = done.groupby("layer")["op_ns"].sum().nlargest(most)
    return sorted(int(layer) for layer in slowest.index)


def products(trace: Trace, selection: Selection) -> pd.DataFrame:
    """One row per execution of a product with experts: what it took and what it read from disk.

    Columns: ``product`` (name of the tensor without its layer), ``layer``, ``op_ns`` (wall time),
    ``majors`` (major faults of its threads), ``read`` (bytes that disks were made to read
    meanwhile; 0 where reads were not recorded). Torn executions are left out.
    """
    walls = trace.op_walls
    node = walls["node_id"].to_numpy()
    mine = np.isin(node, trace.expert_places.node[selection.nodes[trace.expert_places.node]])
    mine &= walls["complete"].to_numpy() & selection.graphs[walls["graph_id"].to_numpy()]
    walls, node = walls[mine], node[mine]
    name = trace.nodes["name"].astype(str).to_numpy()[node]
    out = pd.DataFrame(
        {
            "graph_id": walls["graph_id"].to_numpy(),
            "node_id": node,
            "product": pd.Series(name, dtype="str").str.replace(r"-\d+$", "", regex=True),
            "layer": trace.nodes["layer"].to_numpy()[node],
            "op_ns": (walls["release_ns"] - walls["begin_ns"]).to_numpy(),
        }
    )
    keys = ["graph_id", "node_id"]
    faults, reads = trace.faults, trace.reads
    majors = faults[faults["major"]].groupby(keys)["faults"].sum().rename("majors")
    read = reads.groupby(keys)["bytes"].sum().rename("read")
    out = out.join(majors, on=keys).join(read, on=keys).fillna({"majors": 0, "read": 0})
    return out.astype({"majors": np.int64, "read": np.int64})


def by_pass(trace: Trace, selection: Selection, top: int | None = None) -> Result:
    """One row per layer and call: which experts it needed, after how long, what that took.

    Args:
        trace: what was recorded.
        selection: which passes.
        top: the first rows; None for all.
    """
    uses, done = needed(trace, selection), costs(trace, selection)
    keys = ["graph_id", "layer"]
    done = done.sort_values(["layer", "step"], kind="stable")
    rows = len(done)
    done = done.head(top) if top else done
    uses = uses[pd.MultiIndex.from_frame(uses[keys]).isin(pd.MultiIndex.from_frame(done[keys]))]
    # FIRST is written as a dash: it was not needed before.
    gap = uses["gap"].astype(str).where(uses["gap"] != FIRST, "-")
    said = uses.assign(expert=uses["expert"].astype(str), gap=gap).groupby(keys)
    texts = said[["expert", "gap"]].agg(_listed).rename(columns={"expert": "which", "gap": "ago"})
    done = done.join(texts, on=keys)
    call = trace.graphs["call_id"].to_numpy()[done["graph_id"].to_numpy()]
    token = np.r_[trace.calls["token_index"].to_numpy(), -1][call]
    frame = done.assign(call=call, token=pd.array(token, "Int64"))
    frame["token"] = frame["token"].where(frame["token"] >= 0)
    frame["call"] = frame["call"].where(frame["call"] >= 0)
    columns: tuple[Column, ...] = (
        Column("layer", "layer", "id", "Number of the layer."),
        Column("token", "token", "id", "Number of the decoded token in its generation."),
        Column("call", "call", "id", "Number of the call in the recording.", detail=True),
        Column("which", "experts", "text", "Those that it needed, by number."),
        Column("ago", "passes ago", "text", "For each, passes since the one before that needed "
               "it; a dash: never before."),
        Column("experts", "needed", "count", "How many.", detail=True),
        Column("fresh", "fresh", "count", "Of these, not needed by the pass before."),
        Column("op_ns", "time", "ns", "Of the layer's operators with experts."),
    )  # fmt: skip
    if trace.has_faults:
        columns += (Column("majors", "major", "count", "Major faults on experts' weights."),)
    return Result(
        "experts_by_pass",
        "Experts of each layer over tokens",
        selection.description,
        columns,
        frame[[c.name for c in columns]].reset_index(drop=True),
        (*notes.of(trace, selection), *notes.cut(len(frame), rows, "first")),
    )


def _listed(values: pd.Series) -> str:
    texts = values.tolist()
    left = len(texts) - WRITTEN_MAX
    return " ".join(texts[:WRITTEN_MAX]) + (f" +{left}" if left > 0 else "")
