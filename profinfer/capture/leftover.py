"""Layer 4: operator records that a thread has not handed over.

A batch leaves the kernel when it is full or when its thread leaves the graph. A target that is
killed in the middle of a graph leaves open batches behind, and so do the operators' probes when
they are removed; they are in the map of slots, and are written like any other entry.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from profinfer.tracefile.frames import padded
from profinfer.tracefile.schema import (
    COUNTS,
    HDR,
    OP,
    OP_COMPACT,
    OPS,
    OPS_COMPACT,
    OPS_PER_BATCH,
    Kind,
)

_HEAD_AT = 8  # of the batch in struct pf_slot; the loop index before it is no part of the record
_FLAGS_AT, _CGRAPH_AT, _SEQ_AT, _N_AT = (
    _HEAD_AT + OPS.fields[name][1]  # type: ignore[index]
    for name in ("flags", "cgraph", "seq", "n")
)
_ENTRY = struct.Struct("<II")


def open_batches(
    slots: Iterable[bytes], counters: int = 0
) -> tuple[list[bytes], int, dict[int, bytes]]:
    """Ring entries made of the open batches.

    Args:
        slots: raw ``struct pf_slot`` values, by place.
        counters: counters that were read at each record.

    Returns:
        The entries, padded, one batch's each, with what was counted in it before it; the operator
        records in them; and by place what the slots are to be set to: as they would be had their
        threads handed the batches over.
    """
    entries, records, emptied = [], 0, {}
    for place, slot in enumerate(slots):
        n = int.from_bytes(slot[_N_AT : _N_AT + 4], "little")
        if 0 < n <= OPS_PER_BATCH:
            compact = slot[_FLAGS_AT] & OPS_COMPACT
            each = OP_COMPACT.itemsize if compact else OP.itemsize
            payload = slot[_HEAD_AT : _HEAD_AT + OPS.itemsize + n * each]
            entry = _ENTRY.pack(len(payload), 0) + payload
            entry = entry.ljust(padded(len(entry)), b"\0")
            entries.append(_counted(slot, n, each, counters) + entry if counters else entry)
            records += n
            after = bytearray(slot)
            seq = int.from_bytes(slot[_SEQ_AT : _SEQ_AT + 4], "little") + 1
            struct.pack_into("<I", after, _SEQ_AT, seq & 0xFFFFFFFF)
            struct.pack_into("<I", after, _N_AT, 0)
            struct.pack_into("<Q", after, _CGRAPH_AT, 0)  # the next graph may lie at the same place
            emptied[place] = bytes(after)
    return entries, records, emptied


def _counted(slot: bytes, n: int, each: int, counters: int) -> bytes:
    """The COUNTS entry that goes before a batch, as ``pf_tally_flush`` makes it."""
    begin = _HEAD_AT + OPS.itemsize + OPS_PER_BATCH * each
    values = begin + COUNTS.itemsize
    record = bytearray(slot[begin:values] + slot[values : values + 8 * n * counters])
    record[: HDR.itemsize] = slot[_HEAD_AT : _HEAD_AT + HDR.itemsize]
    struct.pack_into("<HH", record, 0, Kind.COUNTS, 0)
    seq = int.from_bytes(slot[_SEQ_AT : _SEQ_AT + 4], "little")
    struct.pack_into("<III", record, COUNTS.fields["seq"][1], seq, n, counters)  # type: ignore[index]
    return _ENTRY.pack(len(record), 0) + bytes(record)
