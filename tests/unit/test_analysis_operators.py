from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from builders import SampleRun, TraceBuilder, llama_graph, sample_run

from profinfer.analysis import operators, shapes
from profinfer.model.trace import Trace


@pytest.fixture
def run() -> SampleRun:
    return sample_run(compute=lambda node, thread: 1000 + 10 * node + 300 * thread)


@pytest.fixture
def trace(run: SampleRun, tmp_path: Path) -> Trace:
    return Trace.open(run.builder.write(tmp_path / "t.pf"))


def test_time_by_operator_type(run: SampleRun, trace: Trace) -> None:
    result = operators.by(trace, trace.select(phase="decode"), "op")
    calls: Counter[str] = Counter()
    wall: Counter[str] = Counter()
    compute: Counter[str] = Counter()
    for truth, graph in zip(run.graphs[2:], run.definitions[2:], strict=True):
        before = truth.begin_ns + 10
        for node in dict.fromkeys(op.node for op in truth.ops):
            mine = [op for op in truth.ops if op.node == node]
            name = graph.nodes[node].op
            calls[name] += 1
            wall[name] += mine[0].release_ns - before
            compute[name] += sum(op.end_ns - op.begin_ns for op in mine) // 2
            before = mine[0].release_ns
    frame = result.frame.set_index("op")
    assert frame["calls"].to_dict() == dict(calls)
    assert frame["wall_ns"].to_dict() == dict(wall)
    assert frame["compute_ns"].to_dict() == {k: v / 3 for k, v in compute.items()}
    assert frame["share"].sum() == pytest.approx(1)
    assert (frame["wall_ns"].diff().dropna() <= 0).all()  # slowest first
    assert result.total is not None
    assert result.total["wall_ns"] == sum(wall.values())
    assert result.total["per_token_ns"] == pytest.approx(sum(wall.values()) / 3)


@pytest.mark.parametrize("key", ["op", "role", "layer"])
def test_every_grouping_sums_to_the_same(trace: Trace, key: str) -> None:
    result = operators.by(trace, trace.select(phase="decode"), key)
    whole = operators.by(trace, trace.select(phase="decode"), "op").total
    assert result.total == pytest.approx(whole)
    assert result.frame["wall_ns"].sum() == whole["wall_ns"]  # type: ignore[index]


def test_filters_narrow(trace: Trace) -> None:
    one = operators.by(trace, trace.select(phase="decode", op="MUL_MAT"), "layer")
    assert one.frame["layer"].tolist() == ["0", "1", "none"]
    assert one.frame["calls"].tolist() == [18, 18, 3]
    layer = operators.by(trace, trace.select(phase="decode", layer=(1, 2)), "op")
    assert layer.total is not None and layer.total["calls"] == 14 * 3
    assert "layer 1" in layer.scope and "op MUL_MAT" in one.scope


def test_slowest_operators_have_shape_type_and_layer(trace: Trace) -> None:
    result = operators.by_node(trace, trace.select(phase="decode"))
    frame = result.frame.set_index("name")
    assert len(frame) == 32
    row = frame.loc["ffn_up-1"]
    assert (row["problem"], row["types"], row["layer"]) == ("128x64x1", "q4_1", 1)
    assert row["weight"] == "blk.1.ffn_up.weight"
    assert frame.loc["kq-0", "problem"] == "34x16x1 *4 .."  # the cache grew meanwhile
    top = operators.by_node(trace, trace.select(phase="decode"), top=3)
    assert len(top.frame) == 3
    assert any("3 slowest of 32" in n.text for n in top.notes)


def test_shapes(trace: Trace) -> None:
    frame = operators.by_shape(trace, trace.select(phase="decode")).frame
    sizes = frame[frame["op"] == "MUL_MAT"].set_index("problem")["calls"]
    assert sizes["64x64x1"] == 4 * 2 * 3  # q, k, output and down of two layers
    assert sizes["256x64x1"] == 3


@pytest.mark.parametrize(
    ("op", "shape", "src0", "src1", "want"),
    [
        ("MUL_MAT", "1536x4", "576x1536", "576x4", "1536x576x4"),
        ("MUL_MAT", "32x1x9", "64x32x3", "64x1x9", "32x64x1 *9"),
        ("FLASH_ATTN_EXT", "64x9", "64x1x9", "64x256x3", "64x9 kv 256"),
        ("ADD", "576x4", "576x4", "576x4", "576x4"),
        ("MUL_MAT", "5", "", "", "5"),
    ],
)
def test_problem_size(op: str, shape: str, src0: str, src1: str, want: str) -> None:
    assert shapes.problem(op, shape, src0, src1) == want


def test_many_layers_are_summed_up(tmp_path: Path) -> None:
    builder = TraceBuilder()
    builder.call_begin(77, 1000, n_tokens=1)
    end = builder.run_graph(llama_graph(layers=20), begin=1100).end_ns
    builder.call_end(77, end)
    trace = Trace.open(builder.write(tmp_path / "t.pf"))
    result = operators.layers_brief(trace, trace.select())
    names = result.frame["layer"].tolist()
    assert len(names) == 8
    assert names[5].startswith("median (") and names[6].startswith("fastest (")
    assert names[7] == "none"
    assert any("5 slowest of 20" in n.text for n in result.notes)
    full = operators.by(trace, trace.select(), "layer").frame["layer"].tolist()
    assert full == [*map(str, range(20)), "none"]


def test_torn_operators_stay_out_of_compute_and_wait(tmp_path: Path) -> None:
    builder = TraceBuilder()
    for number in range(2):
        builder.call_begin(77, 10**9 * (number + 1), n_tokens=1, pos_first=number)
        lose = 0 if number else None
        end = builder.run_graph(
            llama_graph(layers=40), begin=10**9 * (number + 1) + 100, lose_batch=lose,
            compute=lambda node, thread: 1000 + 500 * thread,
        ).end_ns  # fmt: skip
        builder.call_end(77, end)
    trace = Trace.open(builder.write(tmp_path / "t.pf"))
    result = operators.by(trace, trace.select(), "op")
    # Every whole operator: one thread computes 1000, the other 1500 and the first waits 500.
    assert result.total is not None
    assert result.total["wait_share"] == pytest.approx(500 / 3000, rel=0.01)
    assert any("1 of 2 graphs are incomplete" in n.text for n in result.notes)
    assert any("1 batches of operator records lost" in n.text for n in result.notes)
