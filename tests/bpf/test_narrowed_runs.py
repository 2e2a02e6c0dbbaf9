"""record --ops, --layers, --threads on a target with known durations: what is left is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from truth import Truth, matched_ops, read_truth

from profinfer.model.selfcheck import checks
from profinfer.model.trace import Trace
from profinfer.model.wanted import layers
from profinfer.tracefile.schema import CNT_OP_PASSED, CNT_OP_RECORDS

pytestmark = pytest.mark.bpf

BUILDS = {"shared": {}, "old-loop-empties": {"defs": "-DFAKE_OLD_LOOP -DFAKE_EMPTIES"}}
RUNS = {
    "plain": [],
    "no-uid": ["--no-uid"],
    "vary": ["--vary", "--generations", "2"],
    "slow": ["--layers", "1", "--tokens", "3", "--base-us", "12000"],
}
CASES = [(b, "plain") for b in BUILDS] + [("shared", r) for r in RUNS if r != "plain"]


@pytest.fixture
def record(tmp_path: Path, build_fake_ggml: Callable[..., Path], run_profinfer):
    def run(build: str, how: str, *wanted: str):
        command = [build_fake_ggml(**BUILDS[build]), *RUNS[how], "--out", tmp_path / "truth.json"]
        done = run_profinfer("record", "-o", tmp_path / "t.pf", *wanted, "--", *command)
        assert done.returncode == 0, done.stderr
        trace = Trace.open(tmp_path / "t.pf")
        assert {k: v for k, v in trace.losses.items() if v} == {}
        assert trace.graphs["complete"].all() and trace.ops["complete"].all()
        # How much of a graph of so few operators goes by while its threads start, a busy machine
        # decides.
        assert [c.text for c in checks(trace) if not c.ok and c.name != "explained"] == []
        return trace, read_truth(tmp_path / "truth.json")

    return run


def in_order(ours: pd.DataFrame, truth: Truth) -> None:
    """The target's own clock readings around ours, to the nanosecond and under any load.

    An operator begins when all threads have ended the one before, and before any begins it; it ends
    when its thread has ended it, and before any thread begins the next.
    """
    key = ["ctx", "call", "node"]
    steps = truth.ops.groupby(key).agg(begin=("begin", "min"), end=("end", "max")).reset_index()
    steps["after"] = steps.groupby(["ctx", "call"])["end"].shift(1)
    steps["until"] = steps.groupby(["ctx", "call"])["begin"].shift(-1)
    both = ours.merge(steps, left_on=["ctx", "number", "node"], right_on=key)
    assert len(both) == len(ours) > 50
    assert not (both["begin_ns"] < both["after"]).any()
    assert (both["begin_ns"] <= both["begin"]).all()
    assert (both["end_ns"] >= both["their_end"]).all()
    assert not (both["end_ns"] > both["until"]).any()


@pytest.mark.parametrize(("build", "how"), CASES)
def test_only_some_operators(record, build: str, how: str) -> None:
    """Every wanted operator once on every thread, no other one, and as long as it was."""
    trace, truth = record(build, how, "--ops", "MUL_MAT,rope")
    both = matched_ops(trace, truth)
    names = both["op"].astype(object).where(both["_merge"] != "right_only")
    ours = both[both["_merge"] == "both"]
    assert set(names.dropna()) == {"MUL_MAT", "ROPE"}
    assert not (both["_merge"] == "left_only").any()
    missing = both[both["_merge"] == "right_only"]
    nodes = truth.calls.set_index(["ctx", "number"])["def"]
    their_ops = {
        truth.defs[nodes[row.ctx, row.number]][int(row.node)]["op"] for row in missing.itertuples()
    }
    assert their_ops and not their_ops & {"MUL_MAT", "ROPE"}
    in_order(ours, truth)
    counters = trace.reader.counters
    assert counters[CNT_OP_PASSED] > 0
    # ENTER and LEAVE of each pass are records without an operator.
    passes = 2 * len(trace.visits.tid)
    hits = counters[CNT_OP_PASSED] + counters[CNT_OP_RECORDS] - passes
    own = 0 if build == "old-loop-empties" else len(trace.visits.tid)  # the last node's is LEAVE
    if build == "shared":
        assert hits == len(truth.ops) - own


@pytest.mark.parametrize(("build", "how"), CASES)
def test_only_some_layers(record, build: str, how: str) -> None:
    trace, truth = record(build, how, "--layers", "0")
    wanted = layers(trace.nodes) == 0
    per_graph = trace.graphs["def_id"].map(
        trace.nodes[wanted & ~trace.nodes["empty"]].groupby("def_id").size()
    )
    rows = trace.ops.groupby("graph_id")["fused"].sum()
    # A fused operator stands at its last node, which may be the next layer's first.
    assert (rows.to_numpy() <= 2 * per_graph.to_numpy()).all()
    assert wanted[trace.ops["node_id"].to_numpy()].all()
    both = matched_ops(trace, truth)
    ours = both[both["_merge"] == "both"]
    assert len(ours) == len(trace.ops) > 0
    # None that it should have is missing.
    their = both[both["_merge"] != "left_only"]
    names = their["node"].astype(int)
    defs = their.set_index(["ctx", "number"]).index.map(
        truth.calls.set_index(["ctx", "number"])["def"]
    )
    ids = {(d, i): n["name"] for d, nodes in enumerate(truth.defs) for i, n in enumerate(nodes)}
    told = np.array([ids[d, i].partition(" ")[0].endswith("-0")
                     for d, i in zip(defs, names, strict=True)])  # fmt: skip
    assert told.any() and (their["_merge"].to_numpy()[told] == "both").all()


def test_only_the_thread_that_begins_graphs(record) -> None:
    trace, truth = record("shared", "plain", "--threads", "main")
    assert set(trace.ops["tid"]) == set(trace.graphs["tid"])
    assert len(trace.ops) * 2 == len(truth.ops)
    both = matched_ops(trace, truth)
    ours = both[both["_merge"] == "both"]
    assert len(ours) == len(trace.ops)
    assert (ours["end_ns"] >= ours["their_end"]).all()
    assert trace.hits_passed > 0


def test_what_cannot_be_narrowed_is_refused(tmp_path, fake_ggml: Path, run_profinfer) -> None:
    def refused(*wanted: str) -> str:
        done = run_profinfer("record", "-o", tmp_path / "t.pf", *wanted, "--", fake_ggml)
        assert done.returncode != 0 and "Traceback" not in done.stderr
        assert not (tmp_path / "t.pf").exists()
        return done.stderr

    assert "no operator MUL_MATT" in refused("--ops", "MUL_MATT")
    assert "--level graph has none" in refused("--level", "graph", "--layers", "3")
    assert "--ops names no operator" in refused("--ops", ",")
    assert "they need all operators" in refused("--preset", "faults", "--ops", "ROPE")
    assert "--layers does not understand" in refused("--layers", "4:2")


def test_views_say_what_is_not_there(
    record, tmp_path: Path, fake_ggml: Path, run_profinfer
) -> None:
    record("shared", "plain", "--ops", "MUL_MAT")
    some, whole = tmp_path / "t.pf", tmp_path / "whole.pf"
    done = run_profinfer("record", "-o", whole, "--", fake_ggml, "--out", "/dev/null")
    assert done.returncode == 0, done.stderr
    ledger = run_profinfer("report", some).stdout
    assert "operators that were not recorded" in ledger and "only MUL_MAT" in ledger
    assert "not recorded" in run_profinfer("report", some, "--by", "outlier").stdout
    done = run_profinfer("diff", some, whole)
    assert done.returncode != 0 and "of different operators" in done.stderr


@pytest.mark.parametrize(
    ("wanted", "have"), [(("--ops", "VIEW"), "MUL_MAT"), (("--layers", "999"), "layers 0 to ")]
)
def test_what_was_chosen_but_never_computed_is_said(
    tmp_path: Path, fake_ggml: Path, run_profinfer, wanted: tuple[str, str], have: str
) -> None:
    out, chosen = tmp_path / "t.pf", " ".join(wanted)
    command = [fake_ggml, "--layers", "3", "--tokens", "3", "--out", "/dev/null"]
    done = run_profinfer("record", "-o", out, *wanted, "--", *command)
    assert done.returncode == 0
    assert f"no operator was recorded: {chosen} chose none" in done.stderr
    assert have in done.stderr
    assert "no operator was recorded" in run_profinfer("report", out).stdout
    done = run_profinfer("report", out, "--by", "op")
    assert done.returncode != 0 and f"{chosen} chose none" in done.stderr
    assert "record --level op" not in done.stderr
