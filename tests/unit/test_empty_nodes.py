"""Engines of 2025 and before pass empty nodes (views) and a barrier after each: no operators."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from builders import Graph, Node, SampleRun, TraceBuilder, llama_graph, sample_run
from perfetto_check import check

from profinfer.analysis import operators, overview, threads
from profinfer.analysis.overhead import estimated_share
from profinfer.model.selfcheck import checks, explained
from profinfer.model.trace import Trace
from profinfer.render.perfetto import write
from profinfer.render.timeline import Timeline

IDLE = {"NONE", "VIEW", "RESHAPE", "PERMUTE", "TRANSPOSE"}
HIT_NS = 200


def uneven(node: int, thread: int) -> int:
    return 500 + 40 * node + 210 * (thread * (node % 3))


def played(**changes: object) -> SampleRun:
    ops = {"mode": "site", "bias": 1, "barrier_always": False, "hit_ns": HIT_NS}
    changes.setdefault("plan", {"level": "op", "ops": ops})
    return sample_run(compute=uneven, empties=True, **changes)  # type: ignore[arg-type]


@pytest.fixture
def run() -> SampleRun:
    return played()


@pytest.fixture
def trace(run: SampleRun, tmp_path: Path) -> Trace:
    return Trace.open(run.builder.write(tmp_path / "t.pf"))


def rows_of(trace: Trace, table: pd.DataFrame) -> set[tuple[int, ...]]:
    idx = trace.nodes["idx"].to_numpy()[table["node_id"]]
    columns = [table[c] for c in ("graph_id", "fused", "tid", "begin_ns", "end_ns", "release_ns")]
    columns.insert(1, pd.Series(idx, dtype=np.int64))
    return set(zip(*(np.asarray(c).tolist() for c in columns), strict=True))


def wall(table: pd.DataFrame) -> int:
    return int((table["release_ns"] - table["begin_ns"]).sum())


@pytest.mark.parametrize("mode", ["site", "pair"])
@pytest.mark.parametrize("always", [False, True])
@pytest.mark.parametrize("fuse", [False, True])
@pytest.mark.parametrize("tids", [(77,), (77, 78, 79)])
def test_they_are_told_apart_and_the_next_operator_begins_at_their_release(
    tmp_path: Path, mode: str, always: bool, fuse: bool, tids: tuple[int, ...]
) -> None:
    ops = {"mode": mode, "bias": 1, "barrier_always": always}
    run = played(plan={"ops": ops}, tids=tids, fuse_norms=fuse)
    trace = Trace.open(run.builder.write(tmp_path / "t.pf"))
    mine, theirs = rows_of(trace, trace.ops), rows_of(trace, trace.empty_ops)
    assert mine == {(i, *op) for i, graph in enumerate(run.graphs) for op in graph.ops}
    assert theirs == {(i, *op) for i, graph in enumerate(run.graphs) for op in graph.empties}
    assert len(theirs) == len(run.graphs) * 4 * len(tids)
    assert len(trace.empty_walls) == len(run.graphs) * 4
    assert trace.graphs["complete"].all() and trace.empty_ops["complete"].all()
    assert {k for k, n in trace.losses.items() if n} == set()
    assert [c.text for c in checks(trace) if not c.ok] == []


@pytest.mark.parametrize("always", [False, True])
def test_at_both_ends_of_a_graph(tmp_path: Path, always: bool) -> None:
    a, b = Node("a", ne=(4,)), Node("b", ne=(4,))
    first, last = (Node(f"{n} (view)", "VIEW", ne=(4,), src=(a,), view_src=a) for n in "xy")
    builder = TraceBuilder(plan={"ops": {"mode": "site", "bias": 1, "barrier_always": always}})
    truth = builder.run_graph(Graph([first, a, b, last]), begin=1000, compute=uneven, empties=True)
    trace = Trace.open(builder.write(tmp_path / "t.pf"))
    assert rows_of(trace, trace.ops) == {(0, *op) for op in truth.ops}
    assert rows_of(trace, trace.empty_ops) == {(0, *op) for op in truth.empties}
    assert len(truth.empties) == 2 + 2 * always  # the last node may have no barrier of its own
    assert [c.name for c in checks(trace) if not c.ok and c.name != "explained"] == []


def test_one_of_two_definitions_can_be_without(tmp_path: Path) -> None:
    builder = TraceBuilder()
    a = Node("a", ne=(4,))
    view = Node("v", "VIEW", ne=(4,), src=(a,), view_src=a)
    graphs = [Graph([a, view, Node("b", ne=(4,))]), Graph([Node("c", ne=(4,)), Node("d", ne=(4,))])]
    graphs[1].cgraph = 0x7000_0000
    truths = [
        builder.run_graph(graphs[i % 2], begin=100_000 * (i + 1), compute=uneven, empties=True)
        for i in range(4)
    ]
    trace = Trace.open(builder.write(tmp_path / "t.pf"))
    assert rows_of(trace, trace.ops) == {(i, *op) for i, g in enumerate(truths) for op in g.ops}
    assert trace.empty_ops["graph_id"].tolist() == [0, 0, 2, 2]


def test_a_computed_node_without_the_flag_is_an_operator(tmp_path: Path) -> None:
    """Only an operator that does nothing is empty; an older engine knows no such flag."""
    builder = TraceBuilder()
    a, b, c = Node("a", ne=(4,)), Node("b", ne=(4,), flags=0), Node("c", ne=(4,))
    gen, _ = builder.define(Graph([a, b, c]), 77, 900)
    builder.graph_begin(77, 1000, cgraph=0x6000_0000, gen=gen, n_nodes=3, n_threads=1, flags=1)
    events = [(1010, 4, 0), (1100, 1, 1), (1110, 1, 2), (1301, 5, 0)]
    builder.ops(77, events, cgraph=0x6000_0000)
    builder.graph_end(77, 1400)
    trace = Trace.open(builder.write(tmp_path / "t.pf"))
    assert trace.nodes["empty"].tolist() == [False, True, False]
    assert trace.ops["fused"].tolist() == [1, 1, 1] and not len(trace.empty_ops)


def test_a_lost_batch_makes_no_operator_of_them(tmp_path: Path) -> None:
    builder = TraceBuilder()
    graph = llama_graph(layers=40)
    for begin, lose in ((100_000_000, None), (200_000_000, 0), (300_000_000, 1)):
        builder.run_graph(graph, begin=begin, compute=uneven, lose_batch=lose, empties=True)
    trace = Trace.open(builder.write(tmp_path / "t.pf"))
    assert trace.graphs["complete"].tolist() == [True, False, False]
    op = trace.nodes["op"].astype(str).to_numpy()
    assert not set(op[trace.ops["node_id"]]) & IDLE
    assert set(op[trace.empty_ops["node_id"]]) == {"RESHAPE", "VIEW"}
    assert (trace.ops["fused"] > 0).all() and (trace.empty_ops["fused"] == 0).all()
    whole = trace.empty_ops[trace.empty_ops["graph_id"] == 0]
    assert len(whole) == 2 * 80


def test_views_name_operators_only_and_the_ledger_has_their_time(trace: Trace) -> None:
    decode = trace.select(phase="decode")
    for key in ("op", "role", "layer"):
        frame = operators.by(trace, decode, key)
        assert frame.total["wall_ns"] == wall(decode.rows(trace.op_walls))
        assert frame.total["calls"] == len(decode.rows(trace.op_walls))
    assert not set(operators.by(trace, decode, "op").frame["op"].astype(str)) & IDLE
    assert not set(operators.by_node(trace, decode).frame["op"]) & IDLE
    result = overview.ledger(trace, decode)
    assert result.frame["time_ns"].sum() == result.total["time_ns"]
    assert (result.frame["time_ns"] >= 0).all()
    row = result.frame.set_index("part").loc["empty"]
    assert row["time_ns"] == wall(decode.rows(trace.empty_walls)) > 0
    assert row["label"] == "graphs: barriers after empty nodes (views)"


def test_an_engine_without_them_has_no_row(tmp_path: Path) -> None:
    trace = Trace.open(sample_run().builder.write(tmp_path / "t.pf"))
    decode = trace.select(phase="decode")
    assert "empty" not in set(overview.ledger(trace, decode).frame["part"])
    assert "empty_ns" not in threads.threads(trace, decode).frame
    assert not len(trace.empty_ops) and not len(trace.empty_walls)


def test_threads_have_them_apart_from_the_gap(run: SampleRun, trace: Trace) -> None:
    result = threads.threads(trace, trace.select(phase="decode"))
    frame = result.frame.set_index("tid")
    for tid in (77, 78):
        here = [op for g in run.graphs[2:] for op in g.empties if op.tid == tid]
        spent = sum(op.release_ns - op.begin_ns for op in here)
        assert frame.loc[tid, "empty_ns"] == spent > 0
        ops = [op for g in run.graphs[2:] for op in g.ops if op.tid == tid]
        assert frame.loc[tid, "ops"] == len(ops)
        in_graphs = sum(g.end_ns - g.begin_ns for g in run.graphs[2:])
        in_ops = sum(op.release_ns - op.begin_ns for op in ops)
        assert frame.loc[tid, "gap_ns"] == in_graphs - in_ops - spent
    assert result.total["empty_ns"] == frame["empty_ns"].sum()
    narrow = threads.threads(trace, trace.select(phase="decode", op="MUL_MAT"))
    assert "empty_ns" not in narrow.frame


def test_the_self_check_counts_their_time(trace: Trace) -> None:
    assert all(c.ok for c in checks(trace))
    said = {c.name: c.text for c in checks(trace)}
    assert said["explained"].startswith("operators and barriers after empty nodes explain 9")
    share = explained(trace)
    whole = wall(trace.op_walls) + wall(trace.empty_walls)
    graphs = int((trace.graphs["end_ns"] - trace.graphs["begin_ns"]).sum())
    assert share == pytest.approx(whole / graphs)


def test_their_probe_hits_cost_too(trace: Trace) -> None:
    hits = (len(trace.ops) + len(trace.empty_ops)) / 2 + 4 * len(trace.graphs)
    hits += 2 * (len(trace.splits) + len(trace.calls) + len(trace.samples))
    total = (trace.calls["end_ns"] - trace.calls["begin_ns"]).sum()
    spent = hits * HIT_NS + trace.graphs["walk_ns"].sum()
    assert estimated_share(trace) == pytest.approx(spent / total)


@pytest.mark.parametrize("block_ops", [10, 1 << 15])
def test_the_timeline_shows_them_as_what_they_are(trace: Trace, block_ops: int) -> None:
    out = io.BytesIO()
    written = write(Timeline.of_trace(trace), out, block_ops=block_ops)
    report = check(out.getvalue())
    assert report.problems == []
    assert written.adjusted == written.orphans == 0
    assert sum("op" in s.args for s in report.slices) == len(trace.ops)
    empty = [s for s in report.slices if s.category == "empty node"]
    assert {(s.name, "op" in s.args) for s in empty} == {("barrier after an empty node", False)}
    mine = trace.empty_ops
    assert sorted((s.begin, s.dur) for s in empty) == sorted(
        zip(mine["begin_ns"], mine["release_ns"] - mine["begin_ns"], strict=True)
    )
    waits = sum(s.category == "wait" for s in report.slices)
    assert waits == (trace.ops["release_ns"] > trace.ops["end_ns"]).sum()
    # At a moment in a barrier after an empty node no thread computes.
    (uuid,) = [u for u, d in report.tracks.items() if d.name == "active threads"]
    steps = sorted(report.counters[uuid])
    at = np.searchsorted([ts for ts, _ in steps], trace.empty_walls["begin_ns"], side="right") - 1
    assert {steps[i][1] for i in at.tolist()} == {0}


def test_a_selection_of_the_timeline_takes_theirs_along(trace: Trace) -> None:
    decode = trace.select(phase="decode")
    ops = Timeline.of_trace(trace, decode).ops
    assert (ops["fused"] == 0).sum() == len(decode.rows(trace.empty_ops)) > 0
    assert (ops["fused"] > 0).sum() == len(decode.rows(trace.ops))
