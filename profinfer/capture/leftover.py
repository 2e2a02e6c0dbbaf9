"""Layer 4: operator records that a thread had not handed over when it died.

A batch leaves the kernel when it is full or when its thread leaves the graph. A target that is
killed in the middle of a graph leaves open batches behind; they are in the map of slots, and
are written like any other entry.
"""

from __future__ import annotations

import struct

from profinfer.tracefile.schema import OP, OPS, OPS_PER_BATCH

_N_AT = OPS.fields["n"][1]  # type: ignore[index]
_ENTRY = struct.Struct("<II")


def open_batches(slots: list[bytes]) -> tuple[list[bytes], int]:
    """Ring entries made of the open batches.

    Args:
        slots: raw ``struct pf_slot`` values.

    Returns:
        The entries, and the operator records in them.
    """
    entries, records = [], 0
    for slot in slots:
        n = int.from_bytes(slot[_N_AT : _N_AT + 4], "little")
        if 0 < n <= OPS_PER_BATCH:
            payload = slot[: OPS.itemsize + n * OP.itemsize]
            entries.append(_ENTRY.pack(len(payload), 0) + payload)
            records += n
    return entries, records
