"""Layer 6: what experts take: bytes of weights, time of their operators, faults on their weights.

Must not import rich or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.analysis.expertuse import FIRST, accesses
from profinfer.model.experts import expert_at
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sizes:
    """Bytes of experts, by layer.

    Attributes:
        experts: layer -> experts to choose from.
        used: layer -> experts a token.
        size: layer -> bytes of one expert, all of its tensors.
    """

    experts: dict[int, int]
    used: dict[int, int]
    size: dict[int, int]

    @property
    def whole(self) -> int:
        """Bytes of all experts."""
        return sum(n * self.size.get(layer, 0) for layer, n in self.experts.items())

    def bytes_of(self, layers: npt.NDArray[np.integer]) -> I64:
        """Bytes of an expert of each layer."""
        known, at = np.unique(layers, return_inverse=True)
        return np.array([self.size.get(int(x), 0) for x in known], np.int64)[at]


def sizes(trace: Trace) -> Sizes:
    """How many experts there are, and how large one is."""
    places = trace.expert_places
    layer = trace.nodes["layer"].to_numpy()[places.node].tolist()
    one = trace.expert_weights[trace.expert_weights["expert"] == 0]
    of = one.groupby("layer")["bytes"].sum()
    return Sizes(
        dict(zip(layer, places.n_experts.tolist(), strict=True)),
        dict(zip(layer, places.n_used.tolist(), strict=True)),
        dict(zip(of.index.tolist(), of.tolist(), strict=True)),
    )


def passes(trace: Trace, selection: Selection) -> pd.DataFrame:
    """One row per selected pass of a layer: what it needed and what that took.

    Columns: ``graph_id``, ``layer``, ``experts`` (distinct), ``fresh`` (not needed by the pass
    before), ``first`` (never needed before), ``gap`` (mean of its experts, those of ``first`` left
    out), ``op_ns`` (time of its nodes with experts, NaN if torn), ``majors`` and ``held_ns`` (major
    faults on experts' weights in these nodes; 0 where faults were not recorded).
    """
    needed = needed_experts(trace, selection)
    known = needed["gap"].where(needed["gap"] != FIRST)
    out = (
        needed.assign(known=known, fresh=needed["gap"] != 1, first=needed["gap"] == FIRST)
        .groupby(["graph_id", "layer"], sort=True)
        .agg(experts=("expert", "size"), fresh=("fresh", "sum"), first=("first", "sum"),
             gap=("known", "mean"))
    )  # fmt: skip
    walls = trace.op_walls
    mine = np.isin(walls["node_id"].to_numpy(), trace.expert_places.node)
    walls = walls[mine & walls["complete"].to_numpy()]
    took = pd.DataFrame(
        {
            "graph_id": walls["graph_id"].to_numpy(),
            "layer": trace.nodes["layer"].to_numpy()[walls["node_id"].to_numpy()],
            "op_ns": (walls["release_ns"] - walls["begin_ns"]).to_numpy(),
        }
    )
    took = took.groupby(["graph_id", "layer"]).sum()
    hit = faults(trace)
    hit = hit[hit["major"]].groupby(["graph_id", "layer"]).agg(
        majors=("faults", "sum"), held_ns=("held_ns", "sum")
    )  # fmt: skip
    out = out.join(took).join(hit).fillna({"majors": 0, "held_ns": 0}).reset_index()
    return out.astype({"majors": np.int64, "held_ns": np.int64})


def needed_experts(trace: Trace, selection: Selection) -> pd.DataFrame:
    """The selected ones of ``accesses``."""
    needed = accesses(trace)
    return needed[chosen(trace, selection, needed)]


def faults(trace: Trace) -> pd.DataFrame:
    """The faults on experts' weights, with ``layer`` and ``expert``."""
    table = trace.faults
    at = expert_at(trace.expert_weights, table["address"].to_numpy())
    table, at = table[at >= 0], at[at >= 0]
    weights = trace.expert_weights
    return table.assign(
        layer=weights["layer"].to_numpy()[at], expert=weights["expert"].to_numpy()[at]
    )


def chosen(trace: Trace, selection: Selection, table: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Rows with a graph_id and a layer that the selection covers.

    A layer is covered if one of the selected nodes that compute with experts lies in it.
    """
    mask: npt.NDArray[np.bool_] = selection.graphs[table["graph_id"].to_numpy()]
    if selection.narrowed:
        node = trace.expert_places.node
        layers = trace.nodes["layer"].to_numpy()[node[selection.nodes[node]]]
        mask &= np.isin(table["layer"].to_numpy(), layers)
    return mask
