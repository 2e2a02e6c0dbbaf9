"""Layer 3: ring-buffer entries made smaller for the file, and made whole again.

Definitions of graphs are structs that hold little but zeros and names: they shrink to a tenth. Must
not import anything above.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

_LENGTH = struct.Struct("<Q")
_FASTEST = 1
# A block of this size takes some 40 ms to pack: longer, and the ring might fill meanwhile.
_MOST = 4 << 20
# The ring never holds more than this, so no block does.
_MOST_UNPACKED = 1 << 31


def pack(parts: Sequence[memoryview], size: int) -> bytes | None:
    """The payload of a PACKED chunk; None where packing takes too long or gains nothing.

    Args:
        parts: what follows each other.
        size: bytes of all.
    """
    if size > _MOST:
        return None
    packer = zlib.compressobj(_FASTEST)
    out = [_LENGTH.pack(size), *(packer.compress(part) for part in parts), packer.flush()]
    packed = b"".join(out)
    return packed if len(packed) < size else None


def unpack(payload: bytes) -> bytes:
    """What was packed.

    Raises:
        ValueError: the payload is damaged, or it does not hold what it says.
    """
    if len(payload) < _LENGTH.size:
        raise ValueError("it is cut short")
    (size,) = _LENGTH.unpack_from(payload)
    if size > _MOST_UNPACKED:
        raise ValueError(f"it claims to hold {size} bytes")
    unpacker = zlib.decompressobj()
    try:
        # One byte more than there should be, to notice it: what it claims is not made room for.
        out = unpacker.decompress(payload[_LENGTH.size :], size + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(out) != size or not unpacker.eof:
        raise ValueError(f"it holds {len(out)} bytes or more, not {size}")
    return out
