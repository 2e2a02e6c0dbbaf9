"""Layer 5: which node of a graph has to wait for which: by its sources, and by memory they share.

A node's sources do not tell all. A KV cache is written by one node and read through a view of the
cache, which is no source of each other; a node computed in place overwrites what others read. So
accesses of the same tensor's memory are ordered too: read after write, write after read, write
after write, where the bytes overlap. That the engine's allocator puts unrelated tensors into the
same memory one after the other is no dependency: another plan would not.

Owns the edges. Works on definitions, never on operator events. Must not import pandas, the analyses
or above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from profinfer.model.definitions import Definition
from profinfer.model.operands import Operands

I32 = npt.NDArray[np.int32]
F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Dependencies:
    """Edges between the nodes of one definition, each pair once, ordered by ``dst``, then ``src``.

    Attributes:
        src: index of the node that comes first, shape (e,).
        dst: index of the node that needs it, shape (e,).
        memory: only memory that both use orders them, shape (e,).
    """

    src: I32
    dst: I32
    memory: Mask

    def __len__(self) -> int:
        return len(self.src)

    def through(self, kept: Mask) -> Dependencies:
        """Between the nodes of a mask only; what leads through others joins their ends.

        An edge of memory on the way makes the whole way one.
        """
        n = len(kept)
        before: list[dict[int, bool]] = [{} for _ in range(n)]  # earlier node -> by memory only
        for src, dst, memory in zip(
            self.src.tolist(), self.dst.tolist(), self.memory.tolist(), strict=True
        ):  # ordered by dst: what leads to src is known
            ways = {src: memory}
            if not kept[src]:
                ways = {p: memory or way for p, way in before[src].items()}
            for p, way in ways.items():
                before[dst][p] = before[dst].get(p, True) and way
        rows = [
            (p, dst, way)
            for dst in np.flatnonzero(kept).tolist()
            for p, way in sorted(before[dst].items())
        ]
        table = np.array(rows, np.int64).reshape(-1, 3)
        return Dependencies(
            table[:, 0].astype(np.int32), table[:, 1].astype(np.int32), table[:, 2] > 0
        )


@dataclass(frozen=True)
class _Access:
    node: int
    writes: bool
    begin: int  # bytes of the root's memory, by address
    end: int

    def meets(self, other: _Access) -> bool:
        """Whether their order matters; bytes that are not known may be any."""
        if not (self.writes or other.writes) or self.node == other.node:
            return False
        known = self.begin and other.begin
        return not known or (self.begin < other.end and other.begin < self.end)

    def hides(self, other: _Access) -> bool:
        """Whether it writes every byte of the other, so that nothing older matters to that."""
        known = self.begin and other.begin and self.node != other.node
        return bool(known and self.writes and self.begin <= other.begin and other.end <= self.end)


def of_definition(item: Definition, works: Mask, operands: Operands, base: int) -> Dependencies:
    """The edges of one definition, those of memory included.

    Args:
        item: the definition.
        works: nodes that compute something, shape (n_nodes,).
        operands: sizes; of all definitions.
        base: node_id of the definition's first node.
    """
    n = len(item.node)
    dst, slot = np.nonzero(item.src_idx >= 0)
    src = item.src_idx[dst, slot]
    data = np.unique(np.stack([dst, src], axis=1), axis=0) if len(dst) else np.zeros((0, 2), int)
    size = operands.size[operands.of_node[base : base + n]]
    known = {(int(d), int(s)) for d, s in data.tolist()}
    extra = sorted({pair for pair in _ordered(item, works, size) if pair not in known})
    both = np.array([*data.tolist(), *extra], np.int64).reshape(-1, 2)
    memory = np.r_[np.zeros(len(data), bool), np.ones(len(extra), bool)]
    order = np.lexsort((both[:, 1], both[:, 0]))
    return Dependencies(
        both[order, 1].astype(np.int32), both[order, 0].astype(np.int32), memory[order]
    )


def _ordered(item: Definition, works: Mask, size: F64) -> set[tuple[int, int]]:
    """(later, earlier) of the nodes that meet in the memory of one tensor."""
    shared = _shared_roots(item, works)
    accesses: dict[int, list[_Access]] = {}

    def access(node: int, root: int, writes: bool, begin: int, length: float) -> None:
        if root in shared:
            end = begin + int(length) if np.isfinite(length) else begin + (1 << 62)
            accesses.setdefault(root, []).append(_Access(node, writes, begin, end))

    for node in np.flatnonzero(works & (item.node >= 0)).tolist():
        for slot in np.flatnonzero(item.src_root[node]).tolist():
            access(node, int(item.src_root[node, slot]), False,
                   int(item.src_data[node, slot]), float(size[node, 1 + slot]))  # fmt: skip
        access(node, int(item.root[node]), True, int(item.data[node]), float(size[node, 0]))
    out: set[tuple[int, int]] = set()
    for same in accesses.values():
        for i, later in enumerate(same):
            for earlier in reversed(same[:i]):
                if later.meets(earlier):
                    out.add((later.node, earlier.node))
                if earlier.hides(later):
                    break  # what came before it is ordered through it
    return out


def _shared_roots(item: Definition, works: Mask) -> set[int]:
    """Memory that a node writes which is not the first to own it: caches, and what is in place."""
    writes = works & (item.node >= 0) & (item.root != item.address)
    return set(item.root[writes].tolist())
