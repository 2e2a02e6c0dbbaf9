"""Layer 3: where every record of a trace lies, and records gathered by kind.

Owns the walk over ring-buffer entries. Entries are 8-aligned in the file, so that after one pass
that only follows their lengths everything else is numpy on 64-bit words of the mapped file.
Must not import anything above.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from profinfer.tracefile.frames import Chunk
from profinfer.tracefile.schema import (
    FIXED,
    OP,
    OPS,
    OPS_PER_BATCH,
    PTRS_PER_RECORD,
    RING_BUSY,
    RING_DISCARD,
    Kind,
    tensor_dtype,
)

_ENTRY_HEADER = 8
_MIN_RECORD = 16

Words = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Rows = npt.NDArray[np.void]


@dataclass(frozen=True)
class RingIndex:
    """One row per record, in stream order; the row number is the record's order.

    Attributes:
        kind: ``schema.Kind``, uint16.
        flags: uint16.
        tid: uint32.
        ts: CLOCK_MONOTONIC ns, int64.
        offset: where the record (its ``pf_hdr``) begins in the file, int64.
        length: bytes of the record, int64.
        discarded: entries that the BPF program reserved and gave back.
    """

    kind: npt.NDArray[np.uint16]
    flags: npt.NDArray[np.uint16]
    tid: npt.NDArray[np.uint32]
    ts: Ints
    offset: Ints
    length: Ints
    discarded: int

    def __len__(self) -> int:
        return len(self.kind)


class Records(NamedTuple):
    """Records of one kind: ``order`` (int64 place in the stream) and structured ``rows``."""

    order: Ints
    rows: Rows


class OpRecords(NamedTuple):
    """All operator records.

    Attributes:
        order: int64 place of each batch in the stream.
        batches: ``schema.OPS`` rows.
        ops: ``schema.OP`` rows of all batches, end to end.
        counts: int64 number of ``ops`` of each batch.
    """

    order: Ints
    batches: Rows
    ops: Rows
    counts: Ints


def build_index(
    words: Words, chunks: Sequence[Chunk], raw_sizes: Mapping[Kind, int | None], *, newer: bool
) -> tuple[RingIndex, list[str]]:
    """Walk the RING chunks.

    Args:
        words: the file as 64-bit words.
        chunks: the RING chunks in recorded order.
        raw_sizes: bytes of the raw struct in TENSOR and BUFFER records.
        newer: the file's minor version is newer than ours, records may have grown.

    Returns:
        The index of all well-formed records of known kinds, and sentences about the others.
    """
    problems: list[str] = []
    offsets: list[int] = []
    discarded = broken = lost = 0
    lengths = words.view(np.uint32).data
    for chunk in chunks:
        stop = chunk.offset + chunk.length
        at, bad, given_back = _walk(lengths, chunk.offset, stop, offsets)
        discarded += given_back
        if bad:
            broken += 1
            lost += stop - at
    if broken:
        problems.append(
            f"{broken} chunk(s) hold malformed ring entries; the {lost} bytes"
            " from the first such entry to the end of its chunk were skipped"
        )
    entry = np.array(offsets, dtype=np.int64)
    at8 = entry >> 3
    length = (words[at8] & np.uint64(0x3FFFFFFF)).astype(np.int64)
    head = words[at8 + 1]
    kind = (head & np.uint64(0xFFFF)).astype(np.uint16)
    good = _well_formed(words, at8, kind, length, raw_sizes, newer, problems)
    at8, head = at8[good], head[good]
    index = RingIndex(
        kind=kind[good],
        flags=(head >> np.uint64(16) & np.uint64(0xFFFF)).astype(np.uint16),
        tid=(head >> np.uint64(32)).astype(np.uint32),
        ts=words[at8 + 2].astype(np.int64),
        offset=entry[good] + _ENTRY_HEADER,
        length=length[good],
        discarded=discarded,
    )
    return index, problems


def _walk(lengths: memoryview, at: int, stop: int, offsets: list[int]) -> tuple[int, bool, int]:
    """Follow entry lengths from ``at``; returns where it ended, whether badly, and discards."""
    discarded = 0
    last = stop - _ENTRY_HEADER - _MIN_RECORD  # no entry can begin after this
    while at < stop:
        length = lengths[at >> 2] if at + _ENTRY_HEADER <= stop else RING_BUSY
        if length & (RING_BUSY | RING_DISCARD):
            if length & RING_BUSY:
                return at, True, discarded
            at += (length ^ RING_DISCARD) + 15 & ~7
            discarded += 1
            continue
        after = at + (length + 15 & ~7)
        if length < _MIN_RECORD or at > last or after > stop:
            return at, True, discarded
        offsets.append(at)
        at = after
    return at, at != stop, discarded


def _well_formed(
    words: Words,
    at8: Ints,
    kind: npt.NDArray[np.uint16],
    length: Ints,
    raw_sizes: Mapping[Kind, int | None],
    newer: bool,
    problems: list[str],
) -> npt.NDArray[np.bool_]:
    """Which records have a known kind and the length that their kind demands."""
    good = np.zeros(len(kind), dtype=np.bool_)
    for value, count in zip(*np.unique(kind, return_counts=True), strict=True):
        mine = np.flatnonzero(kind == value)
        try:
            known = Kind(int(value))
        except ValueError:
            problems.append(f"{count} record(s) of unknown kind {value} were skipped")
            continue
        have = length[mine]
        if known in (Kind.TENSOR, Kind.BUFFER):
            raw = raw_sizes.get(known)
            if raw is None:
                problems.append(
                    f"{count} {known.name} record(s) were skipped:"
                    " the metadata does not give their size"
                )
                continue
            size = tensor_dtype(raw).itemsize
        else:
            size = (OPS if known is Kind.OPS else FIXED[known]).itemsize
        fits = have >= size if newer or known is Kind.OPS else have == size
        mine_ok = mine[fits]
        if known is Kind.OPS:
            n = (words[at8[mine_ok] + 4] >> np.uint64(32)).astype(np.int64)
            whole = (n <= OPS_PER_BATCH) & (length[mine_ok] >= size + n * OP.itemsize)
            mine_ok = mine_ok[whole]
        elif known is Kind.PTRS:
            n = (words[at8[mine_ok] + 5] >> np.uint64(32)).astype(np.int64)
            mine_ok = mine_ok[n <= PTRS_PER_RECORD]
        good[mine_ok] = True
        if len(mine_ok) != count:
            problems.append(
                f"{count - len(mine_ok)} {known.name} record(s) were skipped:"
                " their length disagrees with their content"
            )
    return good


def gather(words: Words, offset: Ints, dtype: np.dtype[np.void]) -> Rows:
    """Copy the records that begin at the file offsets ``offset`` into one array of ``dtype``."""
    per = -(-dtype.itemsize // 8)
    if per * 8 != dtype.itemsize:  # a raw struct whose size is no multiple of 8
        assert dtype.names is not None and dtype.fields is not None
        dtype = np.dtype(
            {
                "names": list(dtype.names),
                "formats": [dtype.fields[name][0] for name in dtype.names],
                "offsets": [dtype.fields[name][1] for name in dtype.names],
                "itemsize": per * 8,
            }
        )
    out = np.empty((len(offset), per), dtype=np.uint64)
    at8 = offset >> 3
    for column in range(per) if per <= len(offset) else ():
        out[:, column] = words[at8 + column]
    if per > len(offset):
        for row, start in enumerate(at8.tolist()):
            out[row] = words[start : start + per]
    return out.view(dtype).reshape(len(offset))


def gather_ops(words: Words, offset: Ints) -> tuple[Rows, Rows, Ints]:
    """Batches, all their operator records end to end, and how many each batch has."""
    batches = gather(words, offset, OPS)
    counts = batches["n"].astype(np.int64)
    starts = (offset >> 3) + OPS.itemsize // 8
    total = int(counts.sum())
    if total <= 64 * len(counts):
        # Short batches: one gather is cheaper than a slice for each.
        ends = np.cumsum(counts)
        where = np.arange(total) + np.repeat(starts - (ends - counts), counts)
        return batches, words[where].view(OP), counts
    pieces = [words[a : a + n] for a, n in zip(starts.tolist(), counts.tolist(), strict=True)]
    return batches, np.concatenate(pieces).view(OP), counts
