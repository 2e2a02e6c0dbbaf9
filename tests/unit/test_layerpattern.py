"""Layers that are alike, and how two graphs differ."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import Graph, Node, TraceBuilder, llama_graph

from profinfer.analysis.dagcompare import compare, results
from profinfer.analysis.layerpattern import (
    Item,
    aligned,
    differences,
    general_name,
    groups,
    layer_places,
    ranges,
)
from profinfer.analysis.opgraph import OpGraph, definitions, op_graph
from profinfer.model.trace import Trace
from profinfer.render.dotcompare import compared_dot
from profinfer.render.dottext import Look


def graph_of(made: Graph, path: Path) -> OpGraph:
    builder = TraceBuilder()
    builder.call_begin(77, 1_000, n_tokens=1, pos_first=5)
    truth = builder.run_graph(made, begin=2_000, compute=lambda node, thread: 100 + node)
    builder.call_end(77, truth.end_ns + 10)
    trace = Trace.open(builder.write(path))
    selection = trace.select()
    return op_graph(trace, int(definitions(trace, selection)["def_id"].iloc[0]), selection)


def named(graph: Graph, name: str, op: str) -> Node:
    (node,) = [n for n in graph.nodes if (n.name, n.op) == (name, op)]
    return node


@pytest.mark.parametrize(
    ("name", "layer", "wanted"),
    [
        ("Qcur-3", 3, "Qcur-N"),
        ("blk.3.attn_q.weight", 3, "blk.N.attn_q.weight"),
        ("cache_k_l3 (view)", 3, "cache_k_lN (view)"),
        ("blk.3.ffn_33.3", 3, "blk.N.ffn_33.N"),
        ("Qcur-4", 3, "Qcur-4"),
        ("k_cache_view-3 (copy of Kcur-3)", 3, "k_cache_view-N (copy of Kcur-N)"),
        ("node_33", 33, ""),
        ("node_3 (reshaped)", 3, ""),
        ("inp_pos", 3, "inp_pos"),
    ],
)
def test_names_without_their_layer(name: str, layer: int, wanted: str) -> None:
    assert general_name(name, layer) == wanted


def test_ranges() -> None:
    assert ranges([0, 1, 2, 5, 7, 8]) == "0-2, 5, 7-8"


def test_equal_layers_are_one_group(tmp_path: Path) -> None:
    graph = graph_of(llama_graph(layers=5), tmp_path / "t.pf")
    (group,) = groups(graph)
    assert group.said == "0-4"
    assert [i.op for i in group.items[:4]] == ["RMS_NORM", "MUL", "MUL_MAT", "ROPE"]
    assert group.items[2].reads == ("-1", "blk.N.attn_q.weight q4_1")
    assert group.items[0].reads == ("input",)
    places = layer_places(graph)
    assert group.places.tolist() == [places[i] for i in range(5)]


def test_a_layer_that_differs_says_how(tmp_path: Path) -> None:
    made = llama_graph(layers=5)
    blk = next(leaf for leaf in made.leafs if leaf.name == "blk.2.ffn_up.weight")
    blk.type = "q8_0"
    out = named(made, "attn_out-4", "MUL_MAT")
    biased = Node("attn_bias-4", "ADD", "f32", out.ne, (out, out))
    made.nodes.insert(made.nodes.index(out) + 1, biased)
    inp = named(made, "ffn_inp-4", "ADD")
    inp.src = (biased, *inp.src[1:])
    graph = graph_of(made, tmp_path / "t.pf")
    found = groups(graph)
    assert [g.said for g in found] == ["0-1, 3", "2", "4"]
    assert differences(found[0].items, found[1].items) == [
        "~ MUL_MAT ffn_up-N: reads blk.N.ffn_up.weight q8_0 instead of blk.N.ffn_up.weight q4_1"
    ]
    assert differences(found[0].items, found[2].items) == ["+ ADD attn_bias-N"]
    assert differences(found[2].items, found[0].items) == ["- ADD attn_bias-N"]


def test_operators_are_known_by_their_weights() -> None:
    old = [Item("MUL_MAT", "attn_out-N", "f32", "8", ("-1", "blk.N.attn_output.weight f16"))]
    new = [Item("MUL_MAT", "", "f32", "8", ("-1", "blk.N.attn_output.weight f16"))]
    (pair,) = aligned(old, new)
    assert (pair.sign, pair.old, pair.new) == ("", old[0], new[0])


def test_a_graph_is_the_same_as_itself(tmp_path: Path) -> None:
    graph = graph_of(llama_graph(layers=2), tmp_path / "a.pf")
    other = graph_of(llama_graph(layers=3), tmp_path / "b.pf")
    assert compare(graph, graph).same
    compared = compare(graph, other)
    assert compared.same  # each layer is
    overview = results(compared, ("a", "b"))[0].frame.set_index("what")
    assert overview.loc["layers", ["old", "new", "differs"]].tolist() == ["2", "3", "*"]


def test_two_graphs_compared(tmp_path: Path) -> None:
    changed = llama_graph(layers=2)
    for layer in range(2):
        q = named(changed, f"Qcur-{layer}", "MUL_MAT")
        bias = Node(f"blk.{layer}.attn_q.bias", "NONE", "f32", q.ne, flags=0, buffer=0x5001)
        added = Node(f"Qcur_bias-{layer}", "ADD", "f32", q.ne, (q, bias))
        changed.nodes.insert(changed.nodes.index(q) + 1, added)
        changed.leafs.append(bias)
        soft = named(changed, f"kq_soft_max-{layer}", "SOFT_MAX")
        changed.nodes.remove(soft)
        out = named(changed, f"attn_out-{layer}", "MUL_MAT")
        out.src = (out.src[0], named(changed, f"kq-{layer}", "MUL_MAT"))
    named(changed, "result_output", "MUL_MAT").ne = (512, 1, 1, 1)
    compared = compare(
        graph_of(llama_graph(layers=2), tmp_path / "a.pf"), graph_of(changed, tmp_path / "b.pf")
    )
    assert not compared.same
    _, changes, counts = results(compared, ("a", "b"))
    rows = changes.frame[["where", "sign", "operator", "about"]].to_numpy().tolist()
    assert rows == [
        ["layers", "+", "ADD Qcur_bias-N", "64 f32"],
        ["layers", "-", "SOFT_MAX kq_soft_max-N", "32x1x4 f32"],
        ["outside", "~", "MUL_MAT result_output", "shape 256 -> 512"],
    ]
    by_op = counts.frame.set_index("op")["more"]
    assert by_op[["ADD", "SOFT_MAX", "MUL_MAT"]].tolist() == [2, -2, 0]
    drawn = compared_dot(compared, Look(title="a to b"))
    assert drawn.count("<B>+ ") == 1 and drawn.count("<B>- ") == 1 and drawn.count("<B>~ ") == 1
