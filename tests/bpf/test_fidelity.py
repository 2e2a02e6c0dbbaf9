"""A target with known durations: every operator is seen, once, where and as long as it was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from truth import Truth, matched_ops, read_truth

from profinfer.model.selfcheck import checks
from profinfer.model.trace import Trace
from profinfer.tracefile.reader import TraceReader
from profinfer.tracefile.schema import OPS_COMPACT

pytestmark = pytest.mark.bpf

BUILDS = {
    "shared": {},
    "static": {"static": True},
    "old-loop": {"defs": "-DFAKE_OLD_LOOP"},
    "empties": {"defs": "-DFAKE_EMPTIES"},
    "old-loop-empties": {"defs": "-DFAKE_OLD_LOOP -DFAKE_EMPTIES"},
    "shifted-ops": {"defs": "-DFAKE_SHIFT_OPS"},
    "endbr64": {"cflags": "-fcf-protection=full"},
}
RUNS = {
    "plain": [],
    "one-thread": ["--threads", "1"],
    "three-threads": ["--threads", "3"],
    "no-uid": ["--no-uid"],
    "splits": ["--splits", "2"],
    "empty-tail": ["--tail"],
    "vary": ["--vary", "--generations", "2"],
    "two-contexts": ["--contexts", "2"],
    # Graphs that take longer than a batch of operator records can: 0.13 s.
    "slow": ["--layers", "1", "--tokens", "3", "--base-us", "12000"],
    "big": ["--layers", "40", "--tokens", "4", "--base-us", "5"],
}
CASES = [(b, "plain") for b in BUILDS] + [("shared", r) for r in RUNS if r != "plain"]
CASES += [("empties", "empty-tail"), ("old-loop-empties", "empty-tail")]


@pytest.fixture(scope="module")
def recorded(
    tmp_path_factory: pytest.TempPathFactory, build_fake_ggml: Callable[..., Path], run_profinfer
) -> Callable[[str, str], tuple[Trace, Truth]]:
    done: dict[tuple[str, str], tuple[Trace, Truth]] = {}

    def run(build: str, how: str) -> tuple[Trace, Truth]:
        if (build, how) not in done:
            folder = tmp_path_factory.mktemp("fake")
            program = build_fake_ggml(**BUILDS[build])
            command = [program, *RUNS[how], "--out", folder / "truth.json"]
            result = run_profinfer("record", "-o", folder / "t.pf", "--", *command)
            assert result.returncode == 0, result.stderr
            done[build, how] = Trace.open(folder / "t.pf"), read_truth(folder / "truth.json")
        return done[build, how]

    return run


@pytest.mark.parametrize(("build", "how"), CASES)
def test_each_operator_once(recorded, build: str, how: str) -> None:
    trace, truth = recorded(build, how)
    assert {k: v for k, v in trace.losses.items() if v} == {}
    assert trace.problems == []
    assert trace.graphs["complete"].all()
    both = matched_ops(trace, truth)
    assert len(truth.ops) > 100
    assert (both["_merge"] == "both").all(), both[both["_merge"] != "both"].head()
    assert (both["fused"] == both["covered"]).all()


@pytest.mark.parametrize(("build", "how"), CASES)
def test_each_barrier_after_an_empty_node_once(recorded, build: str, how: str) -> None:
    """As many as the target says it has empty nodes, each once per thread; else none."""
    trace, truth = recorded(build, how)
    assert (trace.ops["fused"] > 0).all() and (trace.empty_ops["fused"] == 0).all()
    if "empties" not in build:
        assert not len(trace.empty_ops) and not len(trace.empty_walls)
        return
    expected = 0
    for number in truth.calls["def"]:
        nodes = truth.defs[number]
        # Without a barrier of its own the last node's is the one after the loop.
        passed = nodes if build == "old-loop-empties" else nodes[:-1]
        expected += sum(node["empty"] for node in passed)
    assert expected > 50
    assert len(trace.empty_walls) == expected
    assert len(trace.empty_ops) == 2 * expected
    names = trace.nodes["op"].astype(str).to_numpy()[trace.empty_ops["node_id"]]
    assert set(names) == {"RESHAPE", "VIEW", "PERMUTE"}
    assert trace.empty_ops["complete"].all()
    # Nothing is computed there, and the operator after begins when the barrier opens.
    compute = trace.empty_ops["end_ns"] - trace.empty_ops["begin_ns"]
    assert compute.median() < 10_000
    said = {c.name: c for c in checks(trace)}
    assert said["nodes"].ok and said["graph_sums"].ok


@pytest.mark.parametrize(("build", "how"), CASES)
def test_calls(recorded, build: str, how: str) -> None:
    trace, truth = recorded(build, how)
    ours = trace.calls.sort_values(["ctx", "begin_ns"]).reset_index()
    theirs = truth.calls.sort_values(["ctx", "begin_ns"]).reset_index()
    for column in ("n_tokens", "pos_first", "pos_last", "ctx"):
        assert list(ours[column]) == list(theirs[column])
    assert list(ours["phase"] == "warmup") == list(theirs["warmup"])
    assert list(ours["phase"] == "decode") == list((theirs["n_tokens"] == 1) & ~theirs["warmup"])
    # Our begin is before the function ran, theirs before it was called.
    assert ((ours["begin_ns"] - theirs["begin_ns"]).abs()).median() < 20_000
    assert len(trace.samples) == sum(len(c["samples"]) for c in truth.raw["contexts"])


@pytest.mark.parametrize(("build", "how"), CASES)
def test_nodes_are_what_they_were(recorded, build: str, how: str) -> None:
    """Names, ops, types, shapes, strides, sources of every graph of every call."""
    trace, truth = recorded(build, how)
    calls = trace.calls.copy()
    calls["number"] = calls.groupby("ctx").cumcount()
    wanted = truth.calls.set_index(["ctx", "number"])["def"]
    nodes = {key: frame.sort_values("idx") for key, frame in trace.nodes.groupby("def_id")}
    checked = 0
    for call in calls.itertuples():
        graphs = trace.graphs[trace.graphs["call_id"] == call.call_id].sort_values("begin_ns")
        rows = [row for d in graphs["def_id"] for row in nodes[d].itertuples()]
        theirs = truth.defs[wanted[call.ctx, call.number]]
        if how == "splits":
            # The second half runs on another backend: it is seen as a split, not node by node.
            assert 10 < len(rows) < len(theirs)
            theirs = theirs[: len(rows)]
        assert len(rows) == len(theirs)
        for mine, his in zip(rows, theirs, strict=True):
            assert (mine.name, mine.op, mine.type) == (his["name"], his["op"], his["type"])
            assert [mine.ne0, mine.ne1, mine.ne2, mine.ne3] == his["ne"]
            assert [mine.nb0, mine.nb1, mine.nb2, mine.nb3] == his["nb"]
            assert [n for n in (mine.src0_name, mine.src1_name) if n] == his["src"][:2]
            checked += 1
    assert checked > 100


@pytest.mark.parametrize("build", ["shared", "empties"])
def test_durations_within_microseconds(recorded, build: str) -> None:
    trace, truth = recorded(build, "plain")
    both = matched_ops(trace, truth)
    late = (both["end_ns"] - both["their_end"]).abs()
    # The machine may take the CPU away between the target's own clock reading and ours, so the
    # tail says nothing; the bulk must agree.
    assert late.median() < 3_000
    assert late.quantile(0.8) < 10_000
    # The first operator of a graph begins with the thread, later ones when the barrier opens.
    early = both["their_begin"] - both["begin_ns"]
    assert early.abs().median() < 5_000
    compute = both["end_ns"] - both["begin_ns"]
    assert (compute - (both["their_end"] - both["their_begin"])).abs().median() < 6_000


def test_waits_belong_to_the_thread_that_waited(recorded) -> None:
    trace, truth = recorded("shared", "plain")
    both = matched_ops(trace, truth)
    both["wait"] = both["release_ns"] - both["end_ns"]
    last = both.groupby(["call_id", "idx"])["their_end"].transform("max")
    both["their_wait"] = last - both["their_end"]
    assert (both["wait"] - both["their_wait"]).abs().median() < 5_000
    # One thread arrives last and waits for nobody.
    assert (both.groupby(["call_id", "idx"])["wait"].min() == 0).all()
    # Thread by thread and node by node: who waited, and how long. What the machine did to the
    # plan is in the target's own clock readings too.
    waits = both.groupby(["idx", "thread"])[["wait", "their_wait"]].median()
    assert (waits["their_wait"] > 20_000).sum() >= 5
    assert ((waits["wait"] - waits["their_wait"]).abs() < 10_000).mean() > 0.9


def test_contexts_on_two_threads_are_told_apart(recorded) -> None:
    trace, truth = recorded("shared", "two-contexts")
    assert trace.calls["ctx"].nunique() == 2
    tids = trace.ops.merge(trace.graphs[["graph_id", "tid"]], on="graph_id", suffixes=("", "_main"))
    for context in truth.raw["contexts"]:
        seen = set(tids[tids["tid_main"] == context["tid"]]["tid"])
        assert seen == set(context["tids"])


def test_slow_graphs_take_several_batches(recorded) -> None:
    trace, _ = recorded("shared", "slow")
    with TraceReader(trace.path) as reader:
        batches = reader.ops().batches
    assert len(batches) >= 2 * 2 * len(trace.graphs)  # each of two threads, for each graph
    assert (batches["flags"] & OPS_COMPACT != 0).all()
