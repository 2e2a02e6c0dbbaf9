"""Operators' times without the probes' cost, on a trace whose cost is given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from builders import sample_run

from profinfer.analysis import operators
from profinfer.analysis.correction import corrected, probe_cost_ns
from profinfer.model.trace import Trace


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    run = sample_run(compute=lambda node, thread: 100 if node % 2 else 5_000)
    run.builder.update(plan={"ops": {"hit_ns": 800}})
    return Trace.open(run.builder.write(tmp_path / "t.pf"))


def test_each_execution_is_shorter_by_a_hit(trace: Trace) -> None:
    selection = trace.select(phase="decode")
    assert probe_cost_ns(trace) == 800
    raw = operators.by(trace, selection, "op")
    result = corrected(raw, trace, selection)
    frame = result.frame.set_index("op")
    for row in raw.frame.itertuples():
        less = max(row.wall_ns - 800 * row.calls, 0)
        assert frame.loc[row.op, "corrected_ns"] == less
        assert frame.loc[row.op, "wall_ns"] == row.wall_ns
    assert result.total is not None
    # Of each node by itself, so that short ones do not go below zero for long ones.
    sums = trace.sums(selection)
    whole = sum(max(w - 800 * c, 0) for w, c in zip(sums.wall, sums.calls, strict=True))
    assert result.total["corrected_ns"] == whole
    assert any("0.80 µs" in note.text for note in result.notes)


def test_command_line(trace: Trace, call_profinfer, tmp_path: Path) -> None:
    done = call_profinfer("report", trace.path, "--corrected", "--by", "node", "--format", "json")
    assert done.returncode == 0, done.stderr
    names = {c["name"] for c in json.loads(done.stdout)["results"][0]["columns"]}
    assert {"wall_ns", "corrected_ns", "corrected_per_token_ns"} <= names
    whole = call_profinfer("report", trace.path, "--corrected")
    assert "corrected" in whole.stdout and max(map(len, whole.stdout.splitlines())) <= 80
    without = sample_run().builder.write(tmp_path / "without.pf")
    refused = call_profinfer("report", without, "--corrected")
    assert refused.returncode != 0 and "leave out --corrected" in refused.stderr


@pytest.mark.parametrize("view", [["--by", "thread"], ["--by", "token"], ["--roofline"]])
def test_views_without_corrected_times_say_so(
    trace: Trace, call_profinfer, view: list[str]
) -> None:
    done = call_profinfer("report", trace.path, "--corrected", *view)
    assert done.returncode != 0
    assert f"{' '.join(view)} has no corrected times" in done.stderr
