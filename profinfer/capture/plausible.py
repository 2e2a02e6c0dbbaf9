"""Layer 4: the first tensors of a recording, checked while the target still runs.

A wrong struct layout gives numbers that look like data. What is read must therefore make sense
as as tensors: a known operator and type, positive sizes, a printable name. This is the only
decoding the recorder does, once, for the first tensors it sees.
"""

from __future__ import annotations

import dataclasses
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
# A block ends wherever the engine was just then. The views of a cache follow one another, and none
# of them is dense: fewer tensors than this say nothing about a layout.
_ENOUGH = 32


@dataclass(frozen=True)
class Verdict:
    """What a check of tensors found.

    Attributes:
        seen: tensors looked at; bad: those that make no sense.
        dense: those whose second stride follows from type and shape; views need not, but most
            tensors of a graph are dense.
        example: the first bad one in words, None without any.
    """

    seen: int
    bad: int
    dense: int
    example: str | None

    @property
    def acceptable(self) -> bool:
        """A stray tensor may be odd (torn, freed); a wrong layout makes nearly all of them so."""
        return self.bad * 10 <= self.seen and not self.strides_are_odd

    @property
    def strides_are_odd(self) -> bool:
        """Among enough tensors, so few are dense that the strides must lie elsewhere."""
        return self.seen >= _ENOUGH and self.dense * 2 < self.seen

    @property
    def reason(self) -> str:
        """What is wrong, in words."""
        return self.example or "strides do not follow from the shapes"


class TensorCheck:
    """Looks at the first tensors of a recording, over as many blocks as it takes.

    Args:
        layout: the offsets in use.
        ops: operator names by number.
        types: type entries by number, None for a hole.
    """

    def __init__(self, layout: Layout, ops: Sequence[str], types: Sequence[Any]) -> None:
        self._layout = layout
        self._ops = ops
        self._types = types
        self._so_far = Verdict(0, 0, 0, None)

    def look(self, block: memoryview) -> Verdict | None:
        """Take in a block of ring-buffer entries; the verdict, once enough was seen for one."""
        seen, bad, dense, example = dataclasses.astuple(self._so_far)
        for raw in _tensors(block, self._layout.tensor_size):
            seen += 1
            problem = _problem(raw, self._layout, self._ops, self._types)
            if problem:
                bad += 1
                example = example or problem
            elif _is_dense(raw, self._layout, self._types):
                dense += 1
        self._so_far = Verdict(seen, bad, dense, example)
        return self._so_far if seen >= _ENOUGH else None

    @property
    def verdict(self) -> Verdict:
        """Of what was seen, however little: a recording may end before there is enough."""
        return self._so_far


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
