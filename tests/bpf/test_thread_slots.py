"""Threads that want the same place in the table of batches each get their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from profinfer.tracefile.schema import CNT_COUNT, CNT_NO_SLOT, CNT_OP_RECORDS, CNT_SENT, Kind
from tools.bench import hit

pytestmark = pytest.mark.bpf

THREADS = 4
# Eight neighbours share a first place; in the second case all threads do, and places run out.
NEIGHBOURS = ("(tid + n)", "((tid >> 3) + n)")
FEW_PLACES = ("#define PF_PLACES 8", "#define PF_PLACES 2")
ONE_PLACE = ("(tid + n)", "n")


def _counters(tmp_path: Path, *changes: tuple[str, str]) -> list[int]:
    loop = hit.Loop(tmp_path)
    try:
        with hit.attached(hit.Variant("", changes=changes), loop) as program:
            loop.run(THREADS)
            return program.counters("counters", CNT_COUNT)
    finally:
        loop.close()


def test_threads_with_the_same_place_lose_nothing(tmp_path: Path) -> None:
    counters = _counters(tmp_path, NEIGHBOURS)
    assert counters[CNT_OP_RECORDS] == THREADS * hit.ROUNDS * (hit.OPS + 2)
    assert counters[CNT_NO_SLOT] == 0
    assert counters[CNT_SENT + Kind.THREAD] == THREADS


def test_threads_without_a_place_are_counted(tmp_path: Path) -> None:
    counters = _counters(tmp_path, ONE_PLACE, FEW_PLACES)
    each = hit.ROUNDS * (hit.OPS + 2)
    assert counters[CNT_OP_RECORDS] == 2 * each
    assert counters[CNT_NO_SLOT] == (THREADS - 2) * each
