"""Packed entries: what is damaged is refused, whatever it claims to hold."""

from __future__ import annotations

import struct
import zlib

import pytest

from profinfer.tracefile.packing import pack, unpack

ENTRIES = bytes(range(8)) * 500


def test_there_and_back() -> None:
    parts = [memoryview(ENTRIES)[:1000], memoryview(ENTRIES)[1000:]]
    packed = pack(parts, len(ENTRIES))
    assert packed is not None
    assert len(packed) < len(ENTRIES) / 10
    assert unpack(packed) == ENTRIES


def test_what_does_not_shrink_stays() -> None:
    noise = zlib.compress(ENTRIES, 9)
    assert pack([memoryview(noise)], len(noise)) is None


@pytest.mark.parametrize("claims", [0, 1, len(ENTRIES) - 8, len(ENTRIES) + 8, 1 << 31, 1 << 63])
def test_another_length(claims: int) -> None:
    with pytest.raises(ValueError, match=r"holds|claims"):
        unpack(struct.pack("<Q", claims) + zlib.compress(ENTRIES))


@pytest.mark.parametrize("size", [0, 7, 8, 20])
def test_cut_short(size: int) -> None:
    packed = pack([memoryview(ENTRIES)], len(ENTRIES))
    assert packed is not None
    with pytest.raises(ValueError, match=r"short|bytes or more"):
        unpack(packed[:size])


def test_no_zlib_stream() -> None:
    with pytest.raises(ValueError, match="incorrect header"):
        unpack(struct.pack("<Q", 8) + b"entries!")
