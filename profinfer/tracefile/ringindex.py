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
from profinfer.tracefile.opbatches import Ints, Rows, Words, joined, malformed, record_size
from profinfer.tracefile.schema import (
    COUNTS,
    EXPERT_ID,
    EXPERTS,
    FIXED,
    MAX_COUNTERS,
    MAX_EXPERTS_USED,
    OPS,
    OPS_COMPACT,
    OPS_PER_BATCH,
    PTRS_PER_RECORD,
    RING_BUSY,
    RING_DISCARD,
    Kind,
    copy_dtype,
    tensor_dtype,
)

_ENTRY_HEADER = 8
_MIN_RECORD = 16
_RAW = {Kind.TENSOR: tensor_dtype, Kind.BUFFER: tensor_dtype, Kind.COPY_BEGIN: copy_dtype}
# As long as they say themselves.
_VARYING = {Kind.OPS: OPS, Kind.COUNTS: COUNTS, Kind.EXPERTS: EXPERTS}


@dataclass(frozen=True)
class RingIndex:
    """One row per record, in stream order; the row number is the record's order.

    Attributes:
        kind: ``schema.Kind``, uint16.
        flags: uint16.
        tid: uint32.
        ts: CLOCK_MONOTONIC ns, int64.
        offset: where the record (its ``pf_hdr``) begins among the words, bytes, int64.
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


class CountRecords(NamedTuple):
    """What counters read, batch by batch.

    Attributes:
        order: int64 place of each record in the stream.
        heads: ``schema.COUNTS`` rows.
        values: uint64 of each, shape (records, counters); ``schema.NOT_COUNTED`` where not read.
    """

    order: Ints
    heads: Rows
    values: list[Words]


class ExpertRecords(NamedTuple):
    """Which experts tokens went to.

    Attributes:
        order: int64 place of each record in the stream.
        heads: ``schema.EXPERTS`` rows.
        ids: int32 of all records, end to end: ``n * n_used`` of each, row by row.
    """

    order: Ints
    heads: Rows
    ids: npt.NDArray[np.int32]


def build_index(
    words: Words, chunks: Sequence[Chunk], raw_sizes: Mapping[Kind, int | None], *, newer: bool
) -> tuple[RingIndex, list[str]]:
    """Walk the chunks of ring-buffer entries.

    Args:
        words: the entries as 64-bit words.
        chunks: where they lie in them, in recorded order.
        raw_sizes: bytes of the raw struct in TENSOR, BUFFER and COPY_BEGIN records.
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
        if known in _RAW:
            raw = raw_sizes.get(known)
            if raw is None:
                problems.append(
                    f"{count} {known.name} record(s) were skipped:"
                    " the metadata does not give their size"
                )
                continue
            size = _RAW[known](raw).itemsize
        else:
            size = _VARYING.get(known, FIXED.get(known, OPS)).itemsize
        fits = have >= size if newer or known in _VARYING else have == size
        mine_ok = mine[fits]
        if known is Kind.OPS:
            n = (words[at8[mine_ok] + 4] >> np.uint64(32)).astype(np.int64)
            flags = (words[at8[mine_ok] + 1] >> np.uint64(16)).astype(np.uint16)
            whole = (n <= OPS_PER_BATCH) & (length[mine_ok] >= size + n * record_size(flags))
            mine_ok = mine_ok[whole]
            torn = _torn_batches(words, at8[mine_ok], n[whole], flags[whole])
            if torn.any():
                problems.append(
                    f"{torn.sum()} OPS record(s) were skipped: their compact form is malformed"
                )
            mine_ok, count = mine_ok[~torn], count - int(torn.sum())
        elif known is Kind.COUNTS:
            n = (words[at8[mine_ok] + 3] >> np.uint64(32)).astype(np.int64)
            per = (words[at8[mine_ok] + 4] & np.uint64(0xFFFFFFFF)).astype(np.int64)
            whole = (n <= OPS_PER_BATCH) & (per <= MAX_COUNTERS)
            mine_ok = mine_ok[whole & (length[mine_ok] >= size + n * per * 8)]
        elif known is Kind.EXPERTS:
            used = (words[at8[mine_ok] + 4] >> np.uint64(32)).astype(np.int64)
            n = (words[at8[mine_ok] + 6] & np.uint64(0xFFFFFFFF)).astype(np.int64)
            whole = (used > 0) & (used <= MAX_EXPERTS_USED)
            mine_ok = mine_ok[whole & (length[mine_ok] >= size + n * used * EXPERT_ID.itemsize)]
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


def _torn_batches(
    words: Words, at8: Ints, n: Ints, flags: npt.NDArray[np.uint16]
) -> npt.NDArray[np.bool_]:
    """Which batches are compact and malformed."""
    compact = np.flatnonzero(flags & OPS_COMPACT)
    torn = np.zeros(len(n), np.bool_)
    torn[compact] = malformed(words, (at8[compact] << 3) + _ENTRY_HEADER, n[compact])
    return torn


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


def gather_counts(words: Words, offset: Ints) -> tuple[Rows, list[Words]]:
    """COUNTS records and the values of each, shape (n, n_counters)."""
    heads = gather(words, offset, COUNTS)
    starts = (offset >> 3) + COUNTS.itemsize // 8
    shapes = zip(starts.tolist(), heads["n"].tolist(), heads["n_counters"].tolist(), strict=True)
    return heads, [words[a : a + n * k].reshape(n, k) for a, n, k in shapes]


def gather_experts(words: Words, offset: Ints) -> tuple[Rows, npt.NDArray[np.int32]]:
    """EXPERTS records and the ids of all, end to end."""
    heads = gather(words, offset, EXPERTS)
    counts = heads["n"].astype(np.int64) * heads["n_used"]
    starts = (offset + EXPERTS.itemsize) >> 2
    return heads, joined(words.view(np.uint32), starts, counts).view(np.int32)
