"""Tokens per second over time, and token times on a logarithmic axis."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import sample_run
from kvruns import PLANTED, kv_run

from profinfer.analysis import outliers
from profinfer.analysis.steps import decode_steps
from profinfer.analysis.throughput import FEW, throughput
from profinfer.model.trace import Trace
from profinfer.render.html import tokenfigures


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return Trace.open(kv_run(200).write(tmp_path_factory.mktemp("kv") / "kv.pf"))


def test_no_token_is_lost_between_slices(trace: Trace) -> None:
    chosen = trace.select()
    frame = throughput(trace, chosen).frame
    calls = trace.calls[chosen.calls]
    done = frame.groupby("phase")["tokens"].sum()
    wanted = calls.groupby(calls["phase"].astype(str))["n_tokens"].sum()
    assert done.to_dict() == pytest.approx(wanted.to_dict())
    length = frame.groupby("phase")["length_ns"].sum()
    whole = calls["end_ns"].max() - calls["begin_ns"].min()
    assert length.to_numpy() == pytest.approx(whole, rel=1e-4)
    assert (frame["per_s"] >= 0).all()


def test_a_steady_run_has_a_steady_rate(tmp_path: Path) -> None:
    made = sample_run(decode_tokens=100, compute=20_000)
    opened = Trace.open(made.builder.write(tmp_path / "t.pf"))
    chosen = opened.select(phase="decode")
    frame = throughput(opened, chosen).frame
    assert len(frame) == max(FEW, 25)
    assert frame["per_s"].std() < 0.02 * frame["per_s"].mean()
    calls = opened.calls[chosen.calls]
    whole = calls["end_ns"].max() - calls["begin_ns"].min()
    assert frame["per_s"].mean() == pytest.approx(100e9 / whole, rel=0.01)


def test_the_logarithmic_chart_holds_every_step(trace: Trace) -> None:
    steps = decode_steps(trace, trace.select(phase="decode"))
    found = outliers.found(steps)
    drawn = tokenfigures.token_times_log(steps, *found)
    assert drawn is not None and drawn.y.log and drawn.y.most is None
    points = [v for s in drawn.series if s.kind == "points" for v in s.y]
    assert sorted(points) == sorted(steps.total.astype(float))
    slow = next(s for s in drawn.series if s.name == "slow token")
    assert len(slow.x) >= len(PLANTED) and max(slow.y) == np.max(steps.total)


def test_throughput_is_a_line_for_each_phase(trace: Trace) -> None:
    drawn = tokenfigures.throughput(throughput(trace, trace.select()))
    assert drawn is not None
    assert [s.name for s in drawn.series] == ["decode", "prefill"]
    assert drawn.y.unit == "per_s" and drawn.series[0].tips
    assert tokenfigures.throughput(throughput(trace, trace.select(phase="encode"))) is None
