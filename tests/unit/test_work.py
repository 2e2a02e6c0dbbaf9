"""Operations and bytes of operators, against numbers worked out by hand."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from builders import OPS, Graph, Node, TraceBuilder, llama_graph

from profinfer.analysis.work import Work, executed, per_execution
from profinfer.analysis.work_rules import GLU, RULES, UNARY
from profinfer.model.trace import Trace


def leaf(name: str, kind: str, *ne: int, **more: object) -> Node:
    return Node(name, "NONE", kind, ne, flags=0, buffer=0x5000, **more)  # type: ignore[arg-type]


def traced(
    tmp_path: Path, nodes: list[Node], leafs: list[Node], fuse: list[int] | None = None
) -> Trace:
    builder = TraceBuilder()
    builder.call_begin(77, 1_000_000, n_tokens=1, pos_first=3, pos_last=3)
    graph = Graph(nodes, leafs)
    truth = builder.run_graph(graph, begin=1_000_500, fuse=fuse or [])
    builder.call_end(77, truth.end_ns + 100)
    return Trace.open(builder.write(tmp_path / "t.pf"))


def work_of(tmp_path: Path, node: Node) -> Work:
    """Work of one node whose sources are leafs; another one ends the graph."""
    leafs = [s for s in node.src if s]
    end = Node("end", "SCALE", "f32", (8,), (leafs[0],))
    return per_execution(traced(tmp_path, [node, end], leafs))


def numbers(work: Work) -> tuple[float, float, float, float, float]:
    """Of the first node: flops, weights, kv, activations, written."""
    return tuple(
        float(getattr(work, k)[0]) for k in ("flops", "weights", "kv", "activations", "written")
    )  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("kind", "weights"),
    [
        ("f32", 512 * 64 * 4),
        ("f16", 512 * 64 * 2),
        ("q4_1", 512 * 64 // 32 * 20),
        ("q8_0", 512 * 64 // 32 * 34),
        ("q4_K", 512 * 64 // 256 * 144),
        ("q6_K", 512 * 64 // 256 * 210),
    ],
)
def test_a_matrix_product(tmp_path: Path, kind: str, weights: int) -> None:
    a = leaf("blk.0.ffn_up.weight", kind, 512, 64)
    b = leaf("x", "f32", 512, 3)
    work = work_of(tmp_path, Node("up-0", "MUL_MAT", "f32", (64, 3), (a, b)))
    assert numbers(work) == (2 * 512 * 64 * 3, weights, 0, 512 * 3 * 4, 64 * 3 * 4)
    assert bool(work.int8[0]) == (kind.startswith("q"))
    assert work.reasons[work.at_most[0]] == ""


def test_heads_that_share_keys_read_them_once(tmp_path: Path) -> None:
    """K {64, 32 cells, 2 kv heads} against Q {64, 1, 8 heads}; a view of a larger cache."""
    cache = leaf("cache_k_l0", "f16", 128, 4096)
    row = 128 * 2
    keys = leaf("cache_k_l0 (view)", "f16", 64, 32, 2, view_src=cache, nb=(2, row, 128, row * 32))
    q = leaf("q", "f32", 64, 1, 8)
    work = work_of(tmp_path, Node("kq-0", "MUL_MAT", "f32", (32, 1, 8), (keys, q)))
    assert numbers(work) == (2 * 64 * 32 * 8, 0, 64 * 32 * 2 * 2, 64 * 8 * 4, 32 * 8 * 4)


def test_experts_of_one_token_are_exact_and_of_many_a_bound(tmp_path: Path) -> None:
    experts = leaf("blk.0.ffn_up_exps.weight", "q4_1", 64, 32, 8)
    one = 64 * 32 // 32 * 20
    for tokens, touched, exact in ((1, 2, True), (3, 6, False), (5, 8, False)):
        x = leaf("x", "f32", 64, 1, tokens)
        ids = leaf("ids", "i32", 2, tokens)
        node = Node("up", "MUL_MAT_ID", "f32", (32, 2, tokens), (experts, x, ids))
        work = work_of(tmp_path, node)
        flops, weights, _, activations, written = numbers(work)
        assert flops == 2 * 64 * 32 * 2 * tokens
        assert weights == touched * one
        assert activations == 64 * tokens * 4 + 2 * tokens * 4
        assert written == 32 * 2 * tokens * 4
        assert (work.reasons[work.at_most[0]] == "") == exact


def test_attention_reads_the_cache_once_for_all_heads(tmp_path: Path) -> None:
    q = leaf("q", "f32", 64, 2, 9)
    k = leaf("cache_k_l0 (view) (permuted)", "f16", 64, 256, 3)
    v = leaf("cache_v_l0 (view) (permuted)", "q8_0", 64, 256, 3)
    mask = leaf("KQ_mask", "f16", 256, 64)  # padded to 64 rows, 2 exist
    work = work_of(tmp_path, Node("fa", "FLASH_ATTN_EXT", "f32", (64, 9, 2), (q, k, v, mask)))
    scores = 256 * 2 * 9
    kv = 64 * 256 * 3 * 2 + 64 * 256 * 3 // 32 * 34
    read = 64 * 2 * 9 * 4 + 256 * 2 * 2
    assert numbers(work) == (scores * (4 * 64 + 6), 0, kv, read, 64 * 9 * 2 * 4)
    assert "masked" in work.reasons[work.at_most[0]]


def test_only_the_rows_that_are_touched(tmp_path: Path) -> None:
    table = leaf("token_embd.weight", "q8_0", 64, 1000)
    ids = leaf("ids", "i32", 5)
    work = work_of(tmp_path, Node("embd", "GET_ROWS", "f32", (64, 5), (table, ids)))
    assert numbers(work) == (0, 5 * 64 // 32 * 34, 0, 5 * 4, 64 * 5 * 4)

    cache = leaf("cache_k_l0", "f16", 64, 4096)
    k, at = leaf("k", "f32", 64, 5), leaf("idx", "i64", 5)
    node = Node("cache_k_l0 (view)", "SET_ROWS", "f16", (64, 4096), (k, at, cache), view_src=cache)
    assert numbers(work_of(tmp_path, node)) == (0, 0, 0, 64 * 5 * 4 + 5 * 8, 64 * 5 * 2)

    target = leaf("cache_v_l0 (view)", "f16", 64, 5)
    node = Node("copy", "CPY", "f16", (64, 5), (k, target), view_src=target)
    assert numbers(work_of(tmp_path, node)) == (0, 0, 0, 64 * 5 * 4, 64 * 5 * 2)


def test_views_count_what_they_address(tmp_path: Path) -> None:
    base = leaf("base", "f32", 1024, 10)
    narrow = leaf("base (view)", "f32", 100, 10, view_src=base, nb=(4, 4096, 40960, 40960))
    work = work_of(tmp_path, Node("c", "CONT", "f32", (100, 10), (narrow,)))
    assert numbers(work) == (0, 0, 0, 4000, 4000)
    # Rows that overlap, as a sliding window: 10 windows of 100, each one number further.
    sliding = leaf("w (view)", "f32", 100, 10, view_src=base, nb=(4, 4, 40, 40))
    work = work_of(tmp_path, Node("c", "CONT", "f32", (100, 10), (sliding,)))
    assert numbers(work)[3] == (100 + 9) * 4


def test_elementwise_operators(tmp_path: Path) -> None:
    x, w = leaf("x", "f32", 64, 4), leaf("n.weight", "f32", 64)
    cases: list[tuple[Node, tuple[float, ...]]] = [
        (Node("m", "MUL", "f32", (64, 4), (x, w)), (256, 256, 0, 1024, 1024)),
        (Node("n", "RMS_NORM", "f32", (64, 4), (x,)), (768, 0, 0, 1024, 1024)),
        (Node("s", "SOFT_MAX", "f32", (64, 4), (x,)), (6 * 256, 0, 0, 1024, 1024)),
        (Node("r", "ROPE", "f32", (16, 4, 4), (x, leaf("p", "i32", 4))), (768, 0, 0, 1040, 1024)),
        (
            Node("g", "GLU", "f32", (32, 4), (x,), params=struct.pack("<i", 2)),
            (5 * 128, 0, 0, 1024, 512),
        ),
        (
            Node("u", "UNARY", "f32", (64, 4), (x,), params=struct.pack("<i", 10)),
            (4 * 256, 0, 0, 1024, 1024),
        ),
        (Node("i", "IM2COL", "f32", (9, 20), (w, x)), (0, 0, 0, 1024, 720)),
        (
            Node("c", "SSM_CONV", "f32", (64, 1), (x, leaf("k.weight", "f32", 4, 64))),
            (512, 1024, 0, 1024, 256),
        ),
    ]
    for node, wanted in cases:
        assert numbers(work_of(tmp_path, node)) == wanted, node.op


def test_an_operator_without_a_rule_has_no_number(tmp_path: Path) -> None:
    x = leaf("x", "f32", 64)
    work = work_of(tmp_path, Node("c", "CUSTOM", "f32", (64,), (x,)))
    assert all(np.isnan(n) for n in (numbers(work)[0], numbers(work)[4]))
    assert np.isnan(work.moved[0])
    # Bytes follow from the shapes of a pool, its operations do not.
    work = work_of(tmp_path, Node("p", "POOL_1D", "f32", (32,), (x,)))
    assert np.isnan(work.flops[0]) and work.moved[0] == 256 + 128


def test_a_view_that_passed_a_barrier_did_nothing(tmp_path: Path) -> None:
    x = leaf("x", "f32", 64)
    work = work_of(tmp_path, Node("x (view)", "VIEW", "f32", (32,), (x,), view_src=x))
    assert numbers(work) == (0, 0, 0, 0, 0)


def test_a_source_that_was_not_read_leaves_no_number(tmp_path: Path) -> None:
    ghost = leaf("ghost.weight", "f32", 64, 64)
    x = leaf("x", "f32", 64)
    nodes = [
        Node("up", "MUL_MAT", "f32", (64,), (ghost, x)),
        Node("end", "SCALE", "f32", (64,), (x,)),
    ]
    work = per_execution(traced(tmp_path, nodes, [x]))
    assert np.isnan(work.flops[0]) and np.isnan(work.moved[0])
    assert work.flops[1] == 64


def test_a_fused_pair_does_not_move_what_is_between(tmp_path: Path) -> None:
    x, w = leaf("x", "f32", 64), leaf("n.weight", "f32", 64)
    norm = Node("norm", "RMS_NORM", "f32", (64,), (x,))
    mul = Node("mul", "MUL", "f32", (64,), (norm, w))
    end = Node("end", "SCALE", "f32", (64,), (mul,))
    for fuse, flops, activations, written in (([0], 256, 256, 256), ([], 64, 256, 256)):
        trace = traced(tmp_path, [norm, mul, end], [x, w], fuse)
        work = executed(trace, trace.select())
        assert work.flops[1] == flops
        assert (work.weights[1], work.activations[1], work.written[1]) == (
            256,
            activations,
            written,
        )
        assert work.flops[0] == (0 if fuse else 192)
        assert work.written[0] == (0 if fuse else 256)


def test_executions_add_up(tmp_path: Path) -> None:
    graph = llama_graph(layers=2)
    trace = traced(tmp_path, graph.nodes, graph.leafs)
    total, one = executed(trace, trace.select()), per_execution(trace)
    ran = trace.sums(trace.select()).calls > 0
    assert not np.isnan(total.moved[ran]).any()
    np.testing.assert_array_equal(total.flops[ran], one.flops[ran])
    weights = sum(
        n.strides()[3] for n in graph.leafs if n.name.endswith(".weight") and "embd" not in n.name
    )
    assert total.weights.sum() == weights + 64 // 32 * 34  # and one row of the embedding


def test_rules_name_operators_and_functions_of_the_engine() -> None:
    from builders import GLU_OPS, UNARY_OPS

    assert set(RULES) <= set(OPS)
    assert set(UNARY) <= set(UNARY_OPS)
    assert set(GLU) == set(GLU_OPS)
