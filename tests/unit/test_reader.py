from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from builders import Node, TraceBuilder, sample_run

from profinfer.tracefile import schema
from profinfer.tracefile.documents import parse
from profinfer.tracefile.reader import TraceReader
from profinfer.tracefile.schema import Kind, OpKind
from profinfer.tracefile.structs import buffer_struct, tensor_struct


def opened(builder: TraceBuilder, folder: Path) -> TraceReader:
    return TraceReader(builder.write(folder / "t.pf"))


def test_records_of_every_kind_keep_their_values(tmp_path: Path) -> None:
    b = TraceBuilder(chunk_bytes=256)
    b.thread(77, 5, "main")
    b.warmup(77, 6, schema.WARMUP_RESET, ctx=9)
    b.call_begin(77, 10, n_tokens=4, pos_first=2, pos_last=5, ctx=1 << 63, flags=1)
    b.split_begin(77, 11, cgraph=0xABC0, n_nodes=3, uid=8, guid=b"g" * 16, get_name=0x40)
    b.ptrs(77, 12, cgraph=0xABC0, gen=12, ptr=[1, 2, 3], first=64, leafs=True)
    b.graph_begin(77, 13, cgraph=0xABC0, gen=12, n_nodes=3, n_threads=2, walk_ns=99, flags=1)
    b.graph_end(77, 20, value=-1)
    b.split_end(77, 21)
    b.call_end(77, 22, value=1)
    b.sample_begin(77, 23)
    b.sample_end(77, 24, value=42)
    with opened(b, tmp_path) as reader:
        assert reader.problems == [] and len(reader.chunks) == 3
        index = reader.records()
        assert index.kind.tolist() == [13, 14, 1, 5, 10, 7, 8, 6, 2, 3, 4]
        assert index.ts.tolist() == [5, 6, 10, 11, 12, 13, 20, 21, 22, 23, 24]
        assert set(index.tid.tolist()) == {77}
        order, call = reader.fixed(Kind.CALL_BEGIN)
        assert order.tolist() == [2]
        assert (call["ctx"][0], call["n_tokens"][0], call["flags"][0]) == (1 << 63, 4, 1 | 1 << 4)
        assert (call["pos_first"][0], call["pos_last"][0]) == (2, 5)
        split = reader.fixed(Kind.SPLIT_BEGIN).rows[0]
        assert bytes(split["guid"]) == b"g" * 16 and split["get_name"] == 0x40
        ptrs = reader.fixed(Kind.PTRS).rows[0]
        assert ptrs["ptr"][:4].tolist() == [1, 2, 3, 0] and ptrs["first"] == 64
        assert reader.fixed(Kind.GRAPH_BEGIN).rows["walk_ns"].tolist() == [99]
        assert reader.fixed(Kind.GRAPH_END).rows["value"].tolist() == [-1]
        assert reader.fixed(Kind.THREAD).rows["comm"].tolist() == [b"main"]
        assert reader.fixed(Kind.WARMUP).rows["value"].tolist() == [2]
        # Arrays outlive the map.
    assert call["n_tokens"].tolist() == [4]


def test_an_empty_trace(tmp_path: Path) -> None:
    with opened(TraceBuilder(), tmp_path) as reader:
        assert reader.problems == [] and reader.complete
        assert len(reader.records()) == 0 and reader.count_by_kind() == {}
        assert [len(part) for part in reader.ops()] == [0, 0, 0, 0]
        assert len(reader.tensors().rows) == 0
        for kind in schema.FIXED:
            assert len(reader.fixed(kind).rows) == 0


@pytest.mark.parametrize("size", [1, 3, 511, 512])
def test_operator_batches(tmp_path: Path, size: int) -> None:
    b = TraceBuilder()
    wanted = []
    for batch in range(5):
        n = size if batch != 2 else 1
        events = [(1000 * batch + i, OpKind.END, i) for i in range(n)]
        b.call_end(1, batch)
        b.ops(70 + batch % 2, events, cgraph=batch)
        wanted += [(i, OpKind.END << 24 | i) for i in range(n)]
    with opened(b, tmp_path) as reader:
        order, batches, ops, counts = reader.ops()
        assert order.tolist() == [1, 3, 5, 7, 9]
        assert batches["cgraph"].tolist() == [0, 1, 2, 3, 4]
        assert batches["seq"].tolist() == [0, 0, 1, 1, 2]
        assert counts.tolist() == [size, size, 1, size, size]
        assert list(map(tuple, ops.tolist())) == wanted


@pytest.mark.parametrize("tensor_size", [336, 340])
def test_raw_structs_through_the_layout(tmp_path: Path, tensor_size: int) -> None:
    b = TraceBuilder(engine={"layout": {"tensor_size": tensor_size}})
    weight = Node("blk.0.attn_q.weight", "NONE", "q4_1", (64, 128))
    out = Node("Qcur-0", "MUL_MAT", "f32", (128, 2), (weight,), params=struct.pack("<2i", 7, 8))
    b.tensor(1, 5, gen=5, node=weight)
    b.buffer(1, 6, gen=5, addr=0x5000, usage=1)
    b.tensor(1, 7, gen=5, node=out)
    with opened(b, tmp_path) as reader:
        assert reader.problems == []
        layout = reader.meta.engine.layout
        assert layout is not None
        order, rows = reader.tensors()
        assert order.tolist() == [0, 2]
        assert rows["addr"].tolist() == [weight.addr, out.addr]
        raw = np.ascontiguousarray(rows["raw"]).view(tensor_struct(layout))
        assert raw["name"].tolist() == [b"blk.0.attn_q.weight", b"Qcur-0"]
        assert raw["ne"].tolist() == [[64, 128, 1, 1], [128, 2, 1, 1]]
        assert raw["src"][1, :2].tolist() == [weight.addr, 0]
        assert raw["op_params"][1, :3].tolist() == [7, 8, 0]
        assert raw["nb"].tolist()[0][:2] == [20, 40]
        usage = np.ascontiguousarray(reader.buffers().rows["raw"]).view(buffer_struct(layout))
        assert usage["usage"].tolist() == [1]


def test_discarded_entries_are_stepped_over_and_counted(tmp_path: Path) -> None:
    b = TraceBuilder()
    b.call_end(1, 1)
    b.discard(24)
    b.discard(4136)
    b.call_end(1, 2)
    with opened(b, tmp_path) as reader:
        assert reader.records().ts.tolist() == [1, 2]
        assert reader.records().discarded == 2 and reader.problems == []


def test_updates_change_the_metadata(tmp_path: Path) -> None:
    b = TraceBuilder()
    b.update(engine={"version": "1.0", "layout": {"tensor_size": 400}}, late="yes")
    b.update(engine={"version": "2.0", "ops_evidence": None})
    with opened(b, tmp_path) as reader:
        engine = reader.meta.engine
        assert engine.version == "2.0" and engine.ops_evidence is None
        assert engine.layout is not None and engine.layout.tensor_size == 400
        assert engine.layout.tensor["ne"] == 16 and reader.meta.extra["late"] == "yes"


def test_counters_and_what_is_missing(tmp_path: Path) -> None:
    b = TraceBuilder()
    for i in range(5):
        b.call_end(1, i)
    b.loss(9)
    with TraceReader(b.write(tmp_path / "a.pf", trailer=False)) as reader:
        assert reader.counters[Kind.CALL_END] == 5 and reader.missing_records() == {}
    b.counters[Kind.CALL_END] = 7
    with opened(b, tmp_path) as reader:
        assert reader.missing_records() == {Kind.CALL_END: 2}
        assert reader.trailer is not None and reader.trailer.exit_code == 0


def test_a_lost_batch_leaves_a_gap_in_its_numbers(tmp_path: Path) -> None:
    run = sample_run(layers=30)
    with opened(run.builder, tmp_path) as reader:
        assert len(reader.ops().ops) == sum(len(g.ops) for g in run.graphs) + 2 * 5
    b = TraceBuilder()
    b.ops(5, [(1, OpKind.ENTER, 0)])
    b.ops(5, [(2, OpKind.END, 1)], lose=True)
    b.ops(5, [(3, OpKind.LEAVE, 0)])
    with opened(b, tmp_path) as reader:
        assert reader.ops().batches["seq"].tolist() == [0, 2]
        assert reader.counters[schema.CNT_LOST + Kind.OPS] == 1


def test_a_newer_minor_version_is_read(tmp_path: Path) -> None:
    b = TraceBuilder()
    b.call_end(1, 1)
    b.record(Kind.CALL_END, 1, 2, struct.pack("<IiQ", 3, 4, 5))  # a field more
    b.record(40, 1, 3, b"\0" * 8)
    b.chunk(77, b"from the future")
    data = bytearray(b.bytes())
    path = tmp_path / "t.pf"
    data = remade(data, minor=9)
    path.write_bytes(data)
    with TraceReader(path) as reader:
        assert reader.fixed(Kind.CALL_END).rows["value"].tolist() == [0, 4]
        said = "\n".join(reader.problems)
        assert "format 1.9, newer than 1.4" in said
        assert "1 chunk(s) of unknown kind 77" in said
        assert "1 record(s) of unknown kind 40" in said
        assert reader.chunk_counts() == {"RING": 1, "kind 77": 1, "TRAILER": 1}


def remade(data: bytes | bytearray, **fields: int) -> bytearray:
    """The file with other header fields and a checksum that fits."""
    import zlib

    out = bytearray(data)
    head = np.frombuffer(out, schema.FILE_HEADER, count=1)
    for name, value in fields.items():
        head[name] = value
    head["header_crc"] = zlib.crc32(bytes(out[:32]))
    return out


@pytest.mark.parametrize("wide", [False, True])
def test_ten_million_operators_are_not_walked_one_by_one(tmp_path: Path, wide: bool) -> None:
    # A million here; what matters is that time follows the batches.
    import time

    b = TraceBuilder(chunk_bytes=1 << 20, wide=wide)
    events = [(i, OpKind.END, i) for i in range(400)]
    b.ops(1, events)
    entry = bytes(b._ring)
    b._ring *= 2500
    with opened(b, tmp_path) as reader:
        begin = time.perf_counter()
        counts = reader.ops().counts
        took = time.perf_counter() - begin
    assert len(entry) * 2500 < 10 << 20 and counts.sum() == 1_000_000
    assert took < 1.0  # 0.02 s is usual


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    """File names are any bytes; pandas and protobuf take no surrogates."""
    said = {"path": b"/m\xff.gguf".decode("utf-8", "surrogateescape"), "é": ["\ud800", "😀", 3]}
    held = parse(json.dumps(said).encode())
    assert held == {"path": "/m\\xff.gguf", "é": ["\\ud800", "😀", 3]}
