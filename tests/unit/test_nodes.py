from __future__ import annotations

import struct
from pathlib import Path

import pytest
from builders import Graph, Node, TraceBuilder, llama_graph, sample_run

from profinfer.model import tensors
from profinfer.model.trace import Trace


def opened(builder: TraceBuilder, tmp_path: Path) -> Trace:
    return Trace.open(builder.write(tmp_path / "t.pf"))


def test_nodes_are_the_engines(tmp_path: Path) -> None:
    run = sample_run()
    trace = opened(run.builder, tmp_path)
    for graph_id, graph in enumerate(run.definitions):
        mine = trace.nodes[trace.nodes["def_id"] == trace.graphs["def_id"][graph_id]]
        assert len(mine) == len(graph.nodes)
        for row, node in zip(mine.itertuples(), graph.nodes, strict=True):
            assert (row.op, row.name, row.type) == (node.op, node.name, node.type)
            assert (row.ne0, row.ne1, row.ne2, row.ne3) == node.ne
            assert (row.nb0, row.nb1, row.nb2, row.nb3) == node.strides()
            assert row.src0_name == (node.src[0].name if node.src else "")
            assert row.empty == node.empty
            assert row.view == (node.view_src is not None)
            weights = [s.name for s in node.src if s and s.name.endswith(".weight")]
            assert row.weight == (weights[0] if weights else "")


def test_the_growing_cache_makes_new_definitions_and_equal_ones_are_shared(tmp_path: Path) -> None:
    builder = TraceBuilder()
    graph = None
    for number, n_kv in enumerate((32, 32, 64, 32)):
        graph = llama_graph(n_kv=n_kv, reuse=graph)
        builder.run_graph(graph, begin=1_000_000 * (number + 1))
    trace = opened(builder, tmp_path)
    assert trace.graphs["def_id"].tolist() == [0, 0, 1, 0]
    kq = trace.nodes[trace.nodes["name"] == "kq-0"].set_index("def_id")
    assert kq["shape"].to_dict() == {0: "32x1x4", 1: "64x1x4"}
    assert kq["src0_ne"].to_dict() == {0: "16x32x4", 1: "16x64x4"}


def test_edges_and_weights(tmp_path: Path) -> None:
    builder = TraceBuilder()
    graph = llama_graph(layers=1)
    builder.run_graph(graph, begin=1000)
    trace = opened(builder, tmp_path)
    place = {id(n): i for i, n in enumerate(graph.nodes)}
    want = {
        (i, slot, place.get(id(s), -1), s.name, s.name.endswith(".weight"))
        for i, n in enumerate(graph.nodes)
        for slot, s in enumerate(n.src)
        if s
    }
    columns = ["idx", "slot", "src_idx", "src_name", "src_is_weight"]
    assert set(trace.edges[columns].itertuples(index=False, name=None)) == want


@pytest.mark.parametrize(
    ("name", "layer", "role"),
    [
        ("embd", -1, "embedding"),
        ("attn_norm-1", 1, "norm"),
        ("cache_k_l1 (view)", 1, "kv write"),
        ("kq_soft_max-0", 0, "attention"),
        ("attn_out-0", 0, "attention output"),
        ("ffn_up-1", 1, "ffn"),
        ("ffn_inp-0", 0, "residual"),
        ("result_output", -1, "output head"),
    ],
)
def test_layers_and_roles(tmp_path: Path, name: str, layer: int, role: str) -> None:
    builder = TraceBuilder()
    builder.run_graph(llama_graph(), begin=1000)
    nodes = opened(builder, tmp_path).nodes
    row = nodes[(nodes["name"] == name) & ~nodes["empty"]].iloc[0]
    assert (row["layer"], row["role"], row["layer_inferred"]) == (layer, role, False)


def test_unnamed_nodes_ask_their_sources_then_their_neighbour(tmp_path: Path) -> None:
    cache = Node("cache_k_l7", "NONE", ne=(8,), flags=0)
    named = Node("l_out-3", "ADD", ne=(8,))
    reads = Node("node_1", "FLASH_ATTN_EXT", ne=(8,), src=(named, cache))
    mute = Node("node_2", "ADD", ne=(8,))
    free = Node("norm", "RMS_NORM", ne=(8,), src=(named,))
    after = Node("node_4", "ADD", ne=(8,))
    builder = TraceBuilder()
    graph = Graph([named, reads, mute, free, after], [cache])
    builder.run_graph(graph, begin=1000)
    nodes = opened(builder, tmp_path).nodes
    # A name without a number is the engine's word that the node belongs to no layer.
    assert nodes["layer"].tolist() == [3, 3, 3, -1, -1]
    assert nodes["layer_inferred"].tolist() == [False, True, True, False, False]


def test_activations_have_names(tmp_path: Path) -> None:
    nodes = [
        Node("a", "UNARY", ne=(4,), params=struct.pack("<i", 10)),
        Node("b", "GLU", ne=(4,), params=struct.pack("<i", 2)),
        Node("c", "GLU", ne=(4,), params=struct.pack("<i", 99)),
        Node("d", "ADD", ne=(4,), params=struct.pack("<i", 2)),
    ]
    builder = TraceBuilder()
    builder.run_graph(Graph(nodes), begin=1000)
    assert opened(builder, tmp_path).nodes["params"].tolist() == ["SILU", "SWIGLU", "#99", ""]


def test_what_cannot_be_true_is_counted(tmp_path: Path) -> None:
    builder = TraceBuilder()
    good = Node("a", ne=(4,))
    bad = Node("b", ne=(-3, 1, 1, 1), nb=(4, 4, 4, 4))
    builder.run_graph(Graph([good, bad]), begin=1000)
    builder.meta["engine"]["ops"] = builder.meta["engine"]["ops"][:20]  # MUL_MAT is number 29
    trace = opened(builder, tmp_path)
    assert trace.nodes["op"].tolist() == ["op#29", "op#29"]
    assert trace.losses["unknown_ops"] == 2
    assert trace.losses["implausible_nodes"] == 2  # an op beyond the table, a shape below zero


def test_a_tensor_that_was_never_read_is_a_hole_not_a_crash(tmp_path: Path) -> None:
    builder = TraceBuilder()
    a, b = Node("a", ne=(4,)), Node("b", ne=(4,))
    builder.ptrs(77, 900, cgraph=0x60, gen=900, ptr=[a.addr, b.addr])
    builder.tensor(77, 900, gen=900, node=a)
    builder.graph_begin(77, 1000, cgraph=0x60, gen=900, n_nodes=2, n_threads=1, flags=3)
    builder.ops(77, [(1010, 4, 0), (1100, 1, 1), (1200, 5, 0)], cgraph=0x60)
    builder.graph_end(77, 1300)
    trace = opened(builder, tmp_path)
    assert trace.nodes["op"].tolist() == ["MUL_MAT", "?"]
    assert trace.losses["unread_nodes"] == 1
    assert not trace.graphs["complete"].any()


def test_pointer_pieces_that_are_not_sent_again_stay(tmp_path: Path) -> None:
    nodes = [Node(f"n{i}", ne=(4,)) for i in range(130)]
    builder = TraceBuilder()
    builder.run_graph(Graph(nodes), begin=1000)
    changed = [*nodes[:70], Node("new", ne=(5,)), *nodes[71:]]
    builder.run_graph(Graph(changed), begin=1_000_000)
    trace = opened(builder, tmp_path)
    second = trace.nodes[trace.nodes["def_id"] == 1]
    assert second["name"].tolist() == [n.name for n in changed]


def test_names_are_printable() -> None:
    assert tensors.text(b"Qcur-0\0garbage") == "Qcur-0"
    assert tensors.text(b"\x1b[31m\xff") == "\\x1b[31m\\\\xff"
    assert tensors.shape_text((576, 1, 1, 1)) == "576"
    assert tensors.shape_text((1, 1, 2, 1)) == "1x1x2"


def test_rows_picked_from_the_layer_before_belong_to_their_reader(tmp_path: Path) -> None:
    ids = Node("out_ids", "NONE", "i32", (1,), flags=1)
    x = Node("inp", "NONE", "f32", (64, 4), flags=1)
    below = Node("l_out-28", "ADD", "f32", (64, 4), (x, x))
    attention = Node("attn_out-29", "SCALE", "f32", (64, 4), (below,))
    both = [Node(f"node_{i}", "GET_ROWS", "f32", (64, 1), (of, ids))
            for i, of in ((3, attention), (4, below))]  # fmt: skip
    unread = Node("node_5", "GET_ROWS", "f32", (64, 1), (below, ids))
    other = Node("node_6", "SCALE", "f32", (64, 4), (below,))
    added = Node("ffn_inp-29", "ADD", "f32", (64, 1), tuple(both))
    builder = TraceBuilder()
    nodes = [below, attention, *both, unread, other, added]
    builder.run_graph(Graph(nodes, [ids, x], 0x6000), begin=1000)
    table = opened(builder, tmp_path).nodes.set_index("name")
    assert table["layer"].to_dict() == {
        "l_out-28": 28, "attn_out-29": 29, "node_3": 29, "node_4": 29, "node_5": 28, "node_6": 28,
        "ffn_inp-29": 29,
    }  # fmt: skip
    assert table["layer_inferred"].tolist() == [False, False, True, True, True, True, False]
