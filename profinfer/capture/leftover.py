"""Layer 4: operator records that a thread has not handed over.

A batch leaves the kernel when it is full or when its thread leaves the graph. A target that is
killed in the middle of a graph leaves open batches behind, and so do the operators' probes when
they are removed; they are in the map of slots, and are written like any other entry.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from profinfer.tracefile.frames import padded
from profinfer.tracefile.schema import OP, OP_COMPACT, OPS, OPS_COMPACT, OPS_PER_BATCH

_HEAD_AT = 8  # of the batch in struct pf_slot; the loop index before it is no part of the record
_FLAGS_AT, _CGRAPH_AT, _SEQ_AT, _N_AT = (
    _HEAD_AT + OPS.fields[name][1]  # type: ignore[index]
    for name in ("flags", "cgraph", "seq", "n")
)
_ENTRY = struct.Struct("<II")


def open_batches(slots: Iterable[bytes]) -> tuple[list[bytes], int, dict[int, bytes]]:
    """Ring entries made of the open batches.

    Args:
        slots: raw ``struct pf_slot`` values, by place.

    Returns:
        The entries, padded; the operator records in them; and by place what the slots are to be set
        to: as they would be had their threads handed the batches over.
    """
    entries, records, emptied = [], 0, {}
    for place, slot in enumerate(slots):
        n = int.from_bytes(slot[_N_AT : _N_AT + 4], "little")
        if 0 < n <= OPS_PER_BATCH:
            compact = slot[_FLAGS_AT] & OPS_COMPACT
            each = OP_COMPACT.itemsize if compact else OP.itemsize
            payload = slot[_HEAD_AT : _HEAD_AT + OPS.itemsize + n * each]
            entry = _ENTRY.pack(len(payload), 0) + payload
            entries.append(entry.ljust(padded(len(entry)), b"\0"))
            records += n
            after = bytearray(slot)
            seq = int.from_bytes(slot[_SEQ_AT : _SEQ_AT + 4], "little") + 1
            struct.pack_into("<I", after, _SEQ_AT, seq & 0xFFFFFFFF)
            struct.pack_into("<I", after, _N_AT, 0)
            struct.pack_into("<Q", after, _CGRAPH_AT, 0)  # the next graph may lie at the same place
            emptied[place] = bytes(after)
    return entries, records, emptied
