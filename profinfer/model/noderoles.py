"""Layer 5: the part that each node plays in the model, and its layer.

What names do not tell is told by neighbours: the sources, a reader, the node before. Must not
import the analyses or above.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.engine.roles import RoleRules
from profinfer.model.definitions import NONE
from profinfer.model.texts import Texts, coded

I32 = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

# Names that ggml makes up, with what views add to them: they say nothing of the layer.
MADE_UP = re.compile(r"^(?:|node_\d+|leaf_\d+)(?: \(.*\))*$")
# An unnamed node is placed by what it reads: attention reads cache_k_l3.
_SOURCES = 3


@dataclass(frozen=True)
class Placed:
    """The nodes of all definitions, one after another; content ids as in ``Definitions``.

    Attributes:
        node: content of each node, shape (n,).
        weight: content of its weight, NONE without one, shape (n,).
        src: content of its sources, shape (n, slots).
        src_idx: place of its sources in its graph, NONE for what is no node, shape (n, slots).
        idx: its own place, shape (n,).
    """

    node: I32
    weight: I32
    src: I32
    src_idx: I32
    idx: I32


def roles_and_layers(
    placed: Placed, names: Texts, ops: Texts, rules: RoleRules
) -> tuple[pd.Categorical[Any], I32, Mask]:
    """Role, layer and "the layer was told by a neighbour" of each node."""
    node, weight, src = placed.node, placed.weight, placed.src
    auto = np.array([MADE_UP.match(n) is not None for n in names.values])
    unnamed = auto[node] & (weight < 0)
    columns = [weight]
    # Only an unnamed node is asked for its sources.
    columns += [
        np.where(unnamed & (src[:, slot] >= 0), src[:, slot], NONE)
        for slot in range(min(_SOURCES, src.shape[1]))
    ]
    code = distinct(node, columns, len(names.values))
    rows = np.unique(code, return_index=True)[1]
    role_of: list[str] = []
    layer_of = np.full(len(rows), NONE, np.int32)
    own, by_reader = np.zeros(len(rows), bool), np.zeros(len(rows), bool)
    for i, row in enumerate(rows.tolist()):
        op = ops.categories[ops.codes[node[row]]]
        name, weight_name = names.values[node[row]], names.values[weight[row]]
        role_of.append(rules.role(op, name, weight_name))
        own[i] = rules.layer(name, weight_name) is not None
        sources = [names.values[c[row]] for c in columns[1:]]
        layer = rules.layer(name, weight_name, *sources)
        by_reader[i] = not own[i] and rules.of_its_reader(op, *sources)
        layer_of[i] = NONE if layer is None else layer
    layers = layer_of[code]
    wants = unnamed & (layers < 0)
    # What neither it nor its sources tell is taken from the node before, within a definition.
    source = np.where(wants & (placed.idx > 0), 0, np.arange(len(node)))
    np.maximum.accumulate(source, out=source)
    carried = layers[source]
    asks = np.flatnonzero(by_reader[code])
    told = _of_readers(placed, asks, carried)
    carried[asks[told >= 0]] = told[told >= 0]
    categories, codes = coded(role_of)
    role = pd.Categorical.from_codes(codes[code], categories=pd.Index(categories))
    return role, carried, unnamed & ~own[code] & (carried >= 0)


def _of_readers(placed: Placed, asks: npt.NDArray[np.int64], layers: I32) -> I32:
    """Layer of the first node that reads each of some nodes; NONE without one."""
    base = np.arange(len(placed.idx)) - placed.idx
    row, slot = np.nonzero(placed.src_idx >= 0)
    read = base[row] + placed.src_idx[row, slot]
    kept = np.isin(read, asks)
    found, first = np.unique(read[kept], return_index=True)  # rows ascend: the first is the first
    out = np.full(len(asks), NONE, np.int32)
    out[np.searchsorted(asks, found)] = layers[row[kept][first]]
    return out


def distinct(first: I32, others: Sequence[I32], values: int) -> npt.NDArray[np.int64]:
    """Number of the distinct combination of content ids (-2 to ``values``) in each row."""
    code = np.unique(first, return_inverse=True)[1].astype(np.int64)
    for column in others:
        code = code * (values + 3) + column + 2
        code = np.unique(code, return_inverse=True)[1]  # stays small, whatever the columns
    return code
