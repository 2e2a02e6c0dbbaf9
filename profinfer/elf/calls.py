"""Layer 1: where a function is called from, found by the bytes of direct calls.

Looking for ``call`` bytes takes milliseconds where decoding every instruction of a large
library takes minutes. A match inside another instruction is possible in principle, so what
is found is a candidate.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from profinfer.elf.symbols import ElfImage


def calls_to(
    image: ElfImage, callee: str, begin: int | None = None, end: int | None = None
) -> Iterator[int]:
    """Addresses of calls of a function, through PLT stubs and GOT slots too.

    Args:
        image: where to look.
        callee: name of the function, with or without a definition in the image.
        begin: first address to look at; all code by default.
        end: address to stop before.
    """
    targets = {a for a, name in image.stubs.items() if name == callee}
    own = image.function(callee)
    if own:
        targets.add(own.address)
    slots = {a for a, name in image.slots.items() if name == callee}
    search = _x86_64 if image.machine == "x86_64" else _aarch64
    for section in image.sections:
        if not (section.executable and section.has_bytes):
            continue
        first = max(section.address, begin or 0)
        last = min(section.address + section.size, end or 1 << 64)
        if first < last and not section.name.startswith(".plt"):
            yield from search(image.read(first, last - first), first, targets, slots)


def _x86_64(raw: bytes, base: int, targets: set[int], slots: set[int]) -> Iterator[int]:
    """``e8 rel32``, and ``ff 15 rel32`` (call through a slot)."""
    for opcode, goals in ((b"\xe8", targets), (b"\xff\x15", slots)):
        if not goals:
            continue
        width = len(opcode)
        at = raw.find(opcode)
        while 0 <= at <= len(raw) - width - 4:
            (distance,) = struct.unpack_from("<i", raw, at + width)
            if base + at + width + 4 + distance in goals:
                yield base + at
            at = raw.find(opcode, at + 1)


def _aarch64(raw: bytes, base: int, targets: set[int], _slots: set[int]) -> Iterator[int]:
    """``bl``: 26 bits of words."""
    for i, (word,) in enumerate(struct.iter_unpack("<I", raw[: len(raw) - len(raw) % 4])):
        if word & 0xFC000000 == 0x94000000:
            words = (word & 0x03FFFFFF) - ((word & 0x02000000) << 1)
            if base + 4 * i + 4 * words in targets:
                yield base + 4 * i
