"""Layer 7: Perfetto packets in bulk. Owns the byte layout; knows no protobuf library.

A trace file is a concatenation of ``Trace.packet`` fields, so packets can be laid side by side
without re-encoding anything. Every event of one kind differs from the next in two numbers only,
its time and its sequence, and varints may be padded with continuation bits. So each kind is
encoded once, as a *template* with room for both numbers, and a block of events is a gather of
template bytes with the numbers patched in by numpy::

    0A  LL LL    40 TT .. TT       50 SS SS       68 02            body
    |   length   |  timestamp      |  sequence    |  flags: needs  track_event of the
    Trace.packet |  (W bytes)      |  (2 bytes)   |  earlier state template, serialised

A body may have *holes* for values of the event's own, such as what an operator counted. It is
serialised with ``int_hole(k)`` or ``double_hole(k)`` in their places, which value k of the event
then overwrites.

May import numpy only.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Bytes = NDArray[np.uint8]

MAX_BODY = (1 << 14) - 64  # a length of two varint bytes, less the packet's own fields
MAX_SEQUENCE = (1 << 14) - 1

_TS_AT = 4  # after 0A LL LL 40
_INT_BYTES = 9  # of the varint of any hole
_DOUBLE_BYTES = 8
MOST_INT = (1 << 63) - 1  # what such a varint holds
# Values that no argument and no counter has.
_INT_MARK = 1 << 62 | 0x1D3C_4B5A_6900
_DOUBLE_MARK = 0x7FF9_4B5A_692D_3C00  # not a number


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


def int_hole(k: int) -> int:
    """What an int64 field holds whose value is value k of the event; k is below 256."""
    return _INT_MARK | k


def double_hole(k: int) -> float:
    """What a double field holds whose value is value k of the event, its bits taken as int64."""
    value: float = struct.unpack("<d", struct.pack("<Q", _DOUBLE_MARK | k))[0]
    return value


def _hole(body: bytes, k: int) -> tuple[int, bool] | None:
    """Place of value k in a body, and whether it is a double."""
    at = body.find(padded_varint(int_hole(k), _INT_BYTES))
    if at >= 0:
        return at, False
    at = body.find(struct.pack("<Q", _DOUBLE_MARK | k))
    return (at, True) if at >= 0 else None


def frame(packet: bytes) -> bytes:
    """One serialised TracePacket as a field of Trace."""
    return b"\x0a" + padded_varint(len(packet), varint_width(len(packet))) + packet


@dataclass
class TemplatePool:
    """The distinct packets of a trace, end to end, ready to be gathered.

    Attributes:
        ts_width: bytes of every timestamp, enough for the last one of the trace.
        values: values that an event can have.
    """

    ts_width: int
    values: int = 0
    _bytes: Bytes = field(default_factory=lambda: np.empty(1 << 16, np.uint8))
    _used: int = 0
    _start: list[int] = field(default_factory=list)
    _table: Ints = field(default_factory=lambda: np.empty((0, 2), np.int64))
    _holes: list[tuple[int, int, int, bool]] = field(default_factory=list)
    _places: Ints = field(default_factory=lambda: np.empty((2, 0, 0), np.int64))

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
        for k in range(self.values):
            found = _hole(body, k)
            if found is not None:
                self._holes.append((len(self._start), k, found[0] - len(body), found[1]))
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

    def _hole_places(self) -> Ints:
        """(2, templates, values): where ints and doubles go, from a packet's end; 0 if nowhere."""
        if self._places.shape[1] != len(self._start):
            self._places = np.zeros((2, len(self._start), self.values), np.int64)
            for template, k, at, double in self._holes:
                self._places[int(double), template, k] = at
        return self._places

    def encode(self, template: Ints, ts: Ints, sequence: Ints, values: Ints | None = None) -> Bytes:
        """The packets of a block of events, in the order given.

        Args:
            template: (n,) ids from ``add``.
            ts: (n,) timestamps, ns, each below ``2 ** (7 * ts_width)``.
            sequence: (n,) packet sequence ids, 1 to ``MAX_SEQUENCE``.
            values: (n, values) of each event: whole numbers 0 to ``MOST_INT``, or the bits of
                doubles, by what its template has a hole for.

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
        if values is not None and self._holes:
            ints, doubles = self._hole_places()
            for k in range(self.values):
                self._fill(out, at + length + ints[template, k], ints[template, k], values[:, k], 7)
                self._fill(
                    out, at + length + doubles[template, k], doubles[template, k], values[:, k], 8
                )
        return out

    @staticmethod
    def _fill(out: Bytes, at: Ints, place: Ints, value: Ints, bits: int) -> None:
        """Write value i at ``at[i]`` where its ``place`` is not 0: a varint, or 8 bytes."""
        has = np.flatnonzero(place)
        if not len(has):
            return
        at, value = at[has], value[has]
        for k in range(_INT_BYTES if bits == 7 else _DOUBLE_BYTES):
            byte = (value >> (bits * k)) & ((1 << bits) - 1)
            out[at + k] = byte | 0x80 if bits == 7 and k < _INT_BYTES - 1 else byte
