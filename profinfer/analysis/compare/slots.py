"""Layer 6: the operators of a trace as places in the model that another trace may have, too.

A *slot* is an operator at its place: type, name, layer, weight, and which of several alike. Every
definition of a graph has it again, whatever the length of the KV cache.
Must not import rich or anything above.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.analysis import shapes
from profinfer.model.noderoles import MADE_UP
from profinfer.model.trace import Trace

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

KEY = ["op", "name", "layer", "weight", "nth"]  # the same slot, if all of them are equal
FACTS = ["role", "label", "problem", "types"]
_DECORATION = re.compile(r"\.(?:weight|bias)$| \((?:view|reshaped|permuted|transposed)\)")


@dataclass(frozen=True)
class Slots:
    """The slots of one trace.

    Attributes:
        table: one row per slot in the order of the graph: ``KEY`` and ``FACTS``.
        of_node: row of each node_id, -1 for nodes that did not run.
    """

    table: pd.DataFrame
    of_node: I64


def label(name: str, weight: str, layer: int) -> str:
    """What the slots of all layers have in common: ``ffn_down`` of ``blk.7.ffn_down.weight``."""
    # The head of a tied model multiplies with token_embd: its own name says more.
    text = weight if weight and layer >= 0 else name
    if layer >= 0:
        text = re.sub(rf"(?:(?<=blk)\.|-|_l){layer}(?!\d)", "", text)
        text = text.replace("blk.", "", 1)
    return _DECORATION.sub("", text)


def find(trace: Trace, ran: Mask) -> Slots:
    """The slots of the nodes that ran.

    Args:
        trace: the trace.
        ran: mask over its nodes.
    """
    at = np.flatnonzero(ran)
    nodes = shapes.with_problem(trace.nodes.iloc[at])
    table = pd.DataFrame({"layer": nodes["layer"].to_numpy(np.int64), "node": at})
    for column in ("op", "name", "weight", "role", "problem", "types"):
        table[column] = nodes[column].astype(str).to_numpy(object)
    names = {n: "" if MADE_UP.match(n) else n for n in table["name"].unique()}
    table["name"] = table["name"].map(names)
    # The same name twice in a graph: numbered in the graph's order.
    alike = ["op", "name", "layer", "weight"]
    code = table.groupby(alike, sort=False).ngroup()
    table["nth"] = table.groupby([nodes["def_id"].to_numpy(), code.to_numpy()]).cumcount()
    table["slot"] = table.groupby(KEY, sort=False).ngroup()
    of_node = np.full(len(ran), -1, np.int64)
    of_node[at] = table["slot"].to_numpy()
    last = table.drop_duplicates("slot", keep="last").set_index("slot").sort_index()
    distinct = last[["name", "weight", "layer"]].itertuples(index=False)
    last["label"] = [label(str(n), str(w), int(i)) for n, w, i in distinct]
    return Slots(last[[*KEY, *FACTS]].reset_index(drop=True), of_node)
