"""The estimate of what the probes cost, on traces whose numbers of hits are known."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import sample_run

from profinfer.analysis.overhead import estimated_share
from profinfer.model.trace import Trace


def trace(tmp_path: Path, **ops: object) -> Trace:
    plan = {"level": "op", "ops": {"mode": "site", "bias": 1, "barrier_always": False, **ops}}
    run = sample_run(plan=plan)
    return Trace.open(run.builder.write(tmp_path / "t.pf"))


def test_hits_of_one_thread_times_the_cost(tmp_path: Path) -> None:
    t = trace(tmp_path, hit_ns=1000)
    operators = len(t.ops) / t.threads["tid"].nunique()
    hits = operators + 4 * len(t.graphs) + 2 * (len(t.splits) + len(t.calls) + len(t.samples))
    spent = hits * 1000 + t.graphs["walk_ns"].sum()
    total = (t.calls["end_ns"] - t.calls["begin_ns"]).sum()
    assert len(t.ops) > 100
    assert estimated_share(t) == pytest.approx(spent / total)


def test_no_estimate_without_a_measurement(tmp_path: Path) -> None:
    assert estimated_share(trace(tmp_path)) is None


def test_two_probes_an_operator_cost_twice(tmp_path: Path) -> None:
    one = estimated_share(trace(tmp_path, hit_ns=1000))
    two = estimated_share(trace(tmp_path, hit_ns=1000, mode="pair"))
    assert one is not None
    assert two is not None
    assert two > 1.3 * one
