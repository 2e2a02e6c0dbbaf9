"""Layer 4: the first tensors of a recording, checked while the target still runs.

A wrong struct layout gives numbers that look like data. What is read must therefore make sense
as tensors: a known operator and type, positive sizes, a printable name. This is the only
decoding the recorder does, once, for the first definition it sees.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from profinfer.engine.catalog import Layout
from profinfer.tracefile.schema import RING_DISCARD, Kind, tensor_dtype

_ENTRY = struct.Struct("<IIHH")
_ENTRY_HEADER = 8
_RAW_AT = tensor_dtype(0).itemsize
_MAX_ELEMENTS = 1 << 44  # far more than fits in memory


@dataclass(frozen=True)
class Verdict:
    """What a check of tensors found.

    Attributes:
        seen: tensors looked at; bad: those that make no sense.
        dense: those whose second stride follows from type and shape; views need not, but most
            tensors of a graph are dense.
        example: the first bad one in words, or None.
    """

    seen: int
    bad: int
    dense: int
    example: str | None

    @property
    def acceptable(self) -> bool:
        """A stray tensor may be odd (torn, freed); a wrong layout makes nearly all of them so."""
        return self.bad * 10 <= self.seen and self.dense * 2 >= self.seen


def check_tensors(
    block: memoryview, layout: Layout, ops: Sequence[str], types: Sequence[Any]
) -> Verdict:
    """Check every tensor record of a block of ring-buffer entries.

    Args:
        block: entries as the kernel wrote them.
        layout: the offsets in use.
        ops: operator names by number.
        types: type entries by number, None for a hole.
    """
    seen = bad = dense = 0
    example = None
    for raw in _tensors(block, layout.tensor_size):
        seen += 1
        problem = _problem(raw, layout, ops, types)
        if problem:
            bad += 1
            example = example or problem
        elif _is_dense(raw, layout, types):
            dense += 1
    if dense * 2 < seen:
        example = example or "strides do not follow from the shapes"
    return Verdict(seen, bad, dense, example)


def _tensors(block: memoryview, size: int) -> Iterator[memoryview]:
    at = 0
    while at + _ENTRY.size <= len(block):
        head, _, kind, _ = _ENTRY.unpack_from(block, at)
        length = head & ~RING_DISCARD
        if kind == Kind.TENSOR and not head & RING_DISCARD:
            start = at + _ENTRY_HEADER + _RAW_AT
            yield block[start : start + size]
        at += (length + _ENTRY_HEADER + 7) & ~7


def _problem(
    raw: memoryview, layout: Layout, ops: Sequence[str], types: Sequence[Any]
) -> str | None:
    t = layout.tensor
    op = int.from_bytes(raw[t["op"] : t["op"] + 4], "little")
    kind = int.from_bytes(raw[t["type"] : t["type"] + 4], "little")
    ne = struct.unpack_from("<4q", raw, t["ne"])
    name = bytes(raw[t["name"] : t["name"] + t["name_size"]]).partition(b"\0")[0]
    if op >= len(ops):
        return f"operator number {op}"
    if kind >= len(types) or types[kind] is None:
        return f"type number {kind}"
    if min(ne) < 0 or max(ne) > _MAX_ELEMENTS:
        return f"shape {list(ne)}"
    if not name.decode("utf-8", "replace").isprintable():
        return f"name {name[:16]!r}"
    return None


def _is_dense(raw: memoryview, layout: Layout, types: Sequence[Any]) -> bool:
    t = layout.tensor
    kind = types[int.from_bytes(raw[t["type"] : t["type"] + 4], "little")]
    (length,) = struct.unpack_from("<q", raw, t["ne"])
    first, second = struct.unpack_from("<2Q", raw, t["nb"])
    return bool(first == kind["size"] and second * kind["block"] == length * kind["size"])
