"""Layer 7: arguments of single executions: which experts an operator computed with.

Owns their texts. A further table that knows something of one execution of a node is joined here.
May import numpy and pandas; must not import perfetto or the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

if TYPE_CHECKING:
    from profinfer.model.trace import Trace

EXPERTS = "experts"
_WITH_EXPERTS = "MUL_MAT_ID"


def of_trace(trace: Trace) -> pd.DataFrame | None:
    """What is known of single executions: graph_id, node_id, a text column an argument."""
    return of_experts(trace.experts, trace.nodes) if len(trace.experts) else None


def of_experts(table: pd.DataFrame, nodes: pd.DataFrame) -> pd.DataFrame:
    """The experts of each execution as a text, for every node of its layer that uses them.

    One token's are listed as the router ranked them: ``3, 17``. Of several tokens each expert is
    named once, with the number of tokens if that is not one: ``3 x5, 17, 20 x2``.

    Args:
        table: graph_id, node_id (the first node of the layer that computes with experts), row
            (token), slot (rank), expert.
        nodes: the nodes table.
    """
    keys = ["graph_id", "node_id"]
    several = table.groupby(keys)["row"].transform("nunique") > 1
    one = table[~several].sort_values([*keys, "slot"])
    texts = [one.assign(text=one["expert"].astype(str))[[*keys, "text"]]]
    counts = table[several].groupby([*keys, "expert"]).size().rename("n").reset_index()
    times = (" x" + counts["n"].astype(str)).where(counts["n"] > 1, "")
    texts.append(counts.assign(text=counts["expert"].astype(str) + times)[[*keys, "text"]])
    joined = pd.concat(texts).groupby(keys, sort=True)["text"].agg(", ".join).reset_index()
    using = nodes.loc[nodes["op"] == _WITH_EXPERTS, ["node_id", "def_id", "layer"]]
    first = using.rename(columns={"node_id": "first"})
    # Gate, up and down products of a layer use the same ones.
    pairs = using.merge(first, on=["def_id", "layer"])[["first", "node_id"]]
    found = joined.rename(columns={"node_id": "first", "text": EXPERTS}).merge(pairs, on="first")
    return found[[*keys, EXPERTS]].sort_values(keys, ignore_index=True)
