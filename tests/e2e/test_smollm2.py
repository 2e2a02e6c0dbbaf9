"""The whole way on a real llama.cpp with a real model, checked against the engine's own words."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from engine_dump import assert_same_graph, dumped_nodes

from profinfer.analysis.lifeledger import ledger
from profinfer.model.trace import Trace

pytestmark = pytest.mark.e2e

PROMPT = "The quick brown fox jumps over the lazy dog and then"
TIMING = re.compile(
    r"(prompt eval|eval) time =\s+([\d.]+) ms /\s+(\d+) (?:tokens|runs)"
    r".*?([\d.]+) tokens per second"
)


@dataclass
class Run:
    trace: Trace
    stderr: str


def _command(llama_bin: Path, program: str, model: Path, *more: str) -> list[str]:
    return [str(llama_bin / program), "-m", str(model), "-t", "2", "-p", PROMPT, *more]


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory,
    llama_bin: Path,
    smollm2: Path,
    run_profinfer: Callable[..., subprocess.CompletedProcess[str]],
) -> Run:
    path = tmp_path_factory.mktemp("e2e") / "trace.pf"
    command = _command(
        llama_bin, "llama-completion", smollm2, "-n", "64", "-no-cnv", "--temp", "0", "--ignore-eos"
    )
    done = run_profinfer("record", "-o", str(path), "--", *command, timeout=400)
    assert done.returncode == 0, done.stderr
    return Run(Trace.open(path), done.stderr)


def test_nothing_is_lost_and_every_record_is_understood(run: Run) -> None:
    lost = {name: n for name, n in run.trace.losses.items() if n}
    assert lost == {}
    assert run.trace.problems == []


def test_every_node_runs_once_per_thread(run: Run) -> None:
    """Every non-empty node of every graph, exactly once on each thread that ran the graph."""
    t = run.trace
    assert bool(t.graphs["complete"].all())
    computed = t.nodes[~t.nodes["empty"]]
    per_def = computed.groupby("def_id").size()
    expected = t.graphs["def_id"].map(per_def) * t.graphs["threads_seen"]
    covered = t.ops.groupby("graph_id")["fused"].sum()
    assert (t.graphs.set_index("graph_id").index == covered.index).all()
    np.testing.assert_array_equal(covered.to_numpy(), expected.to_numpy())
    # Once each, not twice here and never there.
    assert not t.ops.duplicated(["graph_id", "node_id", "tid"]).any()
    assert (t.graphs["threads_seen"] == 2).all()


def test_compute_wait_and_gaps_explain_the_graphs(run: Run) -> None:
    t = run.trace
    walls = t.op_walls.groupby("graph_id").agg(
        first=("begin_ns", "min"), last=("release_ns", "max")
    )
    wall_sum = (
        (t.op_walls["release_ns"] - t.op_walls["begin_ns"]).groupby(t.op_walls["graph_id"]).sum()
    )
    graphs = t.graphs.set_index("graph_id")
    span = graphs["end_ns"] - graphs["begin_ns"]
    gaps = (walls["first"] - graphs["begin_ns"]) + (graphs["end_ns"] - walls["last"])
    assert ((wall_sum + gaps) / span).min() >= 0.98
    # The gaps are the explanation of little: nearly all of a graph is operators.
    assert wall_sum.sum() / span.sum() >= 0.95
    # And on each thread compute + wait fill the time between its first and last operator.
    ops = t.ops
    busy = (ops["release_ns"] - ops["begin_ns"]).groupby([ops["graph_id"], ops["tid"]]).sum()
    ends = ops.groupby(["graph_id", "tid"]).agg(a=("begin_ns", "min"), b=("release_ns", "max"))
    assert (busy / (ends["b"] - ends["a"])).min() >= 0.98


def test_tokens_and_speed_agree_with_the_engine(run: Run) -> None:
    assert_agree(run)


def assert_agree(run: Run) -> None:
    """llama.cpp prints its own counts and tokens per second; ours differ by at most 2 %."""
    printed = {m[0]: (float(m[1]), int(m[2]), float(m[3])) for m in TIMING.findall(run.stderr)}
    assert set(printed) == {"prompt eval", "eval"}
    calls = run.trace.calls
    for phase, name in (("prefill", "prompt eval"), ("decode", "eval")):
        ours = calls[calls["phase"] == phase]
        _, count, speed = printed[name]
        assert ours["n_tokens"].sum() == count
        seconds = (ours["end_ns"] - ours["begin_ns"]).sum() / 1e9
        assert count / seconds == pytest.approx(speed, rel=0.02)


@pytest.mark.parametrize("level", ["token", "graph"])
def test_tokens_are_known_at_every_level(
    level: str, tmp_path: Path, llama_bin: Path, smollm2: Path, run_profinfer
) -> None:
    command = _command(
        llama_bin, "llama-completion", smollm2, "-n", "16", "-no-cnv", "--temp", "0", "--ignore-eos"
    )
    path = tmp_path / "trace.pf"
    done = run_profinfer("record", "-o", path, "--level", level, "--", *command, timeout=400)
    assert done.returncode == 0, done.stderr
    trace = Trace.open(path)
    assert_agree(Run(trace, done.stderr))
    assert bool(len(trace.graphs)) == (level == "graph") and not len(trace.ops)
    shown = run_profinfer("report", path)
    assert "TPOT p50" in shown.stdout and "TTFT" in shown.stdout, shown.stderr


def test_warm_up_is_told_apart(run: Run) -> None:
    phases = run.trace.calls["phase"].value_counts()
    assert phases["warmup"] == 1
    assert phases["prefill"] == 1
    assert phases["decode"] == 63


def test_decode_positions_grow_by_one(run: Run) -> None:
    calls = run.trace.calls
    decode = calls[calls["phase"] == "decode"]
    assert (np.diff(decode["pos_first"]) == 1).all()
    assert (decode["pos_first"] == decode["pos_last"]).all()


def test_sampling_is_seen(run: Run) -> None:
    assert len(run.trace.samples) == 64
    spent = (run.trace.samples["end_ns"] - run.trace.samples["begin_ns"]).sum()
    assert spent > 0


def test_graph_agrees_with_the_engines_own_dump(run: Run, llama_bin: Path, smollm2: Path) -> None:
    """Names, operators, types, shapes and order against llama-eval-callback, node by node."""
    theirs = dumped_nodes(_command(llama_bin, "llama-eval-callback", smollm2, "-n", "1"))
    t = run.trace
    prefill = t.graphs[t.graphs["phase"] == "prefill"].iloc[0]
    ours = t.nodes[t.nodes["def_id"] == prefill["def_id"]].sort_values("idx")
    assert len(ours) > 900
    assert_same_graph(ours, theirs, at_least=0.9)


def test_the_growing_kv_cache_is_seen(
    tmp_path: Path,
    llama_bin: Path,
    smollm2: Path,
    run_profinfer: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    """Attention reads a KV cache that grows in steps of 256 cells: its shape must follow.

    On one thread: long, and barriers on a busy machine would make it much longer.
    """
    path = tmp_path / "kv.pf"
    command = _command(
        llama_bin,
        "llama-completion",
        smollm2,
        "-n",
        "280",
        "-no-cnv",
        "--temp",
        "0",
        "--ignore-eos",
        "-t",
        "1",
    )
    done = run_profinfer("record", "-o", str(path), "--", *command, timeout=400)
    assert done.returncode == 0, done.stderr
    t = Trace.open(path)
    calls = t.calls[t.calls["phase"] == "decode"].set_index("call_id")
    attention = t.nodes[t.nodes["op"] == "FLASH_ATTN_EXT"].drop_duplicates("def_id")
    n_kv = attention.set_index("def_id")["src1_ne"].str.split("x").str[1].astype(int)
    graphs = t.graphs[t.graphs["phase"] == "decode"]
    seen = graphs["def_id"].map(n_kv).to_numpy()
    need = graphs["call_id"].map(calls["pos_last"]).to_numpy() + 1
    assert (seen >= need).all()
    assert (seen - need < 256).all()
    assert sorted(set(seen)) == [256, 512]


def test_the_whole_run_is_told_to_the_nanosecond(run: Run) -> None:
    """From exec to exit; the engine's own time to load and to compute is what the rows say."""
    told = ledger(run.trace)
    time = dict(zip(told.frame["part"], told.frame["time_ns"].tolist(), strict=True))
    life = run.trace.life
    assert life.whole and told.total is not None
    assert sum(time.values()) == told.total["time_ns"] == life.end_ns - life.begin_ns
    calls = run.trace.calls
    assert life.begin_ns < calls["begin_ns"].min() and calls["end_ns"].max() < life.end_ns
    # One thread makes all calls, one after the other: the rows of phases are their sum.
    inside = sum(ns for part, ns in time.items() if part.split(".")[0] in ("prefill", "decode"))
    of_phase = calls[calls["phase"].isin(("prefill", "decode"))]
    spent = int((of_phase["end_ns"] - of_phase["begin_ns"]).sum())
    walk = run.trace.graphs["walk_ns"][run.trace.graphs["phase"] != "warmup"].sum()
    assert inside == spent - walk
    assert sum(ns for part, ns in time.items() if part.startswith("load.")) > 0


def test_findings_of_the_run_can_be_explained(run: Run, run_profinfer) -> None:
    done = run_profinfer("report", str(run.trace.path), "--explain", "--format", "json")
    assert done.returncode == 0, done.stderr
    # Of the model and its options nothing is wrong; what the machine does meanwhile is another
    # matter.
    settings = {"sampling", "graph_build", "output_head", "attention", "small_pieces"}
    assert not {f["name"] for f in json.loads(done.stdout)["findings"]} & settings


def test_a_model_whose_name_is_no_text(tmp_path: Path, llama_bin, smollm2, run_profinfer) -> None:
    """File names are any bytes."""
    copied = tmp_path / "n\udcff.gguf"
    shutil.copy(smollm2, copied)
    out = tmp_path / "t.pf"
    command = [llama_bin / "llama-completion", "-m", copied, "-n", "4", "-p", "Hi"]
    done = run_profinfer("record", "-o", out, "--", *command)
    assert done.returncode == 0, done.stderr
    for view in ([], ["--faults"], ["--format", "json"]):
        shown = run_profinfer("report", out, *view)
        assert shown.returncode == 0, shown.stderr
    assert "n\\xff" in run_profinfer("report", out).stdout
    assert run_profinfer("export", out, "-o", tmp_path / "t.pftrace").returncode == 0
