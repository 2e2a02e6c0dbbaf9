"""Operators against the truth that the builder played: who, when, how long, what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from builders import Graph, GraphTruth, Node, SampleRun, TraceBuilder, llama_graph, sample_run

from profinfer.model.selfcheck import checks, explained
from profinfer.model.trace import Trace


def opened(builder: TraceBuilder, tmp_path: Path) -> Trace:
    return Trace.open(builder.write(tmp_path / "t.pf"))


def ops_of(trace: Trace) -> set[tuple[int, ...]]:
    """(graph, node index, fused, tid, begin, end, release) of every row."""
    ops = trace.ops
    assert not ops.duplicated(["graph_id", "node_id", "tid"]).any()
    idx = trace.nodes["idx"].to_numpy()[ops["node_id"]]
    columns = [ops["graph_id"], idx, ops["fused"], ops["tid"], ops["begin_ns"], ops["end_ns"]]
    return set(zip(*(np.asarray(c).tolist() for c in (*columns, ops["release_ns"])), strict=True))


def truth_of(graphs: Sequence[GraphTruth]) -> set[tuple[int, ...]]:
    return {(i, *op) for i, graph in enumerate(graphs) for op in graph.ops}


def uneven(node: int, thread: int) -> int:
    return 500 + 37 * node + 211 * (thread * (node % 3))


def played(**changes: object) -> SampleRun:
    return sample_run(compute=uneven, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["site", "pair"])
@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize("tids", [(77,), (77, 78), (77, 78, 79, 80)])
def test_every_operator_is_exactly_what_happened(
    tmp_path: Path, mode: str, always: bool, tids: tuple[int, ...]
) -> None:
    run = played(plan={"ops": {"mode": mode, "barrier_always": always}}, tids=tids)
    trace = opened(run.builder, tmp_path)
    assert ops_of(trace) == truth_of(run.graphs)
    assert trace.graphs["complete"].all()
    assert trace.ops["complete"].all()
    assert {k for k, n in trace.losses.items() if n} == set()


def test_fused_operators_stand_at_the_last_node(tmp_path: Path) -> None:
    run = played(fuse_norms=True)
    trace = opened(run.builder, tmp_path)
    assert ops_of(trace) == truth_of(run.graphs)
    fused = trace.ops[trace.ops["fused"] == 2]
    assert set(trace.nodes["op"].to_numpy()[fused["node_id"]]) == {"MUL"}
    assert trace.graphs["complete"].all()


def test_bias_is_taken_from_the_metadata(tmp_path: Path) -> None:
    run = played(plan={"ops": {"bias": 0}})
    assert ops_of(opened(run.builder, tmp_path)) == truth_of(run.graphs)


def test_walls_and_gaps_are_the_graphs_time(tmp_path: Path) -> None:
    run = played()
    trace = opened(run.builder, tmp_path)
    walls, graphs = trace.op_walls, trace.graphs
    total = (walls["release_ns"] - walls["begin_ns"]).groupby(walls["graph_id"]).sum()
    gaps = (graphs["enter_ns"] - graphs["begin_ns"]) + (graphs["end_ns"] - graphs["release_ns"])
    assert (total + gaps == graphs["end_ns"] - graphs["begin_ns"]).all()
    one = trace.ops[trace.ops["graph_id"] == 1]
    compute = (one["end_ns"] - one["begin_ns"]).groupby(one["node_id"])
    mine = walls[walls["graph_id"] == 1].set_index("node_id")
    assert (compute.sum() == mine["compute_sum"]).all()
    assert (compute.max() == mine["compute_max"]).all()
    assert ((one["release_ns"] - one["end_ns"]).groupby(one["node_id"]).sum()
            == mine["wait_sum"]).all()  # fmt: skip
    assert explained(trace) == pytest.approx(1, abs=0.01)
    assert all(check.ok for check in checks(trace))


def test_the_waiting_thread_is_the_right_one(tmp_path: Path) -> None:
    run = sample_run(compute=lambda node, thread: 1000 if thread else 4000)
    threads = opened(run.builder, tmp_path).threads.set_index("tid")
    # The slow thread waits for nobody.
    assert threads.loc[77, "wait_ns"] == 0
    assert threads.loc[78, "wait_ns"] > threads.loc[78, "compute_ns"] * 2


def test_trailing_empty_nodes_leave_the_last_operator_its_own_end(tmp_path: Path) -> None:
    a = Node("a", ne=(4,))
    b = Node("b", ne=(4,), src=(a,))
    view = Node("b (view)", "VIEW", ne=(4,), src=(b,), view_src=b)
    for nodes in ([a, b], [a, b, view], [a]):
        builder = TraceBuilder()
        truth = builder.run_graph(Graph(nodes), begin=1000, compute=uneven)
        trace = opened(builder, tmp_path)
        assert ops_of(trace) == truth_of([truth])
        assert trace.graphs["complete"].all()


def test_a_lost_batch_tears_only_what_it_took(tmp_path: Path) -> None:
    builder = TraceBuilder()
    graph = llama_graph(layers=40)  # more operators than a batch holds
    truths = [
        builder.run_graph(graph, begin=begin, compute=uneven, lose_batch=lose)
        for begin, lose in ((100_000_000, None), (200_000_000, 0), (300_000_000, None))
    ]
    trace = opened(builder, tmp_path)
    assert trace.losses["missing_batches"] == 1
    assert trace.graphs["complete"].tolist() == [True, False, True]
    whole = {row for row in ops_of(trace) if row[0] != 1}
    assert whole == {row for row in truth_of(truths) if row[0] != 1}
    torn = trace.ops[trace.ops["graph_id"] == 1]
    assert not torn["complete"].all()
    # What both threads recorded after the gap is true again, and says so.
    sure = {
        row
        for row, good in zip(
            zip(torn["node_id"], torn["tid"], torn["begin_ns"], torn["end_ns"], strict=True),
            torn["complete"],
            strict=True,
        )
        if good
    }
    base = trace.nodes.set_index("idx")["node_id"]
    true = {(base[o.node], o.tid, o.begin_ns, o.end_ns) for o in truths[1].ops}
    assert sure and sure <= true
    bad = [c.name for c in checks(trace) if not c.ok]
    assert "nodes" in bad


def test_a_thread_missing_altogether_is_seen_only_with_a_loss(tmp_path: Path) -> None:
    # OpenMP gives fewer threads than asked: nothing is wrong.
    builder = TraceBuilder()
    graph = llama_graph(layers=1)
    builder.run_graph(graph, begin=1000, tids=(77,))
    trace = opened(builder, tmp_path)
    trace._spans.graphs["n_threads"] = 2
    assert trace.graphs["complete"].all()
    # The kernel lost every batch of thread 78.
    builder = TraceBuilder()
    builder.run_graph(graph, begin=1000, lose_batch=0)
    builder.counters[65] = 100
    trace = opened(builder, tmp_path)
    assert trace.graphs["threads_seen"].tolist() == [1]
    assert not trace.graphs["complete"].any()


def test_overlapping_graphs_of_two_contexts_are_told_apart(tmp_path: Path) -> None:
    builder = TraceBuilder()
    one, two = llama_graph(layers=1), llama_graph(layers=2)
    two.cgraph = 0x7000_0000
    a = builder.run_graph(one, begin=10_000, tids=(1, 2), compute=900)
    b = builder.run_graph(two, begin=10_500, tids=(3, 4), compute=700)
    trace = opened(builder, tmp_path)
    assert ops_of(trace) == truth_of([a, b])
    assert trace.graphs["complete"].all()


def test_a_graph_cut_off_by_the_end_is_not_complete(tmp_path: Path) -> None:
    builder = TraceBuilder()
    graph = llama_graph(layers=1)
    builder.run_graph(graph, begin=1000)
    gen, _ = builder.define(graph, 77, 90_000)
    builder.graph_begin(77, 90_000, cgraph=graph.cgraph, gen=gen, n_nodes=len(graph.nodes))
    builder.ops(77, [(90_010, 4, 0), (90_500, 1, 1)], cgraph=graph.cgraph, last=False)
    trace = opened(builder, tmp_path)
    assert trace.graphs["complete"].tolist() == [True, False]
    assert trace.losses["cut_graphs"] == 1


def test_records_that_fit_no_graph_are_counted(tmp_path: Path) -> None:
    builder = TraceBuilder()
    builder.run_graph(llama_graph(layers=1), begin=1000)
    builder.ops(77, [(500_000, 4, 0), (500_100, 1, 1), (500_200, 5, 0)], cgraph=0x123)
    builder.ops(77, [(600_000, 4, 0), (600_100, 1, 1), (600_200, 5, 0)], cgraph=0x6000_0000)
    trace = opened(builder, tmp_path)
    assert trace.losses["orphan_ops"] == 2


def test_no_records_no_rows(tmp_path: Path) -> None:
    trace = opened(TraceBuilder(), tmp_path)
    assert all(not len(table) for table in trace.tables.values())
