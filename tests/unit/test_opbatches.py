"""Operator batches in their two forms."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import numpy as np
import pytest
from builders import OpEvent, TraceBuilder, compact_records, sample_run

from profinfer.capture.leftover import open_batches
from profinfer.tracefile import opbatches
from profinfer.tracefile.reader import TraceReader
from profinfer.tracefile.schema import (
    OPS_CODE_LEAVE,
    OPS_COMPACT,
    OPS_DT_BITS,
    OPS_LAST,
    OPS_PER_BATCH,
    Kind,
    OpKind,
)

END, ENTER, LEAVE = OpKind.END, OpKind.ENTER, OpKind.LEAVE
LATE = (1 << OPS_DT_BITS) - 1
LARGE = (1 << 24) - 1


def batch(rng: random.Random) -> list[OpEvent]:
    """Events of one batch that a thread may have: begin, middle or end of a visit, or all of it."""
    ts = rng.randrange(1 << 40)
    index, events = -1, []
    if rng.random() < 0.5:
        events.append((ts, ENTER, 0))
    elif rng.random() < 0.9:
        index = rng.choice([0, 1, 500, LARGE - 20_000])
        events.append((ts, END, index))
    else:
        return [(ts, LEAVE, 0)]
    for _ in range(rng.choice([0, 1, 2, 30, 300, OPS_PER_BATCH - 2])):
        ts += rng.choice([0, 1, 1000, LATE // OPS_PER_BATCH])
        index += rng.choice([1, 1, 1, 2, 30])
        events.append((ts, END, index))
    if rng.random() < 0.5:
        events.append((ts + 5, LEAVE, 0))
    return events


def read(builder: TraceBuilder, path: Path) -> tuple[list[list[tuple[int, int]]], list[str]]:
    """The records of each batch, and the problems."""
    with TraceReader(builder.write(path)) as reader:
        _, batches, ops, counts = reader.ops()
        assert batches["n"].tolist() == counts.tolist()
        parts = np.split(ops, np.cumsum(counts)[:-1])
        return [part.tolist() for part in parts] if len(counts) else [], reader.problems


@pytest.mark.parametrize("block", [1, 700, 1 << 17])
@pytest.mark.parametrize("forms", ["compact", "mixed"])
def test_a_compact_batch_says_what_a_wide_one_says(
    tmp_path: Path, block: int, forms: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opbatches, "_BLOCK", block)
    rng = random.Random(f"{block} {forms}")
    b = TraceBuilder()
    wanted = []
    for number in range(200):
        events = batch(rng)
        assert compact_records(events) is not None
        b.wide = forms == "mixed" and rng.random() < 0.5
        b.ops(70 + number % 3, events)
        wanted.append([(ts - events[0][0], kind << 24 | arg) for ts, kind, arg in events])
    assert read(b, tmp_path / "t.pf") == (wanted, [])


def test_short_batches_only(tmp_path: Path) -> None:
    b = TraceBuilder()
    for i in range(50):
        b.ops(1, [(i, ENTER, 0), (i + 3, LEAVE, 0)] if i % 2 else [(i, END, i)])
    parts, problems = read(b, tmp_path / "t.pf")
    assert problems == [] and parts[:2] == [[(0, END << 24)], [(0, ENTER << 24), (3, LEAVE << 24)]]
    assert parts[48] == [(0, END << 24 | 48)]


def test_the_same_run_in_both_forms(tmp_path: Path) -> None:
    found = []
    for wide in (True, False):
        builder = sample_run(builder=TraceBuilder(wide=wide)).builder
        with TraceReader(builder.write(tmp_path / f"{wide}.pf")) as reader:
            found.append((reader.ops(), reader.problems))
            assert all((reader.ops().batches["flags"] & OPS_COMPACT == 0) == wide)
    (wide_ops, nothing), (compact_ops, none) = found
    assert nothing == none == []
    for name in ("order", "ops", "counts"):
        assert getattr(wide_ops, name).tobytes() == getattr(compact_ops, name).tobytes(), name


@pytest.mark.parametrize(
    ("what", "events"),
    [
        ("late", [(0, ENTER, 0), (LATE + 1, END, 0)]),
        ("far", [(0, ENTER, 0), (5, END, 30)]),
        ("back", [(0, END, 7), (5, END, 7)]),
        ("older", [(9, END, 7), (5, END, 8)]),
        ("enter inside", [(0, END, 7), (5, ENTER, 0)]),
        ("leave inside", [(0, END, 7), (5, LEAVE, 0), (6, END, 8)]),
        ("begin", [(0, OpKind.BEGIN, 7)]),
        ("barrier", [(0, END, 7), (5, OpKind.BARRIER, 0)]),
    ],
)
def test_what_does_not_fit_the_compact_form(what: str, events: list[OpEvent]) -> None:
    assert compact_records(events) is None, what


def word(code: int, dt: int = 5) -> int:
    return code << OPS_DT_BITS | dt


@pytest.mark.parametrize(
    ("what", "records"),
    [
        ("none", []),
        ("no code", [END << 24, word(0)]),
        ("no code, the batch's last", [END << 24, word(1), word(0)]),
        ("leave inside", [END << 24, word(OPS_CODE_LEAVE), word(1)]),
        ("leave, then more", [LEAVE << 24, word(1)]),
        ("leave twice", [LEAVE << 24, word(OPS_CODE_LEAVE)]),
        ("zeros", [0, 0]),
        ("begin", [OpKind.BEGIN << 24 | 3]),
        ("barrier", [OpKind.BARRIER << 24, word(1)]),
        ("unknown kind", [6 << 24]),
        ("enter with an argument", [ENTER << 24 | 1, word(1)]),
        ("leave with an argument", [LEAVE << 24 | 1]),
        ("index beyond 24 bits", [END << 24 | LARGE, word(1)]),
    ],
)
def test_a_malformed_compact_batch_is_counted_and_skipped(
    tmp_path: Path, what: str, records: list[int]
) -> None:
    good = [(1000, ENTER, 0), (1500, END, 3), (1600, LEAVE, 0)]
    wanted = [(0, ENTER << 24), (500, END << 24 | 3), (600, LEAVE << 24)]
    b = TraceBuilder()
    b.ops(5, good)
    body = struct.pack(f"<QII{len(records)}I", 0, 1, len(records), *records)
    b.record(Kind.OPS, 5, 2000, body, OPS_COMPACT)
    b.ops(5, good, seq=2)
    parts, problems = read(b, tmp_path / "t.pf")
    assert parts == [wanted, wanted], what
    assert "1 OPS record(s) were skipped: their compact form is malformed" in problems


def test_the_largest_of_everything(tmp_path: Path) -> None:
    b = TraceBuilder()
    events = [(0, END, LARGE - 30), (LATE, END, LARGE)]
    b.ops(5, events)
    b.ops(5, [(0, END, LARGE)])
    parts, problems = read(b, tmp_path / "t.pf")
    assert problems == []
    assert parts == [[(0, END << 24 | LARGE - 30), (LATE, END << 24 | LARGE)], [(0, 0x1FFFFFF)]]


@pytest.mark.parametrize("wide", [False, True])
def test_what_a_dead_thread_left_open_is_read_like_any_other(tmp_path: Path, wide: bool) -> None:
    events = [(1000, ENTER, 0), (1400, END, 3), (1900, END, 5)]
    b = TraceBuilder(wide=wide)
    b.ops(7, events, cgraph=0x60, last=False, seq=4)
    head = b._ring[8:]  # as in the slot, without what pads it
    slot = struct.pack("<II", 5, 0) + head.ljust(3000, b"\xee")
    (entry,), records, emptied = open_batches([bytes(3008), slot, bytes(3008)])
    assert records == 3 and list(emptied) == [1] and len(entry) % 8 == 0
    assert open_batches([emptied[1]]) == ([], 0, {})
    # The next batch of this thread, if there is one, has the next number.
    assert struct.unpack_from("<QII", emptied[1], 8 + 16) == (0, 5, 0)
    b._ring[:] = b""
    b._ring += entry
    b.call_end(7, 3000)  # what follows is found
    with TraceReader(b.write(tmp_path / "t.pf")) as reader:
        assert reader.problems == [] and len(reader.fixed(Kind.CALL_END).rows) == 1
        (row,) = reader.ops().batches
        assert row["seq"] == 4 and row["cgraph"] == 0x60 and not row["flags"] & OPS_LAST
        wanted = [(ts - 1000, kind << 24 | arg) for ts, kind, arg in events]
        assert reader.ops().ops.tolist() == wanted
