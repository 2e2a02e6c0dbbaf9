"""Layer 5: graph definitions become the nodes and edges tables.

Owns names, shapes and weights of nodes. Works on distinct tensors and gathers, so
that a thousand definitions cost no more strings than one. Must not import the analyses or above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.engine.catalog import operators
from profinfer.engine.roles import RoleRules
from profinfer.model import tensors
from profinfer.model.definitions import MISSING, NONE, Definitions
from profinfer.model.noderoles import Placed, roles_and_layers
from profinfer.model.opmarks import NodeIndex
from profinfer.model.texts import Texts, coded
from profinfer.tracefile.metadata import Engine, Layout

I32 = npt.NDArray[np.int32]

UNREAD = "?"


@dataclass(frozen=True)
class NodeTables:
    """Nodes and edges.

    Attributes:
        nodes: one row per node of each distinct definition; the index is the node_id.
        edges: one row per source of each node.
        index: the same nodes as arrays.
        unknown_ops: nodes whose op number the engine's table does not name.
    """

    nodes: pd.DataFrame
    edges: pd.DataFrame
    index: NodeIndex
    unknown_ops: int


def build(definitions: Definitions, engine: Engine, roles: RoleRules) -> NodeTables:
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
    names = Texts([tensors.text(n) for n in fields.name.tolist()])
    shapes = Texts([tensors.shape_text(ne) for ne in fields.ne.tolist()])
    kinds = Texts(types)
    params = Texts(_params(op_names, fields.param.tolist(), engine))
    ops = Texts(op_names)
    ops.categories, ops.codes = coded([*op_names, UNREAD])

    items = definitions.items
    count = np.array([len(d.node) for d in items], np.int64)
    node = _join([d.node for d in items], np.int32)
    width = layout.tensor.get("max_src", 10)
    src = _join([d.src for d in items], np.int32, width)
    src_weight = _join([d.src_weight for d in items], np.int32, width)
    weight = np.full(len(node), NONE, np.int32)
    for slot in reversed(range(width)):  # the first weight among the sources wins
        weight = np.where(src_weight[:, slot] >= 0, src_weight[:, slot], weight)

    empty_op = np.array([n in operators().empty for n in op_names] + [False])
    compute = layout.flags.get("compute")
    flags = np.r_[fields.flags, 0]
    skipped = (flags & compute) == 0 if compute else np.zeros(len(flags), bool)
    empty = (empty_op | skipped)[node] & (node >= 0)
    def_id = np.repeat(np.arange(len(items), dtype=np.int32), count)
    idx = (np.arange(len(node)) - np.repeat(np.cumsum(count) - count, count)).astype(np.int32)
    src_idx = _join([d.src_idx for d in items], np.int32, width)
    role, layer, inferred = roles_and_layers(
        Placed(node, weight, src, src_idx, idx), names, ops, roles
    )
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
        empty=empty_op[node] & (node >= 0),
        address=_join([d.address for d in items], np.uint64),
    )
    unknown = sum(1 for n in np.asarray(op_names)[node[node >= 0]] if n.startswith("op#"))
    edges = _edges(def_id, idx, src, src_idx, src_weight, names)
    return NodeTables(nodes, edges, index, unknown)


def _join(parts: list[npt.NDArray[Any]], dtype: Any, width: int = 0) -> npt.NDArray[Any]:
    if parts:
        return np.concatenate(parts)
    return np.zeros((0, width) if width else 0, dtype)


def _params(op_names: list[str], first: list[int], engine: Engine) -> list[str]:
    """Name of the function that UNARY, GLU and their like compute."""
    tables = {op: getattr(engine, table, ()) for op, table in operators().parameter.items()}
    out = []
    for op, value in zip(op_names, first, strict=True):
        known: Sequence[str] | None = tables.get(op)
        if known is None:
            out.append("")
        else:
            out.append(known[value] if 0 <= value < len(known) else f"#{value}")
    return out


def _edges(
    def_id: I32,
    idx: I32,
    src: I32,
    src_idx: I32,
    src_weight: I32,
    names: Texts,
) -> pd.DataFrame:
    """One row per source."""
    row, slot = np.nonzero(src != NONE)
    content = src[row, slot]
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
