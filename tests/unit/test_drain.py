"""The consumer side of the ring, on a file that is laid out as the kernel's mapping is."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

import pytest

from profinfer.capture.drain import RingReader
from profinfer.tracefile.schema import RING_BUSY, RING_DISCARD, Kind

PAGE = mmap.PAGESIZE
SIZE = 64 * PAGE


class FakeRing:
    """What the kernel does: data pages seen twice in a row, positions that only grow."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * PAGE + 2 * SIZE)
        self.produced = 0

    def put(self, payload: bytes, flags: int = 0) -> bytes:
        """Append an entry; returns its bytes without what pads it."""
        entry = struct.pack("<II", len(payload) | flags, 0) + payload
        begin = self.produced % SIZE
        first = entry[: SIZE - begin]
        for piece, place in ((first, begin), (entry[len(first) :], 0)):
            for mapped in (place, place + SIZE):
                os.pwrite(self.fd, piece, 2 * PAGE + mapped)
        self.produced += (len(entry) + 7) & ~7
        os.pwrite(self.fd, struct.pack("<Q", self.produced), PAGE)
        return entry

    @property
    def consumed(self) -> int:
        return int.from_bytes(os.pread(self.fd, 8, 0), "little")


@pytest.fixture
def ring() -> Iterator[FakeRing]:
    ring = FakeRing()
    yield ring
    os.close(ring.fd)


def payload(n: int, kind: int = Kind.TENSOR) -> bytes:
    return struct.pack("<HH", kind, 0) + os.urandom(n - 4)


def test_entries_across_the_end_arrive_whole(ring: FakeRing) -> None:
    reader = RingReader(ring.fd, SIZE)
    got, put = bytearray(), bytearray()
    for n in range(400):
        entry = ring.put(payload(1000 + 37 * (n % 90)))
        put += entry + bytes(-len(entry) % 8)
        if n % 7 == 0:
            reader.drain(lambda block, tensors: got.extend(block))
    reader.drain(lambda block, tensors: got.extend(block))
    assert ring.produced > 3 * SIZE  # it went around more than once
    assert ring.consumed == ring.produced == reader.bytes == len(got)
    assert reader.records == 400
    at = 0
    while at < len(put):  # padding is undefined
        length = int.from_bytes(put[at : at + 4], "little")
        assert got[at : at + 8 + length] == put[at : at + 8 + length]
        at += (length + 8 + 7) & ~7
    reader.close()


def test_one_pass_takes_all_that_is_there(ring: FakeRing) -> None:
    reader = RingReader(ring.fd, SIZE)
    while SIZE - ring.produced > 3000:
        ring.put(payload(2000))
    assert reader.drain(lambda block, tensors: None) == ring.produced
    ring.put(payload(4000))  # crosses the end
    ring.put(payload(100))
    assert reader.drain(lambda block, tensors: None) > 4100
    assert ring.consumed == ring.produced
    assert reader.drain(lambda block, tensors: None) == 0
    reader.close()


def test_tensors_are_told_apart(ring: FakeRing) -> None:
    reader = RingReader(ring.fd, SIZE)
    told: list[int] = []
    for n, kind in ((400, Kind.TENSOR), (80, Kind.PTRS), (360, Kind.TENSOR), (24, Kind.OPS)):
        ring.put(payload(n, kind))
    reader.drain(lambda block, tensors: told.append(tensors))
    assert told == [760]
    reader.close()


def test_stops_before_an_entry_that_is_being_written(ring: FakeRing) -> None:
    reader = RingReader(ring.fd, SIZE)
    ring.put(payload(40))
    ring.put(payload(40), RING_DISCARD)
    before = ring.produced
    ring.put(payload(40), RING_BUSY)
    ring.put(payload(40))
    assert reader.drain(lambda block, tensors: None) == before
    assert reader.records == 2
    reader.close()
