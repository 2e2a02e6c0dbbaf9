"""Counters on a real llama.cpp: the first graph faults its memory in, later ones do not."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from profinfer.model.trace import Trace

pytestmark = pytest.mark.e2e


def test_faults_of_a_first_graph(
    tmp_path: Path,
    llama_bin: Path,
    smollm2: Path,
    run_profinfer: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    path = tmp_path / "t.pf"
    command = [llama_bin / "llama-completion", "-m", smollm2, "-t", "2", "-p", "Once upon a time"]
    command += ["-n", "16", "-no-cnv", "--temp", "0", "--ignore-eos", "--no-warmup"]
    done = run_profinfer("record", "-o", path, "--preset", "faults", "--", *command, timeout=300)
    assert done.returncode == 0, done.stderr
    trace = Trace.open(path)
    assert trace.problems == [] and not any(trace.losses.values())
    assert trace.counters.notna().to_numpy().all()
    faults = trace.counters["minor-faults"] + trace.counters["major-faults"]
    by_graph = faults.groupby(trace.ops["graph_id"]).sum()
    assert by_graph.iloc[0] > 50
    assert by_graph.iloc[0] > 10 * by_graph.iloc[2:].median()
    passed = trace.ops["end_ns"] - trace.counted.since_ns
    assert 0.2 < trace.counters["task-clock"].sum() / passed.sum() < 1.02

    shown = run_profinfer("report", path, "--counters", "--by", "op", "--format", "json")
    assert shown.returncode == 0, shown.stderr
    results = json.loads(shown.stdout)["results"]
    assert {r["name"] for r in results} == {"counters_by_op"}
    assert all("minor-faults" in row for r in results for row in r["rows"])
    without = run_profinfer("report", path, "--counters", "--by", "token")
    assert without.returncode == 2 and "Traceback" not in without.stderr
