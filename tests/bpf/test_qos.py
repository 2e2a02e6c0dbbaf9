"""Limits on cost and speed, kept by taking the operators' probes away for a while."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from truth import read_truth

from profinfer.model.trace import Trace
from profinfer.tracefile.reader import TraceReader
from profinfer.tracefile.schema import (
    CNT_NODE_THREADS,
    CNT_NODES,
    CNT_OP_PASSED,
    CNT_OP_RECORDS,
    CNT_STEP_NODES,
)

pytestmark = pytest.mark.bpf


def record(path: Path, program: Path, run_profinfer, limits: list[str], *args: str) -> Trace:
    told = path.with_suffix(".json")
    command = [program, *args, "--no-ops", "--out", told]
    done = run_profinfer("record", "-o", path, *limits, "--", *command)
    assert done.returncode == 0, done.stderr
    assert "probes cost about" in done.stderr
    return Trace.open(path)


def sound(trace: Trace) -> None:
    """Nothing is lost; operators are there for the graphs of the windows, whole, and no others."""
    assert {k: v for k, v in trace.losses.items() if v} == {}
    graphs = trace.graphs
    assert graphs["complete"].all()
    with_ops = np.isin(graphs["graph_id"], trace.ops["graph_id"].unique())
    assert (with_ops == graphs["sampled"]).all()
    sizes = trace.ops.groupby("graph_id").size()
    per_def = graphs.set_index("graph_id").loc[sizes.index].assign(n=sizes)
    assert per_def.groupby("def_id")["n"].nunique().max() == 1


def test_the_cost_is_kept_below_a_share(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    """Half of what probes cost this target on this machine at this hour."""
    args = ("--layers", "8", "--base-us", "1", "--kv-pad", "4096", "--threads", "1")
    record(tmp_path / "free.pf", fake_ggml, run_profinfer, [], *args, "--seconds", "1")
    notes = [v for _, v in TraceReader(tmp_path / "free.pf").documents]
    share = next(v["share"] for v in notes if v.get("what") == "forecast") / 2
    limit = ["--max-overhead", f"{100 * share:.3f}%"]
    more = ("--tokens", "1000", "--seconds", "12")
    trace = record(tmp_path / "t.pf", fake_ggml, run_profinfer, limit, *args, *more)
    sound(trace)
    assert len(trace.windows) >= 2
    calls = trace.calls["end_ns"] - trace.calls["begin_ns"]
    hits = len(trace.ops) + 2 * trace.graphs["sampled"].sum()
    hit_ns = trace.meta.plan.ops.extra["hit_ns"]
    assert hits * hit_ns / calls.sum() < 1.6 * share
    chosen = trace.select(phase="decode")
    decoded = int((trace.calls["phase"] == "decode").sum())
    assert 0 < chosen.n_tokens < chosen.of_tokens == decoded
    report = run_profinfer("report", tmp_path / "t.pf")
    assert f"decode: {chosen.n_tokens:,} of {decoded:,} tokens" in report.stdout
    assert f"every node once per thread in all {trace.graphs['sampled'].sum():,}" in " ".join(
        report.stdout.split()
    )
    whole = run_profinfer("report", tmp_path / "t.pf", "--by", "token", "--format", "csv")
    assert len(whole.stdout.splitlines()) == 1 + (trace.calls["phase"] != "warmup").sum()
    out = tmp_path / "t.pftrace"
    assert run_profinfer("export", tmp_path / "t.pf", "-o", out).returncode == 0


def test_a_disturbed_target_is_relieved(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    """Its speed is measured first; then it runs at a third of it for some 400 tokens."""
    args = ("--layers", "4", "--base-us", "8", "--kv-pad", "4096", "--threads", "1")
    told = tmp_path / "alone.json"
    run_profinfer("record", "-o", tmp_path / "alone.pf", "--level", "token", "--", fake_ggml, *args,
                  "--tokens", "100", "--no-ops", "--out", told)  # fmt: skip
    calls = read_truth(told).calls[2:]
    tps = 1e9 / (calls["end_ns"] - calls["begin_ns"]).median()
    tokens, slow = round(tps * 10), (round(tps * 2), round(tps * 3))
    more = ["--tokens", f"{tokens}", "--slow", f"{slow[0]}:{slow[1]}"]
    limits = ["--min-tps", f"{0.6 * tps:.1f}"]
    trace = record(tmp_path / "t.pf", fake_ggml, run_profinfer, limits, *args, *more)
    sound(trace)
    least = 0.6 * tps
    # Each switch was right by what the calls before it show, whoever else used the machine.
    for window in trace.windows:
        if window.ended:
            assert "tok/s, less than" in window.ended
            assert speed(trace, window.end_ns) < 1.35 * least
        if window.began:
            assert speed(trace, window.begin_ns) > 0.65 * least
    begin = trace.calls["begin_ns"].to_numpy()
    first = trace.windows[0]
    assert first.end_ns < begin[slow[1]]  # at the latest when it was slowed
    # Undisturbed by others it has operators before that, and again a while after.
    if begin[slow[0]] < first.end_ns and speed(trace, int(begin[-1])) > 1.3 * least:
        assert len(trace.windows) >= 2
        assert trace.windows[1].begin_ns > begin[slow[1]]


def speed(trace: Trace, until_ns: int) -> float:
    """Tokens a second of the calls that ended in the 0.6 s before."""
    ends = trace.calls["end_ns"]
    calls = trace.calls[(ends <= until_ns) & (ends > until_ns - 600_000_000)]
    return 1e9 * len(calls) / (calls["end_ns"] - calls["begin_ns"]).sum()


def test_limits_need_operators(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    for limits in (["--max-overhead", "2%", "--level", "graph"], ["--max-overhead", "no"]):
        done = run_profinfer("record", "-o", tmp_path / "t.pf", *limits, "--", fake_ggml)
        assert done.returncode != 0
        assert "--max-overhead" in done.stderr and "Traceback" not in done.stderr


def test_only_some_decode_steps(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    args = ("--tokens", "20", "--generations", "2", "--layers", "1", "--base-us", "2")
    wanted = ["--tokens", "5:15", "--every", "3"]
    trace = record_plain(tmp_path / "t.pf", fake_ggml, run_profinfer, wanted, *args)
    sound(trace)
    calls = trace.calls.set_index("call_id")
    sampled = trace.graphs[trace.graphs["sampled"]]["call_id"]
    assert calls.loc[sampled, "token_index"].tolist() == [5, 8, 11, 14] * 2
    chosen = trace.select(phase="decode")
    assert (chosen.n_tokens, chosen.of_tokens) == (8, 40)
    report = run_profinfer("report", tmp_path / "t.pf", "--by", "op", "--phase", "decode")
    assert "recorded during 8 of 40 tokens" in " ".join(report.stdout.split())


def test_steps_of_parallel_sequences(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    args = ("--slots", "3", "--tokens", "6", "--layers", "1", "--base-us", "2")
    trace = record_plain(tmp_path / "t.pf", fake_ggml, run_profinfer, ["--tokens", "1:4"], *args)
    sound(trace)
    # Batches with prompts in them begin the count anew.
    decode = trace.calls[(trace.calls["phase"] == "decode") & (trace.calls["n_seqs"] == 3)]
    sampled = trace.graphs[trace.graphs["sampled"]]["call_id"]
    assert sampled.tolist() == decode["call_id"].tolist()[1:4]


def test_what_the_gate_stops_is_counted(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    """A hit costs its trap whether a record is left or not."""
    args = ("--tokens", "30", "--layers", "2", "--base-us", "2")
    every, some = tmp_path / "every.pf", tmp_path / "some.pf"
    record_plain(every, fake_ggml, run_profinfer, [], *args)
    trace = record_plain(some, fake_ggml, run_profinfer, ["--every", "10"], *args)
    hits = []
    for path in (every, some):
        counters = Trace.open(path).reader.counters
        hits.append(counters[CNT_OP_RECORDS] + counters[CNT_OP_PASSED])
    assert trace.hits_passed > 0.8 * hits[0]
    assert hits[0] == hits[1]


def test_nodes_of_decode_steps_are_counted_apart(
    tmp_path: Path, fake_ggml: Path, run_profinfer
) -> None:
    args = ("--tokens", "12", "--generations", "2", "--layers", "2", "--base-us", "2")
    trace = record_plain(tmp_path / "t.pf", fake_ggml, run_profinfer, [], *args)
    graphs, counters = trace.graphs, trace.reader.counters
    nodes = graphs["n_nodes"].to_numpy()
    assert counters[CNT_NODES] == nodes.sum()
    assert counters[CNT_NODE_THREADS] == (nodes * graphs["n_threads"].to_numpy()).sum()
    mine = trace.calls.loc[graphs["call_id"], "n_tokens"].to_numpy() == 1
    assert mine.sum() >= 24
    assert counters[CNT_STEP_NODES] == nodes[mine].sum()


def test_a_limit_that_cannot_be_met_is_told(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    args = ("--threads", "1", "--layers", "4", "--base-us", "8", "--kv-pad", "4096")
    more = ("--tokens", "100000", "--seconds", "5", "--no-ops", "--out", "/dev/null")
    limit = ["--min-tps", "1000000"]
    path = tmp_path / "t.pf"
    done = run_profinfer("record", "-o", path, *limit, "--", fake_ggml, *args, *more)
    assert done.returncode == 0, done.stderr
    assert "1 switch to keep the limits, first because of" in done.stderr
    assert "the limit was not kept: it is slower than 1e+06 tok/s" in done.stderr
    report = " ".join(run_profinfer("report", path).stdout.split())
    assert "tok/s, less than 1e+06" in report and "the limit was not kept" in report


def record_plain(path: Path, program: Path, run_profinfer, wanted: list[str], *args: str) -> Trace:
    """Too short for a forecast."""
    done = run_profinfer("record", "-o", path, *wanted, "--", program, *args, "--no-ops")
    assert done.returncode == 0, done.stderr
    return Trace.open(path)


def test_dear_probes_are_announced(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    """Operators of 5 µs on one thread: a hit is a large part of that."""
    args = ["--threads", "1", "--layers", "1", "--base-us", "1", "--tokens", "1500", "--no-ops"]
    done = run_profinfer("record", "-o", tmp_path / "t.pf", "--", fake_ggml, *args)
    assert done.returncode == 0, done.stderr
    told = [v for _, v in TraceReader(tmp_path / "t.pf").documents if v.get("what") == "forecast"]
    assert len(told) == 1 and 0.005 < told[0]["share"] < 0.9
    early = "--max-overhead 2% keeps that down" in done.stderr
    assert early == (told[0]["share"] >= 0.1)
