"""Layer 7: Perfetto packets in bulk. Owns the byte layout; knows no protobuf library.

A trace file is a concatenation of ``Trace.packet`` fields, so packets can be laid side by side
without re-encoding anything. Every event of one kind differs from the next in two numbers only,
its time and its sequence, and varints may be padded with continuation bits. So each kind is
encoded once, as a *template* with room for both numbers, and a block of events is a gather of
template bytes with the numbers patched in by numpy::

    0A  LL LL    40 TT .. TT       50 SS SS       68 02            body
    |   length   |  timestamp      |  sequence    |  flags: needs  track_event of the
    Trace.packet |  (W bytes)      |  (2 bytes)   |  earlier state template, serialised

May import numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

MAX_BODY = (1 << 14) - 64  # a length of two varint bytes, less the packet's own fields
MAX_SEQUENCE = (1 << 14) - 1

_TS_AT = 4  # after 0A LL LL 40


def padded_varint(value: int, width: int) -> bytes:
    """``value`` as a varint of exactly ``width`` bytes.

    Raises:
        ValueError: the value needs more bytes.
    """
    if value < 0 or value >> (7 * width):
        raise ValueError(f"{value} does not fit a varint of {width} bytes")
    out = [(value >> (7 * k)) & 0x7F | 0x80 for k in range(width)]
    out[-1] &= 0x7F
    return bytes(out)


def varint_width(value: int) -> int:
    """Bytes that ``value`` needs as a varint."""
    return max(1, -(-int(value).bit_length() // 7))


def frame(packet: bytes) -> bytes:
    """One serialised TracePacket as a field of Trace."""
    return b"\x0a" + padded_varint(len(packet), varint_width(len(packet))) + packet


@dataclass
class TemplatePool:
    """The distinct packets of a trace, end to end, ready to be gathered.

    Attributes:
        ts_width: bytes of every timestamp, enough for the last one of the trace.
    """

    ts_width: int
    _bytes: Bytes = field(default_factory=lambda: np.empty(1 << 16, np.uint8))
    _used: int = 0
    _start: list[int] = field(default_factory=list)
    _table: Ints = field(default_factory=lambda: np.empty((0, 2), np.int64))

    def __len__(self) -> int:
        return len(self._start)

    def add(self, body: bytes) -> int:
        """Register a packet; ``body`` is a TracePacket without time, sequence and flags.

        Returns the template's id, 0, 1, 2, ...

        Raises:
            ValueError: the body is longer than a template can be.
        """
        if len(body) > MAX_BODY:
            raise ValueError(f"a template of {len(body)} bytes")
        fields = b"\x40" + bytes(self.ts_width) + b"\x50\x80\x00" + b"\x68\x02" + body
        packet = b"\x0a" + padded_varint(len(fields), 2) + fields
        end = self._used + len(packet)
        if end > len(self._bytes):
            grown = np.empty(max(2 * len(self._bytes), end), np.uint8)
            grown[: self._used] = self._bytes[: self._used]
            self._bytes = grown
        self._bytes[self._used : end] = np.frombuffer(packet, np.uint8)
        self._start.append(self._used)
        self._used = end
        return len(self._start) - 1

    def _offsets(self) -> Ints:
        """(templates, 2): start and length of each; rebuilt only after an add."""
        if len(self._table) != len(self._start):
            start = np.array(self._start, np.int64)
            length = np.diff(start, append=self._used)
            self._table = np.stack([start, length], axis=1)
        return self._table

    def encode(self, template: Ints, ts: Ints, sequence: Ints) -> Bytes:
        """The packets of a block of events, in the order given.

        Args:
            template: (n,) ids from ``add``.
            ts: (n,) timestamps, ns, each below ``2 ** (7 * ts_width)``.
            sequence: (n,) packet sequence ids, 1 to ``MAX_SEQUENCE``.

        Returns:
            the bytes of n packets, to be written as they are.
        """
        if not len(template):
            return np.empty(0, np.uint8)
        start, length = self._offsets()[template].T
        at = np.cumsum(length) - length  # where each packet begins in the block
        total = int(at[-1] + length[-1])
        # Byte j of packet i comes from start[i] + j. 32-bit indexes halve the memory traffic
        # and hold any block: pool and block are far below 2 GiB.
        source = np.repeat((start - at).astype(np.int32), length)
        source += np.arange(total, dtype=np.int32)
        out: Bytes = self._bytes[source]
        last = self.ts_width - 1
        for k in range(self.ts_width):
            byte = (ts >> (7 * k)) & 0x7F
            out[at + (_TS_AT + k)] = byte if k == last else byte | 0x80
        seq_at = at + (_TS_AT + self.ts_width + 1)
        out[seq_at] = sequence & 0x7F | 0x80
        out[seq_at + 1] = sequence >> 7
        return out


@dataclass(frozen=True)
class Spans:
    """Slices of threads: parallel arrays, one row a slice, in order of begin on each track.

    Attributes:
        begin: ns.
        end: ns, >= begin.
        track: index of the track.
        level: depth class on its track; a child's is greater than its parent's.
        template: id of the begin packet.
        late: begins after its parent began. Tells, for a slice of no duration at a moment where
            one parent ends and another begins, to which of them it belongs.
    """

    begin: Ints
    end: Ints
    track: Ints
    level: Ints
    template: Ints
    late: NDArray[np.bool_]

    @classmethod
    def concat(cls, parts: list[Spans]) -> Spans:
        """One after the other; ``parts`` is not empty."""
        return cls(*(np.concatenate([getattr(p, f) for p in parts]) for f in cls.__annotations__))

    def take(self, rows: slice | NDArray[np.bool_] | Ints) -> Spans:
        """A part of the rows."""
        return Spans(*(getattr(self, f)[rows] for f in self.__annotations__))

    def __len__(self) -> int:
        return len(self.begin)


@dataclass(frozen=True)
class Events:
    """Packets to be written, unordered: parallel arrays. ``key`` orders equal times."""

    ts: Ints
    key: Ints
    track: Ints
    template: Ints

    @classmethod
    def concat(cls, parts: list[Events]) -> Events:
        """One after the other; ``parts`` is not empty."""
        return cls(*(np.concatenate([getattr(p, f) for p in parts]) for f in cls.__annotations__))

    def take(self, rows: NDArray[np.bool_] | Ints) -> Events:
        """A part of the rows."""
        return Events(*(getattr(self, f)[rows] for f in self.__annotations__))

    def ordered(self) -> Events:
        """In the order in which they belong in the file."""
        return self.take(np.lexsort((self.key, self.ts)))

    def __len__(self) -> int:
        return len(self.ts)


_LEVEL_BITS = 8
_ORDER_BITS = 44  # rows of a trace, twice


def events_of(spans: Spans, end_template: int, first_row: int) -> Events:
    """Begin and end packets of slices, with the key that keeps equal times nested.

    At one moment, on one track: first what ends, deepest first, then what begins, outermost
    first. A slice of no duration goes, begin and end together, with its siblings: after what
    ends at its level when its parent is already open, else among what begins.

    Args:
        spans: the slices.
        end_template: id of the one packet that ends a slice.
        first_row: number of slices before these in the trace; keeps slices of no duration at
            one moment in their order.
    """
    n = len(spans)
    empty = spans.begin == spans.end
    order = 2 * (first_row + np.arange(n, dtype=np.int64))
    top = (1 << _LEVEL_BITS) - 1
    ending = (top - spans.level) << 1
    beginning = (1 << (_LEVEL_BITS + 1)) | (spans.level << 1)
    as_ending = empty & spans.late
    # bit 0 of the rank: at one level, ends before empty slices, empty slices before begins
    begin_rank = np.where(as_ending, ending | 1, np.where(empty, beginning, beginning | 1))
    end_rank = np.where(empty, begin_rank, ending)
    return Events(
        ts=np.concatenate([spans.begin, spans.end]),
        key=np.concatenate([begin_rank, end_rank]) << _ORDER_BITS
        | np.concatenate([order, order + empty]),
        track=np.concatenate([spans.track, spans.track]),
        template=np.concatenate([spans.template, np.full(n, end_template, np.int64)]),
    )


def point_events(ts: Ints, track: Ints, template: Ints) -> Events:
    """Instants and counter values: after all that ends, and within all that begins, at a time."""
    rank = (1 << (_LEVEL_BITS + 2)) - 1
    return Events(ts, np.full(len(ts), rank << _ORDER_BITS, np.int64), track, template)
