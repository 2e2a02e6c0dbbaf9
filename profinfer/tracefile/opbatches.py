"""Layer 3: the operator records inside OPS batches, in both forms, as one array.

Owns the compact form (``bpf/events.h``): 32 bits a record, a step of the loop index above the time
since the batch's own. Vectorised over records: the work is done block by block, so that what it
takes beside the result stays small and in the cache. Must not import anything above.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from profinfer.tracefile.schema import (
    OP,
    OP_COMPACT,
    OPS,
    OPS_CODE_LEAVE,
    OPS_COMPACT,
    OPS_DT_BITS,
    OPS_MAX_STEP,
    OpKind,
)

Words = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]
Rows = npt.NDArray[np.void]
U32 = npt.NDArray[np.uint32]
Mask = npt.NDArray[np.bool_]

_BLOCK = 1 << 16  # records
_INDEX_BITS = 24
_INDEX = np.uint32((1 << _INDEX_BITS) - 1)
_END = np.uint32(OpKind.END << _INDEX_BITS)


class OpRecords(NamedTuple):
    """All operator records.

    Attributes:
        order: int64 place of each batch in the stream.
        batches: ``schema.OPS`` rows.
        ops: ``schema.OP`` rows of all batches, end to end, whatever form they were written in.
        counts: int64 number of ``ops`` of each batch.
    """

    order: Ints
    batches: Rows
    ops: Rows
    counts: Ints


def record_size(flags: npt.NDArray[np.uint16]) -> Ints:
    """Bytes of one operator record of batches with these ``flags``, same shape."""
    return np.where(flags & OPS_COMPACT, OP_COMPACT.itemsize, OP.itemsize)


def expand(words: Words, offset: Ints, batches: Rows) -> tuple[Rows, Ints]:
    """The operator records of well-formed batches.

    Args:
        words: the file as 64-bit words.
        offset: where each batch (its ``pf_hdr``) begins in the file, shape (b,).
        batches: their ``schema.OPS`` rows, shape (b,).

    Returns:
        ``schema.OP`` rows of all batches, end to end, and the number of each batch, shape (b,).
    """
    counts = batches["n"].astype(np.int64)
    compact = (batches["flags"] & OPS_COMPACT) != 0
    # A recording has one form; both are in a file only if somebody joined them.
    if not compact.any():
        return _wide(words, offset, counts), counts
    if compact.all():
        return _compact(words, offset, counts), counts
    out = np.empty(int(counts.sum()), OP)
    for mine, rows in ((compact, _compact), (~compact, _wide)):
        part = rows(words, offset[mine], counts[mine])
        out[_places(np.cumsum(counts)[mine] - counts[mine], counts[mine])] = part
    return out, counts


def malformed(words: Words, offset: Ints, counts: Ints) -> Mask:
    """Which compact batches say what no recorder writes.

    Args:
        words: the file as 64-bit words.
        offset: where each batch begins in the file, shape (b,).
        counts: how many records each says it has; that many are there, shape (b,).
    """
    bad: Mask = counts == 0
    some = np.flatnonzero(~bad)
    for block, _ in _blocks(counts[some]):
        mine = some[block]
        bad[mine] = _malformed(_block(words, offset[mine], counts[mine]))
    return bad


class _Block(NamedTuple):
    """Some compact batches, none of them empty.

    ``raw``: their records; ``first``, ``last``: each batch's, as indices into ``raw``; ``head``:
    each batch's first record; ``left``: batches whose last record is a LEAVE behind another;
    ``step``: how much the index grows from the record before, 0 where it does not tell.
    """

    raw: U32
    first: Ints
    last: Ints
    head: U32
    left: Mask
    step: U32

    @property
    def base(self) -> U32:
        """Loop index of each batch's first record; -1, as unsigned, if it is no END."""
        ended = self.head >> np.uint32(_INDEX_BITS) == OpKind.END
        return np.where(ended, self.head & _INDEX, np.uint32(0xFFFFFFFF))

    @property
    def grown(self) -> U32:
        """How much the index grows in each batch."""
        return np.add.reduceat(self.step, self.first, dtype=np.uint32)


def _block(words: Words, offset: Ints, counts: Ints) -> _Block:
    raw = joined(words.view(np.uint32), (offset + OPS.itemsize) >> 2, counts)
    first = np.cumsum(counts) - counts
    last = first + counts - 1
    step = raw >> np.uint32(OPS_DT_BITS)
    left = (step[last] == OPS_CODE_LEAVE) & (counts > 1)
    step[first] = 0
    step[last[left]] = 0
    return _Block(raw, first, last, raw[first], left, step)


def _malformed(part: _Block) -> Mask:
    kind, arg = part.head >> np.uint32(_INDEX_BITS), part.head & _INDEX
    left = kind == OpKind.LEAVE
    known = (kind == OpKind.END) | ((left | (kind == OpKind.ENTER)) & (arg == 0))
    bad: Mask = ~known | (left & (part.last > part.first))
    bad |= (part.base + part.grown + np.uint32(1)) > np.uint32(1 << _INDEX_BITS)
    codes = part.step.copy()
    codes[part.first] = 1
    codes[part.last[part.left]] = 1
    odd = np.flatnonzero(codes - np.uint32(1) >= OPS_MAX_STEP)  # 0 wraps around
    bad[np.searchsorted(part.first, odd, side="right") - 1] = True
    return bad


def _compact(words: Words, offset: Ints, counts: Ints) -> Rows:
    out = np.empty(int(counts.sum()), OP)
    for block, to in _blocks(counts):
        part = _block(words, offset[block], counts[block])
        base, step = part.base, part.step
        # One running sum over all batches: each begins with the way from where the one before
        # ended, modulo 2**32.
        ended = base + part.grown
        step[part.first] = base
        step[part.first[1:]] -= ended[:-1]
        what = np.cumsum(step, dtype=np.uint32)
        what += _END
        what[part.last[part.left]] = OpKind.LEAVE << _INDEX_BITS
        what[part.first] = part.head
        since = part.raw & np.uint32((1 << OPS_DT_BITS) - 1)
        since[part.first] = 0
        out["dt"][to] = since
        out["what"][to] = what
    return out


def _wide(words: Words, offset: Ints, counts: Ints) -> Rows:
    return joined(words, (offset + OPS.itemsize) >> 3, counts).view(OP)


def _blocks(counts: Ints) -> Iterator[tuple[slice, slice]]:
    """Consecutive batches that have about ``_BLOCK`` records together, and these records."""
    if not len(counts):
        return
    ends = np.cumsum(counts)
    edges = np.flatnonzero(np.diff(ends // _BLOCK)) + 1
    begin = done = 0
    for stop in (*edges.tolist(), len(counts)):
        yield slice(begin, stop), slice(done, int(ends[stop - 1]))
        begin, done = stop, int(ends[stop - 1])


def joined(words: npt.NDArray[Any], starts: Ints, counts: Ints) -> npt.NDArray[Any]:
    """``counts`` words from each of ``starts`` on, end to end."""
    if int(counts.sum()) <= 64 * len(counts):
        # Short batches: one gather is cheaper than a slice for each.
        return words[_places(starts, counts)]
    pieces = [words[a : a + n] for a, n in zip(starts.tolist(), counts.tolist(), strict=True)]
    return np.concatenate(pieces)


def _places(starts: Ints, counts: Ints) -> Ints:
    """The indices ``start .. start + count - 1`` of each stretch, end to end."""
    ends = np.cumsum(counts)
    places: Ints = np.arange(int(counts.sum())) + np.repeat(starts - (ends - counts), counts)
    return places
