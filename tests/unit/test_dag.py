"""Graphs of operators: order through memory, views looked through, levels, the longest path."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from builders import Graph, Node, TraceBuilder, sample_run
from hypothesis import given
from hypothesis import strategies as st

from profinfer.analysis.dag import Dag
from profinfer.analysis.opgraph import definitions, op_graph
from profinfer.model.dependencies import Dependencies
from profinfer.model.trace import Trace


def made(n: int, edges: set[tuple[int, int]]) -> Dag:
    pairs = np.array(sorted(edges), np.int32).reshape(-1, 2)
    return Dag(n, pairs[:, 0], pairs[:, 1])


@st.composite
def forward(draw: st.DrawFn) -> tuple[int, set[tuple[int, int]]]:
    """An acyclic graph; its nodes are in no particular order."""
    n = draw(st.integers(1, 8))
    pairs = list(itertools.combinations(range(n), 2))
    chosen = draw(st.sets(st.sampled_from(pairs))) if pairs else set()
    order = draw(st.permutations(range(n)))
    return n, {(order[a], order[b]) for a, b in chosen}


def every_path(n: int, edges: set[tuple[int, int]]) -> list[list[int]]:
    out = [[i] for i in range(n)]
    for path in out:
        out += [[*path, b] for a, b in edges if a == path[-1]]
    return out


@given(graph=forward(), seed=st.integers(0, 1000))
def test_longest_path_against_every_path(
    graph: tuple[int, set[tuple[int, int]]], seed: int
) -> None:
    n, edges = graph
    dag = made(n, edges)
    assert dag.acyclic
    weight = np.random.default_rng(seed).integers(0, 20, n).astype(np.float64)
    paths = every_path(n, edges)
    found = dag.paths(weight)
    longest = max(sum(weight[p]) for p in paths)
    assert found.length == longest
    assert found.nodes in paths
    assert sum(weight[found.nodes]) == longest
    for i in range(n):
        through = max(sum(weight[p]) for p in paths if i in p)
        assert found.slack[i] == longest - through
    level = dag.levels()
    assert level.tolist() == [max(len(p) for p in paths if p[-1] == i) - 1 for i in range(n)]


@given(graph=forward(), data=st.data())
def test_any_edge_back_is_a_cycle(
    graph: tuple[int, set[tuple[int, int]]], data: st.DataObject
) -> None:
    n, edges = graph
    path = data.draw(st.sampled_from(every_path(n, edges)))
    dag = made(n, edges | {(path[-1], path[0])})
    assert not dag.acyclic
    dag.paths(np.ones(n))  # ends


@given(graph=forward(), data=st.data())
def test_looking_through_against_every_path(
    graph: tuple[int, set[tuple[int, int]]], data: st.DataObject
) -> None:
    n, edges = graph
    order = {node: place for place, node in enumerate(made(n, edges).order)}
    edges = {(order[a], order[b]) for a, b in edges}  # as a graph runs: forward
    kept = np.array(data.draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    memory = {edge: data.draw(st.booleans()) for edge in sorted(edges)}
    rows = sorted((b, a) for a, b in edges)
    every = Dependencies(
        np.array([a for _, a in rows], np.int32),
        np.array([b for b, _ in rows], np.int32),
        np.array([memory[a, b] for b, a in rows], bool),
    )
    found = every.through(kept)
    wanted: dict[tuple[int, int], bool] = {}
    for path in every_path(n, edges):
        ends = kept[path[0]] and kept[path[-1]] and len(path) > 1
        if ends and not kept[path[1:-1]].any():
            by_memory = any(memory[step] for step in itertools.pairwise(path))
            key = (path[0], path[-1])
            wanted[key] = wanted.get(key, True) and by_memory
    assert dict(zip(zip(found.src, found.dst, strict=True), found.memory, strict=True)) == wanted


def trace_of(graph: Graph, path: Path) -> Trace:
    builder = TraceBuilder()
    builder.call_begin(77, 1_000, n_tokens=1, pos_first=0)
    truth = builder.run_graph(graph, begin=2_000)
    builder.call_end(77, truth.end_ns + 10)
    return Trace.open(builder.write(path))


def memory_edges(trace: Trace) -> set[tuple[int, int]]:
    found = trace.dependencies(0)
    return set(zip(found.src[found.memory].tolist(), found.dst[found.memory].tolist(), strict=True))


def test_a_cache_is_written_before_it_is_read(tmp_path: Path) -> None:
    cache = Node("cache_k_l0", "NONE", "f16", (64, 100), flags=0, data=0x100000)
    x = Node("x", "NONE", "f32", (64,), flags=0)
    make = Node("k", "MUL", "f32", (64,), (x, x))
    at = Node("view", "VIEW", "f16", (64, 1), (cache,), view_src=cache, data=0x100000 + 128 * 7)
    write = Node("copy", "CPY", "f16", (64, 1), (make, at), view_src=cache, data=at.data)
    # Reads the row that is written, and one of which nothing is.
    near = Node("near", "VIEW", "f16", (64, 8), (cache,), view_src=cache, data=0x100000)
    far = Node("far", "VIEW", "f16", (64, 8), (cache,), view_src=cache, data=0x100000 + 128 * 8)
    sees = Node("sees", "MUL_MAT", "f32", (8,), (near, x))
    blind = Node("blind", "MUL_MAT", "f32", (8,), (far, x))
    early = Node("early", "MUL_MAT", "f32", (8,), (near, x))
    nodes = [near, early, make, at, write, far, sees, blind]
    trace = trace_of(Graph(nodes, [cache, x]), tmp_path / "t.pf")
    # Read after write, and write after read.
    assert memory_edges(trace) == {(4, 6), (1, 4)}
    assert trace.producers(0) == {4: (1, 2), 6: (4,)}


def test_bytes_that_are_not_known_may_be_any(tmp_path: Path) -> None:
    cache = Node("cache_k_l0", "NONE", "f16", (64, 100), flags=0, data=0)
    x = Node("x", "NONE", "f32", (64,), flags=0)
    write = Node("w", "SET_ROWS", "f16", (64, 100), (x, None, cache), view_src=cache, data=0)
    view = Node("v", "VIEW", "f16", (64, 1), (cache,), view_src=cache, data=0)
    read = Node("r", "MUL_MAT", "f32", (1,), (view, x))
    assert memory_edges(trace_of(Graph([write, view, read], [cache, x]), tmp_path / "t.pf")) == {
        (0, 2)
    }


def test_what_is_overwritten_is_not_waited_for(tmp_path: Path) -> None:
    cache = Node("cache_k_l0", "NONE", "f16", (64, 10), flags=0, data=0x100000)
    x = Node("x", "NONE", "f32", (64,), flags=0)

    def write(name: str, rows: int) -> Node:
        return Node(name, "SET_ROWS", "f16", (64, rows), (x,), view_src=cache, data=0x100000)

    view = Node("v", "VIEW", "f16", (64, 4), (cache,), view_src=cache, data=0x100000)
    first, second, part = write("first", 10), write("second", 10), write("part", 2)
    read = Node("r", "MUL_MAT", "f32", (4,), (view, x))
    trace = trace_of(Graph([first, second, part, view, read], [cache, x]), tmp_path / "t.pf")
    # The reader needs the part, and of what lies around it the second writing only.
    assert memory_edges(trace) == {(0, 1), (1, 2), (2, 4), (1, 4)}


def test_work_in_place_comes_after_what_reads_the_old(tmp_path: Path) -> None:
    x = Node("x", "NONE", "f32", (64,), flags=0)
    first = Node("first", "MUL", "f32", (64,), (x, x), data=0x10000)
    reads = Node("reads", "RMS_NORM", "f32", (64,), (first,), data=0x20000)
    place = Node("place", "SCALE", "f32", (64,), (first,), view_src=first, data=0x10000)
    later = Node("later", "ADD", "f32", (64,), (first, reads), data=0x30000)
    trace = trace_of(Graph([first, reads, place, later], [x]), tmp_path / "t.pf")
    # reads -> place: or it would see the new values; place -> later: it has to.
    assert memory_edges(trace) == {(1, 2), (2, 3)}


def test_memory_that_the_allocator_uses_again_orders_nothing(tmp_path: Path) -> None:
    x = Node("x", "NONE", "f32", (64,), flags=0)
    a = Node("a", "MUL", "f32", (64,), (x, x), data=0x10000)
    b = Node("b", "RMS_NORM", "f32", (64,), (a,), data=0x20000)
    c = Node("c", "MUL", "f32", (64,), (x, x), data=0x10000)
    assert memory_edges(trace_of(Graph([a, b, c], [x]), tmp_path / "t.pf")) == set()


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    run = sample_run(decode_tokens=4, layers=3, fuse_norms=True)
    return Trace.open(run.builder.write(tmp_path_factory.mktemp("dag") / "t.pf"))


def test_a_graph_has_the_times_of_its_executions(trace: Trace) -> None:
    selection = trace.select(phase="decode")
    found = definitions(trace, selection)
    assert found["graphs"].sum() == 4
    chosen = int(found["def_id"].iloc[0])
    graph = op_graph(trace, chosen, selection)
    nodes = trace.nodes[trace.nodes["def_id"] == chosen]
    assert len(graph) == len(nodes)
    assert graph.whole.acyclic and graph.dag.acyclic
    assert graph.works.tolist() == (~nodes["empty"]).tolist()
    walls = trace.op_walls
    mine = trace.graphs["graph_id"][trace.graphs["def_id"] == chosen]
    walls = walls[walls["graph_id"].isin(mine)]
    length = (walls["release_ns"] - walls["begin_ns"]).groupby(walls["node_id"]).mean()
    for place, node_id in enumerate(nodes["node_id"]):
        assert graph.nodes["wall_ns"][place] == pytest.approx(length.get(node_id, 0.0))
    # A norm runs inside the product after it, and has no time of its own.
    norms = np.flatnonzero(graph.nodes["op"] == "RMS_NORM")
    assert graph.nodes["into"][norms].tolist() == (norms + 1).tolist()
    assert graph.executions == int((trace.graphs["def_id"] == chosen).sum())
    assert graph.paths.length <= graph.total_ns
    assert graph.critical[graph.paths.nodes[-1]]


def test_what_a_node_reads_is_told_apart(trace: Trace) -> None:
    selection = trace.select(phase="decode")
    graph = op_graph(trace, int(definitions(trace, selection)["def_id"].iloc[0]), selection)
    kinds = dict(zip(graph.sources["src_name"], graph.sources["kind"], strict=True))
    assert kinds["blk.1.attn_q.weight"] == "weight"
    assert kinds["cache_k_l2"] == "cache"
    assert kinds["inp_pos"] == "input"
    assert kinds["l_out-0"] == "node"
    level = graph.level
    name, op = graph.nodes["name"].astype(str), graph.nodes["op"].astype(str)
    (q,) = np.flatnonzero((name == "Qcur-0") & (op == "MUL_MAT"))
    (k,) = np.flatnonzero((name == "Kcur-0") & (op == "MUL_MAT"))
    assert level[q] == level[k]
    # The cache is read after it was written, though neither is a source of the other.
    (write,) = np.flatnonzero((name == "cache_k_l0 (view)") & (op == "SET_ROWS"))
    (kq,) = np.flatnonzero(name == "kq-0")
    assert write in graph.dag.before[kq]
    assert level[write] < level[kq]
