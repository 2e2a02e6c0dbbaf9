"""Batches of several sequences, as a server makes them: whose tokens they are."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from truth import read_truth

from profinfer.analysis import latency
from profinfer.model.trace import Trace

pytestmark = pytest.mark.bpf


def recorded(tmp_path: Path, program: Path, run_profinfer, *args: str) -> tuple[Trace, dict]:
    out, told = tmp_path / "t.pf", tmp_path / "truth.json"
    command = [program, *args, "--layers", "1", "--base-us", "2", "--no-ops", "--out", told]
    done = run_profinfer("record", "-o", out, "--", *command)
    assert done.returncode == 0, done.stderr
    trace = Trace.open(out)
    assert {k: v for k, v in trace.losses.items() if v} == {}
    return trace, read_truth(told).raw


def parts(trace: Trace) -> list[list[list[int]]]:
    columns = ["seq", "pos_first", "n_tokens"]
    return [rows[columns].to_numpy().tolist() for _, rows in trace.sequences.groupby("call_id")]


def test_a_servers_batches(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    args = ("--slots", "4", "--tokens", "6", "--generations", "2")
    trace, truth = recorded(tmp_path, fake_ggml, run_profinfer, *args)
    calls = truth["contexts"][0]["calls"]
    # The first call is the warm-up, whose batch names no sequence: it is sequence 0.
    assert parts(trace) == [c["parts"] for c in calls]
    phases = trace.calls["phase"].tolist()
    once = ["prefill", "mixed", "mixed", "mixed", *["decode"] * 6]
    assert phases == ["warmup", *once, *once]
    assert trace.calls["n_seqs"].tolist() == [len(c["parts"]) for c in calls]
    table = latency.generations(trace).set_index(["seq", "generation"]).sort_index()
    assert table.index.tolist() == [(s, g) for s in range(4) for g in range(2)]
    assert table["prompt_tokens"].tolist() == [7, 7, 8, 8, 9, 9, 10, 10]
    assert table["output_tokens"].tolist() == [9, 9, 8, 8, 7, 7, 6, 6]
    begin = pd.Series([c["begin_ns"] for c in calls])
    first = table.xs(0, level="generation")["begin_ns"].to_numpy() - begin[1:5].to_numpy()
    assert (abs(first) < 200_000).all(), first


def test_more_runs_than_a_record_holds(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    args = ("--slots", "9", "--interleave", "--prompt", "40", "--tokens", "2")
    trace, truth = recorded(tmp_path, fake_ggml, run_profinfer, *args)
    assert parts(trace) == [c["parts"] for c in truth["contexts"][0]["calls"]]
    assert set(trace.calls["phase"][1:2]) == {"prefill"}
    assert set(trace.calls["phase"][2:]) == {"decode"}


def test_contexts_with_sequences_of_the_same_number(
    tmp_path: Path, fake_ggml: Path, run_profinfer
) -> None:
    args = ("--slots", "2", "--tokens", "4", "--contexts", "2", "--threads", "1")
    trace, truth = recorded(tmp_path, fake_ggml, run_profinfer, *args)
    for context in truth["contexts"]:
        mine = trace.calls[trace.calls["ctx"] == context["ctx"]]
        assert mine["n_tokens"].tolist() == [c["n_tokens"] for c in context["calls"]]
    table = latency.generations(trace)
    assert len(table) == 4 and table["ctx"].nunique() == 2
    assert table.sort_values(["ctx", "seq"])["output_tokens"].tolist() == [5, 4, 5, 4]
