"""Layer 1: bounds of functions from .eh_frame, which stripping leaves in place.

Owns the walk over CIEs and FDEs. pyelftools decodes the unwind programs as well and takes
seconds on a large library; only the two addresses at the head of each FDE are read here.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from profinfer.elf.symbols import ElfImage

# DW_EH_PE value formats: code -> (struct format, bytes); the sign bit 8 widens signed.
_FORMATS = {0x0: "<Q", 0x2: "<H", 0x3: "<I", 0x4: "<Q", 0xA: "<h", 0xB: "<i", 0xC: "<q"}
_UNSIGNED = {0xA: "<H", 0xB: "<I", 0xC: "<Q"}


def read_frames(image: ElfImage) -> list[tuple[int, int]]:
    """(begin, end) of every FDE, sorted. Entries with an unknown encoding are skipped."""
    section = image.section(".eh_frame")
    if section is None:
        return []
    raw = image.table(".eh_frame")
    encodings: dict[int, int | None] = {}
    found: list[tuple[int, int]] = []
    at = 0
    while at + 8 <= len(raw):
        (length,) = struct.unpack_from("<I", raw, at)
        if length == 0:
            at += 4
            continue
        if length == 0xFFFFFFFF:
            break  # 64-bit frames: no toolchain of these machines writes them
        end = at + 4 + length
        (pointer,) = struct.unpack_from("<I", raw, at + 4)
        if pointer:
            cie = at + 4 - pointer
            if cie not in encodings:
                encodings[cie] = _pointer_encoding(raw, cie)
            bounds = _bounds(raw, at + 8, section.address, encodings[cie])
            if bounds:
                found.append(bounds)
        at = end
    found.sort()
    return found


def _bounds(raw: bytes, at: int, base: int, encoding: int | None) -> tuple[int, int] | None:
    if encoding is None or encoding & 0x0F not in _FORMATS or encoding & 0x80:
        return None
    fmt = _FORMATS[encoding & 0x0F]
    size = struct.calcsize(fmt)
    if at + 2 * size > len(raw):
        return None
    begin = struct.unpack_from(fmt, raw, at)[0]
    if encoding & 0x70 == 0x10:  # pc-relative
        begin += base + at
    elif encoding & 0x70:
        return None
    length = struct.unpack_from(_UNSIGNED.get(encoding & 0x0F, fmt), raw, at + size)[0]
    return (begin & (1 << 64) - 1, begin + length) if length else None


def _pointer_encoding(raw: bytes, at: int) -> int | None:
    """The R byte of a CIE's augmentation: how its FDEs write addresses."""
    if at < 0 or at + 9 > len(raw):
        return None
    zero = raw.find(b"\0", at + 9)
    augmentation = raw[at + 9 : zero]
    if not augmentation.startswith(b"z"):
        return 0
    at = zero + 1
    at = _skip_leb(raw, at)  # code alignment
    at = _skip_leb(raw, at)  # data alignment
    at = _skip_leb(raw, at)  # return address register
    at = _skip_leb(raw, at)  # augmentation length
    for letter in augmentation[1:]:
        match chr(letter):
            case "R":
                return raw[at]
            case "P":
                fmt = _FORMATS.get(raw[at] & 0x0F)
                if fmt is None:
                    return None
                at += 1 + struct.calcsize(fmt)
            case "L":
                at += 1
            case "S" | "B":
                pass
            case _:
                return None
    return 0


def _skip_leb(raw: bytes, at: int) -> int:
    while raw[at] & 0x80:
        at += 1
    return at + 1
