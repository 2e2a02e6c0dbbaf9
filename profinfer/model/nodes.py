"""Layer 5: graph definitions become the nodes and edges tables.

Owns names, shapes, weights, layers and roles of nodes. Works on distinct tensors and gathers, so
that a thousand definitions cost no more strings than one. Must not import the analyses or above.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.model import tensors
from profinfer.model.definitions import MISSING, NONE, Definitions
from profinfer.model.operators import NodeIndex
from profinfer.model.roles import Roles
from profinfer.tracefile.metadata import Engine, Layout

I32 = npt.NDArray[np.int32]

UNREAD = "?"
# "Kcur-12", "Kcur-12 (view)", "cache_k_l12 (view)": the engine writes the layer into the name.
_SUFFIX = re.compile(r"^(?:.*-|.*_l)(\d+)(?: \(.*\))*$")
_WEIGHT_LAYER = re.compile(r"(?:^|\.)(?:blk|layers|layer|h|blocks)\.(\d+)\.")
# Names that ggml makes up: they say nothing of the layer, which is then inherited.
_AUTO = re.compile(r"^(?:|node_\d+|leaf_\d+)(?: \(.*\))*$")


@dataclass(frozen=True)
class NodeTables:
    """Attributes:
    nodes: one row per node of each distinct definition; the index is the node_id.
    edges: one row per source of each node.
    index: the same nodes as arrays.
    unknown_ops: nodes whose op number the engine's table does not name.
    """

    nodes: pd.DataFrame
    edges: pd.DataFrame
    index: NodeIndex
    unknown_ops: int


class _Texts:
    """Strings of the distinct tensors, and categoricals gathered from them."""

    def __init__(self, values: list[str]) -> None:
        self.values = [*values, ""]  # the last one serves -1: nothing there
        self.categories, self.codes = _codes(self.values)

    def take(self, content: I32) -> pd.Categorical:
        """Categorical of the strings of these content ids; -1 gives the empty string."""
        return pd.Categorical.from_codes(self.codes[content], categories=self.categories)


def _codes(values: list[str]) -> tuple[list[str], I32]:
    found: dict[str, int] = {}
    codes = np.fromiter((found.setdefault(v, len(found)) for v in values), np.int32, len(values))
    return list(found), codes


def layer_of(weight: str, name: str) -> int:
    """Layer by the weight's name, else by the node's own suffix; -1 if neither tells."""
    found = _WEIGHT_LAYER.search(weight) or _SUFFIX.match(name)
    return int(found.group(1)) if found else -1


def build(definitions: Definitions, engine: Engine, roles: Roles) -> NodeTables:
    """The nodes and edges tables of all distinct definitions."""
    contents = definitions.contents
    fields = contents.fields
    layout = engine.layout or Layout()
    bad = np.r_[contents.implausible, False]
    op_names = [
        engine.ops[op] if 0 <= op < len(engine.ops) else f"op#{op}" for op in fields.op.tolist()
    ]
    types = [
        t.name if 0 <= k < len(engine.types) and (t := engine.types[k]) else f"type#{k}"
        for k in fields.type.tolist()
    ]
    names = _Texts([tensors.text(n) for n in fields.name.tolist()])
    shapes = _Texts([tensors.shape_text(ne) for ne in fields.ne.tolist()])
    kinds = _Texts(types)
    params = _Texts(_params(op_names, fields.param.tolist(), engine))
    ops = _Texts(op_names)
    ops.categories, ops.codes = _codes([*op_names, UNREAD])

    items = definitions.items
    count = np.array([len(d.node) for d in items], np.int64)
    node = _join([d.node for d in items], np.int32)
    width = layout.tensor.get("max_src", 10)
    src = _join([d.src for d in items], np.int32, width)
    src_weight = _join([d.src_weight for d in items], np.int32, width)
    weight = np.full(len(node), NONE, np.int32)
    for slot in reversed(range(width)):  # the first weight among the sources wins
        weight = np.where(src_weight[:, slot] >= 0, src_weight[:, slot], weight)

    empty_op = np.array([n in tensors.EMPTY_OPS for n in op_names] + [False])
    compute = layout.flags.get("compute")
    flags = np.r_[fields.flags, 0]
    skipped = (flags & compute) == 0 if compute else np.zeros(len(flags), bool)
    empty = (empty_op | skipped)[node] & (node >= 0)
    def_id = np.repeat(np.arange(len(items), dtype=np.int32), count)
    idx = (np.arange(len(node)) - np.repeat(np.cumsum(count) - count, count)).astype(np.int32)
    role, layer, inferred = _roles(node, weight, names, ops, roles, idx == 0)
    table: dict[str, Any] = {
        "node_id": np.arange(len(node), dtype=np.int32),
        "def_id": def_id,
        "idx": idx,
        "op": ops.take(node),
        "name": names.take(node),
        "type": kinds.take(node),
    }
    for prefix, values in (("ne", fields.ne), ("nb", fields.nb)):
        padded = np.vstack([values, np.zeros((1, 4), values.dtype)])
        table |= {f"{prefix}{i}": padded[node, i] for i in range(4)}
    table["shape"] = shapes.take(node)
    for slot in range(2):
        one = np.where(src[:, slot] >= 0, src[:, slot], NONE).astype(np.int32)
        table |= {
            f"src{slot}_name": names.take(one),
            f"src{slot}_type": kinds.take(one),
            f"src{slot}_ne": shapes.take(one),
        }
    table |= {
        "weight": names.take(weight),
        "empty": empty,
        "view": np.r_[fields.view_src != 0, False][node],
        "flags": flags[node],
        "role": role,
        "layer": layer,
        "layer_inferred": inferred,
        "params": params.take(node),
        "unread": (node < 0) | bad[node],
    }
    nodes = pd.DataFrame(table, copy=False)
    index = NodeIndex(
        base=np.cumsum(count) - count,
        count=count,
        works=~empty & (node >= 0),
        address=_join([d.address for d in items], np.uint64),
    )
    unknown = sum(1 for n in np.asarray(op_names)[node[node >= 0]] if n.startswith("op#"))
    edges = _edges(definitions, def_id, idx, src, src_weight, names)
    return NodeTables(nodes, edges, index, unknown)


def _join(parts: list[npt.NDArray[Any]], dtype: Any, width: int = 0) -> npt.NDArray[Any]:
    if parts:
        return np.concatenate(parts)
    return np.zeros((0, width) if width else 0, dtype)


def _params(op_names: list[str], first: list[int], engine: Engine) -> list[str]:
    """Name of the activation of UNARY and GLU nodes."""
    out = []
    for op, value in zip(op_names, first, strict=True):
        known = {"UNARY": engine.unary_ops, "GLU": engine.glu_ops}.get(op, ())
        if op not in ("UNARY", "GLU"):
            out.append("")
        else:
            out.append(known[value] if 0 <= value < len(known) else f"#{value}")
    return out


def _roles(
    node: I32, weight: I32, names: _Texts, ops: _Texts, roles: Roles, first: npt.NDArray[np.bool_]
) -> tuple[pd.Categorical, pd.Series[int], npt.NDArray[np.bool_]]:
    """Role, layer and "the layer was inherited" of each node."""
    pairs, code = np.unique(np.c_[node, weight], axis=0, return_inverse=True)
    code = code.reshape(-1)
    role_of: list[str] = []
    layer_of_pair = np.zeros(len(pairs), np.int32)
    inherits = np.zeros(len(pairs), bool)
    for i, (n, w) in enumerate(pairs.tolist()):
        name, weight_name = names.values[n], names.values[w]
        role_of.append(roles.of(ops.categories[ops.codes[n]], name, weight_name))
        layer_of_pair[i] = layer_of(weight_name, name)
        inherits[i] = layer_of_pair[i] < 0 and not weight_name and bool(_AUTO.match(name))
    layer = layer_of_pair[code] if len(pairs) else np.zeros(0, np.int32)
    wants = inherits[code] if len(pairs) else np.zeros(0, bool)
    # Carry the last layer forward within a definition, over nodes that name none.
    source = np.where(wants & ~first, 0, np.arange(len(node)))
    np.maximum.accumulate(source, out=source)
    carried = layer[source]
    categories, codes = _codes(role_of)
    role = pd.Categorical.from_codes(
        codes[code] if len(pairs) else np.zeros(0, np.int32), categories=categories
    )
    return role, pd.Series(carried, dtype="int32"), wants & (carried >= 0)


def _edges(
    definitions: Definitions,
    def_id: I32,
    idx: I32,
    src: I32,
    src_weight: I32,
    names: _Texts,
) -> pd.DataFrame:
    """One row per source."""
    row, slot = np.nonzero(src != NONE)
    content = src[row, slot]
    src_idx = _join([d.src_idx for d in definitions.items], np.int32, src.shape[1])
    known = np.where(content == MISSING, NONE, content).astype(np.int32)
    return pd.DataFrame(
        {
            "def_id": def_id[row],
            "idx": idx[row],
            "slot": slot.astype(np.int16),
            "src_idx": src_idx[row, slot],
            "src_name": names.take(known),
            "src_is_weight": src_weight[row, slot] >= 0,
            "src_unread": content == MISSING,
        },
        copy=False,
    )
