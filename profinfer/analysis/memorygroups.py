"""Layer 6: which role or layer a fault or a read belongs to. Must not import rich or above."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.analysis.operators import NO_LAYER
from profinfer.model.trace import Trace

_KV_ROLE = "KV cache"


@dataclass(frozen=True)
class Groups:
    """Names of groups of tensors.

    Nodes of several roles may read one weight: with tied embeddings the first and the last
    operator do. Where the operator is known, it decides.

    Attributes:
        of_tensor: tensor -> its group; of a weight with several roles all of them.
        of_node: by node_id, the group of the weight that it reads.
        weight: by node_id, that weight; "" for none.
        sizes: group -> bytes of its tensors; a tensor of several groups counts to each.
    """

    of_tensor: dict[str, str]
    of_node: npt.NDArray[np.object_]
    weight: npt.NDArray[np.object_]
    sizes: pd.Series

    def label(self, table: pd.DataFrame) -> pd.Series:
        """Group of each row of a table with ``tensor`` and ``node_id``; NaN: it hit no tensor."""
        out = table["tensor"].map(self.of_tensor).astype(object)
        node, tensor = table["node_id"].to_numpy(), table["tensor"].to_numpy(dtype=object)
        known = np.flatnonzero((node >= 0) & (tensor != ""))
        known = known[self.weight[node[known]] == tensor[known]]
        out.iloc[known] = self.of_node[node[known]]
        return out


def groups(trace: Trace, key: str) -> Groups:
    """Groups by "tensor", "role" or "layer"."""
    table = trace.residents.tensors
    nodes = trace.nodes
    weight = nodes["weight"].astype(str).to_numpy(dtype=object)
    if key == "tensor":
        names = {name: name for name in table["name"]}
        return Groups(names, weight, weight, table.groupby("name")["size"].sum())
    label = nodes[key].astype(str).replace("-1", NO_LAYER).to_numpy(dtype=object)
    pairs = pd.DataFrame({"name": weight, "group": label})[weight != ""].drop_duplicates()
    # A weight of many layers, as the factors of a rotation are, belongs to none of them.
    joined = pairs.groupby("name", sort=False)["group"].agg(
        lambda g: g.iloc[0] if len(g) == 1 else NO_LAYER if key == "layer" else " / ".join(g)
    )
    of = {str(name): str(group) for name, group in joined.items()}
    for name, kind in zip(table["name"], table["kind"], strict=True):
        number = name.rpartition("_l")[2]
        if kind == "kv":
            of[name] = _KV_ROLE if key == "role" else number if number.isdigit() else NO_LAYER
        else:
            of.setdefault(name, NO_LAYER)
    mine = pd.DataFrame({"name": list(of), "group": list(of.values())})
    every = pd.concat([pairs, mine]).drop_duplicates()
    every["size"] = every["name"].map(table.groupby("name")["size"].sum()).fillna(0)
    sizes = every.groupby("group")["size"].sum().astype(np.int64)
    return Groups(of, label, weight, sizes)
