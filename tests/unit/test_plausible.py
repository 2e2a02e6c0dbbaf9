"""A wrong layout must be noticed from the first tensors, not from odd numbers in a report."""

from __future__ import annotations

import dataclasses
import struct

import pytest

from profinfer.capture.plausible import TensorCheck, Verdict
from profinfer.engine.catalog import Layout, layouts
from profinfer.tracefile.schema import HDR, Kind

LAYOUT = layouts()[0]
OPS = ["NONE", "ADD", "MUL_MAT"]
TYPES = [{"name": "f32", "block": 1, "size": 4}, None, {"name": "q4_0", "block": 32, "size": 18}]


def tensor(
    name: bytes = b"Qcur-0",
    op: int = 2,
    kind: int = 0,
    ne: tuple = (64, 4, 1, 1),
    row: int = 256,
) -> bytes:
    raw = bytearray(LAYOUT.tensor_size)
    t = LAYOUT.tensor
    struct.pack_into("<I", raw, t["type"], kind)
    struct.pack_into("<4q", raw, t["ne"], *ne)
    struct.pack_into("<4Q", raw, t["nb"], 4, row, 4 * row, 4 * row)
    struct.pack_into("<I", raw, t["op"], op)
    struct.pack_into("<Q", raw, t["data"], 0x7F00_1234_5640)
    raw[t["name"] : t["name"] + len(name)] = name
    return bytes(raw)


def block(*tensors: bytes) -> memoryview:
    out = b""
    for raw in tensors:
        record = bytearray(HDR.itemsize) + struct.pack("<QQ", 0x5600, 1) + raw
        struct.pack_into("<H", record, 0, Kind.TENSOR)
        out += struct.pack("<II", len(record), 0) + record
        # Something else in between must not be taken for a tensor.
        out += struct.pack("<IIHHIQQ", 24, 0, Kind.CALL_END, 0, 1, 2, 3)
    return memoryview(out)


def check(*tensors: bytes, layout: Layout = LAYOUT) -> Verdict:
    checked = TensorCheck(layout, OPS, TYPES)
    checked.look(block(*tensors))
    return checked.verdict


def test_good_tensors() -> None:
    verdict = check(*[tensor()] * 20)
    assert (verdict.seen, verdict.bad, verdict.acceptable) == (20, 0, True)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"op": 3}, "operator number 3"),
        ({"kind": 1}, "type number 1"),
        ({"kind": 99}, "type number 99"),
        ({"ne": (64, -1, 1, 1)}, "shape [64, -1, 1, 1]"),
        ({"ne": (1 << 60, 1, 1, 1)}, "shape"),
        ({"name": b"\x01\x02"}, "name"),
    ],
)
def test_each_sign(change: dict, says: str) -> None:
    verdict = check(tensor(**change))
    assert not verdict.acceptable
    assert says in verdict.reason


def test_one_odd_tensor_is_no_wrong_layout() -> None:
    assert check(tensor(op=77), *[tensor()] * 30).acceptable


@pytest.mark.parametrize("field", ["op", "ne", "name"])
def test_a_shifted_layout_is_noticed(field: str) -> None:
    """A field of every tensor read some bytes off."""
    off = {"op": 168, "ne": 8, "name": -8}[field]
    moved = dataclasses.replace(LAYOUT, tensor={**LAYOUT.tensor, field: LAYOUT.tensor[field] + off})
    assert check(*[tensor()] * 40).acceptable
    assert not check(*[tensor()] * 40, layout=moved).acceptable


def test_strides_read_elsewhere_are_noticed() -> None:
    verdict = check(*[tensor(row=640)] * 40)
    assert not verdict.acceptable
    assert verdict.reason == "strides do not follow from the shapes"


def test_a_block_of_views_is_no_verdict() -> None:
    """The ring is emptied at any time: a block may hold just the views of a cache."""
    views = block(*[tensor(row=640)] * 3)
    checked = TensorCheck(LAYOUT, OPS, TYPES)
    assert checked.look(views) is None
    assert checked.verdict.acceptable
    assert checked.look(block(*[tensor()] * 20)) is None
    assert checked.look(views) is None
    verdict = checked.look(block(*[tensor()] * 10))
    assert verdict is not None
    assert (verdict.seen, verdict.dense, verdict.acceptable) == (36, 30, True)


def test_nothing_to_see() -> None:
    assert check().seen == 0
