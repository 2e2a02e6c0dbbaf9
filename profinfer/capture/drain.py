"""Layer 4: moves ring-buffer bytes to the trace file, decoding nothing.

The kernel's ring buffer is mapped and copied in blocks: one memoryview slice a pass instead of
one Python callback a record. Layout of the mapping: linux/Documentation/bpf/ringbuf.rst.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
from collections.abc import Callable

from profinfer.tracefile.schema import RING_BUSY, RING_DISCARD, Kind

_PAGE = mmap.PAGESIZE
# What is mapped behind the ring's end: more than the longest entry, a full batch of 4 KB.
_OVERHANG = 16 * _PAGE
_ENTRY = struct.Struct("<IIHH")  # length and flags, page offset; then kind and flags of ours
_ENTRY_HEADER = 8
_CALL_BEGIN = int(Kind.CALL_BEGIN)
_TENSOR = int(Kind.TENSOR)
_N_TOKENS = struct.Struct("<i")
_N_TOKENS_AT = _ENTRY_HEADER + 28

# Takes entries, and how many bytes of them are tensors.
Sink = Callable[[memoryview, int], None]


class RingReader:
    """The consumer side of one BPF ring buffer.

    Attributes:
        records: entries copied so far.
        bytes: bytes copied so far, entry headers included.
        calls: call records seen, tokens: the tokens they announced (for the progress line).
    """

    def __init__(self, fd: int, size: int) -> None:
        self.size = size
        self._mask = size - 1
        self._consumer_map = mmap.mmap(fd, _PAGE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        # The kernel offers the data pages twice in a row, so that an entry never wraps. Of the
        # second time only the begin is mapped: mapped pages count as ours, and a ring has many.
        self._data_map = mmap.mmap(
            fd,
            _PAGE + size + min(size, _OVERHANG),
            mmap.MAP_SHARED,
            mmap.PROT_READ,
            offset=_PAGE,
        )
        self._consumer = memoryview(self._consumer_map).cast("Q")
        self._producer = memoryview(self._data_map)[:_PAGE].cast("Q")
        self._data = memoryview(self._data_map)[_PAGE:]
        self.records = 0
        self.bytes = 0
        self.calls = 0
        self.tokens = 0

    def drain(self, sink: Sink) -> int:
        """Hand everything committed to ``sink`` and free it; returns the bytes copied.

        Entry headers are walked only to stop before an entry that is still being written.
        """
        # Once more for what goes on at the ring's begin.
        return self._drain_block(sink) + self._drain_block(sink)

    def _drain_block(self, sink: Sink) -> int:
        """Up to the entry that crosses the ring's end, that one included."""
        start = self._consumer[0]
        data, base = self._data, start & self._mask
        available = min(self._producer[0] - start, self.size - base)
        unpack, at, records, tensors = _ENTRY.unpack_from, 0, 0, 0
        while at < available:
            head, _, kind, _ = unpack(data, base + at)
            if head & RING_BUSY:
                break
            length = head & ~RING_DISCARD
            if kind == _TENSOR:
                tensors += length
            elif kind == _CALL_BEGIN and not head & RING_DISCARD:
                self.calls += 1
                n = _N_TOKENS.unpack_from(data, base + at + _N_TOKENS_AT)[0]
                self.tokens += max(n, 0)
            at += (length + _ENTRY_HEADER + 7) & ~7
            records += 1
        if at:
            sink(data[base : base + at], tensors)
            self._consumer[0] = start + at
            self.records += records
            self.bytes += at
        return at

    def close(self) -> None:
        """Unmap; the reader must not be used afterwards."""
        # An error that is on its way up may still hold a slice of the buffer; the mapping then
        # goes with it.
        with contextlib.suppress(BufferError):
            for view in (self._consumer, self._producer, self._data):
                view.release()
            self._consumer_map.close()
            self._data_map.close()
