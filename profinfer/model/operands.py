"""Layer 5: what each node reads and writes: shapes, bytes addressed, and what kind of data it is.

Owns the step from raw tensors to operands; what an operator does with them is not known here.
Vectorised over distinct problems. Must not import the analyses or above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from profinfer.model import tensors
from profinfer.model.definitions import NONE, Definitions
from profinfer.tracefile.metadata import Engine, Layout

I8 = npt.NDArray[np.int8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

ACTIVATION, WEIGHT, KV = 0, 1, 2
# llama.cpp names its KV cache cache_k_l3; views of it keep the beginning of the name.
_KV_PREFIX = b"cache_"


@dataclass(frozen=True)
class Operands:
    """P distinct problems with S source slots; N nodes of all definitions.

    Attributes:
        of_node: problem of each node, shape (N,); -1 where the node was not read.
        src_node: node_id of each source, -1 for a leaf or none, shape (N, S).
        op: operator number of each problem, shape (P,).
        param: first operator parameter of the output, shape (P,).
        ne: elements per dimension of the output (slot 0) and the sources, shape (P, 1 + S, 4);
            zeros where there is none.
        size: bytes addressed, shape (P, 1 + S). An element that a view's strides reach twice
            counts once; NaN where the type is not known or the source was not read.
        element: bytes of one element, blocks taken as a whole, shape (P, 1 + S); NaN alike.
        block: elements of a block of the type, shape (P, 1 + S): 1 if it is not quantised.
        kind: ACTIVATION, WEIGHT or KV of each source, shape (P, S).
    """

    of_node: I32
    src_node: I32
    op: I64
    param: I64
    ne: I64
    size: F64
    element: F64
    block: I64
    kind: I8


def build(definitions: Definitions, engine: Engine) -> Operands:
    """Operands of every node of every definition."""
    items, fields = definitions.items, definitions.contents.fields
    width = (engine.layout or Layout()).tensor.get("max_src", 10)
    node = _join([d.node for d in items])
    src = _join([d.src for d in items], width)
    weight = _join([d.src_weight for d in items], width) >= 0
    src_idx = _join([d.src_idx for d in items], width)
    count = np.array([len(d.node) for d in items], np.int64)
    base = np.repeat(np.cumsum(count) - count, count)
    src_node = np.where(src_idx >= 0, src_idx + base[:, None], NONE).astype(np.int32)

    rows = np.ascontiguousarray(np.hstack([node[:, None], src, weight.astype(np.int32)]), np.int32)
    packed = rows.view(f"V{rows.shape[1] * 4}").reshape(-1)
    _, first, of_node = np.unique(packed, return_index=True, return_inverse=True)
    chosen = np.hstack([node[first, None], src[first]])  # content ids: output, sources

    size, element, block = _sizes(fields, engine)
    pad = np.zeros((1, 4), np.int64)
    ne = np.vstack([fields.ne, pad])[np.maximum(chosen, NONE)]
    missing = (chosen < NONE) | np.r_[definitions.contents.implausible, False][chosen]
    none = chosen == NONE
    kv = np.r_[np.char.startswith(fields.name, _KV_PREFIX), False]
    kind = np.where(kv[np.maximum(src[first], NONE)], KV, ACTIVATION)

    def of(values: F64, absent: float) -> F64:
        out: F64 = np.r_[values, absent][np.maximum(chosen, NONE)]
        out[missing] = np.nan
        return out

    return Operands(
        of_node=np.where(node >= 0, of_node.reshape(-1), NONE).astype(np.int32),
        src_node=src_node,
        op=np.r_[fields.op, NONE][np.maximum(chosen[:, 0], NONE)],
        param=np.r_[fields.param, 0][np.maximum(chosen[:, 0], NONE)],
        ne=np.where((none | missing)[:, :, None], 0, ne),
        size=of(size, 0.0),
        element=of(element, 0.0),
        block=np.r_[block, 1][np.maximum(chosen, NONE)],
        kind=np.where(weight[first], WEIGHT, kind).astype(np.int8),
    )


def _join(parts: list[I32], width: int = 0) -> I32:
    if parts:
        return np.concatenate(parts)
    return np.zeros((0, width) if width else 0, np.int32)


def _sizes(fields: tensors.Fields, engine: Engine) -> tuple[F64, F64, I64]:
    """Bytes addressed, bytes an element and elements a block, of every distinct tensor."""
    size_of, of_block = tensors.blocks(fields, engine.types)
    of_unit = np.where(size_of > 0, size_of, np.nan)
    ne = fields.ne.astype(np.float64)
    element = of_unit / of_block
    every = ne.prod(axis=1) * element
    # From the first byte to the last: less than every element's own bytes where rows overlap or
    # a stride is 0.
    steps = np.c_[ne[:, 0] / of_block, ne[:, 1:]] - 1
    span = (steps * fields.nb.astype(np.float64)).sum(axis=1) + of_unit
    size = np.where(every > 0, np.minimum(every, span), every)
    return size, element, of_block
