"""Layer 3: the ring-buffer entries of a trace file, packed or not, as one array of words.

Must not import anything above.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from profinfer.tracefile.frames import Chunk, padded
from profinfer.tracefile.opbatches import Words
from profinfer.tracefile.packing import unpack
from profinfer.tracefile.schema import ChunkKind


@dataclass(frozen=True)
class Rings:
    """Where the entries lie.

    Attributes:
        words: the mapped file as 64-bit words; of a file with PACKED chunks a copy of it, and what
            they hold behind it.
        chunks: of entries, in recorded order; ``offset`` is a place in ``words``, in bytes.
        problems: what could not be unpacked or is not there, as plain sentences.
    """

    words: Words
    chunks: list[Chunk]
    problems: list[str]


def open_rings(data: mmap.mmap | bytes, chunks: Sequence[Chunk], stated: int | None) -> Rings:
    """Find the entries of a file.

    Args:
        data: the file.
        chunks: every whole chunk of it, in recorded order.
        stated: bytes of entries that the trailer counts, None without.
    """
    # Whole words only: a cut tail shorter than a word holds no record.
    parts = [np.frombuffer(data, dtype="<u8", count=len(data) // 8)]
    end = parts[0].nbytes
    rings, problems = [], []
    for chunk in chunks:
        if chunk.kind == ChunkKind.PACKED:
            try:
                entries = unpack(data[chunk.offset : chunk.offset + chunk.length])
            except ValueError as error:
                problems.append(f"PACKED chunk {chunk.seq} was ignored: {error}")
                continue
            room = padded(len(entries))
            parts.append(np.frombuffer(entries.ljust(room, b"\0"), dtype="<u8"))
            rings.append(Chunk(ChunkKind.RING, chunk.seq, end, len(entries)))
            end += room
        elif chunk.kind == ChunkKind.RING:
            rings.append(chunk)
    held = sum(chunk.length for chunk in rings)
    if stated is not None and stated != held:
        problems.append(f"the trailer counts {stated} bytes of records, the file holds {held}")
    return Rings(np.concatenate(parts) if len(parts) > 1 else parts[0], rings, problems)
