from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from kvruns import DISTURBED, JUMP, LAYERS, PAD, PLANTED, PROMPT, SLOPE, kv_run

from profinfer.analysis import growth, outliers, prompts
from profinfer.analysis.robust import deviation, level, theil_sen
from profinfer.analysis.steps import decode_steps
from profinfer.model.trace import Trace


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    return Trace.open(kv_run().write(tmp_path_factory.mktemp("kv") / "kv.pf"))


def test_a_line_is_found_through_wild_values() -> None:
    x = np.arange(100.0)
    y = 5 + 3 * x
    y[::7] = 1e6
    line = theil_sen(x, y)
    assert line is not None
    assert line.slope == pytest.approx(3, abs=0.01) and line.certain
    assert line.at(0) == pytest.approx(5, abs=1)


def test_noise_has_no_certain_slope() -> None:
    y = np.random.default_rng(1).normal(100, 5, 1000)
    line = theil_sen(np.arange(1000.0), y)
    assert line is not None and not line.certain
    assert line.low < 0 < line.high


def test_a_line_needs_three_places() -> None:
    assert theil_sen(np.array([1.0, 1.0, 2.0, 2.0]), np.arange(4.0)) is None
    assert theil_sen(np.zeros(0), np.zeros(0)) is None


def test_the_level_is_that_of_the_neighbours() -> None:
    values = np.full(100, 10.0)
    values[50] = 1e9
    assert (level(values) == 10).all()
    assert deviation(np.array([1.0, 2, 3, 4, 5])) == pytest.approx(1.4826)


def test_every_nanosecond_of_a_step_is_in_one_part(run: Trace) -> None:
    steps = decode_steps(run, run.select(phase="decode"))
    assert len(steps.call) == 89  # the first decode step has none before it
    assert (steps.time.sum(axis=1) == steps.total).all()
    ends = run.calls["end_ns"].to_numpy()
    assert (steps.total == ends[steps.call] - ends[steps.call - 1]).all()
    assert (steps.time >= 0).all()


def test_cells_are_read_from_the_graph(run: Trace) -> None:
    steps = decode_steps(run, run.select(phase="decode"))
    assert (steps.cells == (steps.position // PAD + 1) * PAD).all()
    assert (np.flatnonzero(steps.rebuilt) == np.flatnonzero(steps.position % PAD == 0)).all()


def test_the_planted_growth_is_found(run: Trace) -> None:
    result = growth.growth(run, run.select(phase="decode"))
    rows = result.frame.set_index("part")
    assert result.frame["part"].iloc[0] == "attention: kq"
    assert rows.loc["attention: kq", "share"] > 0.95
    assert rows.loc["attention: kq", "certain"] == "yes"
    # The slope over all positions holds the jumps as well.
    whole = LAYERS * (SLOPE + JUMP / PAD)
    assert rows.loc["attention: kq", "slope_ns"] == pytest.approx(whole, rel=0.2)
    others = rows.drop(index="attention: kq")["slope_ns"]
    assert others.abs().max() < 0.05 * whole
    assert result.frame["share"].sum() == pytest.approx(1.0)
    assert any("attention: kq" in n.text for n in result.notes)


def test_the_staircase_is_found(run: Trace) -> None:
    frame = growth.staircase(run, run.select(phase="decode")).frame
    assert frame["cells"].tolist() == [32, 64, 96]
    assert frame["first"].tolist() == [PROMPT + 1, 32, 64]
    inside = frame["slope_ns"].to_numpy()
    assert inside == pytest.approx(LAYERS * SLOPE, rel=0.15)
    jumps = frame["jump_ns"].to_numpy()
    assert np.isnan(jumps[0])
    assert jumps[1:] == pytest.approx(LAYERS * (JUMP + SLOPE), rel=0.1)


def test_planted_outliers_have_their_reason(run: Trace) -> None:
    frame = outliers.outliers(run, run.select(phase="decode")).frame
    by_step = {int(row.position) - PROMPT: row for row in frame.itertuples()}
    rebuilt = {32 - PROMPT, 64 - PROMPT}
    assert set(by_step) == set(PLANTED) | rebuilt
    assert by_step[20].reason == "one operator: ffn_up-1 took 300 µs more"
    assert by_step[20].part == "ffn"
    assert by_step[26].reason == "sampling took longer"
    assert by_step[40].reason == "the program's own work between two calls"
    assert by_step[50].reason == "no CPU for 300 µs behind stress (pid 900): thread worker-78"
    assert by_step[70].reason == "page faults held a thread up for 300 µs: 1 major"
    for step in rebuilt:
        assert by_step[step].reason.startswith("a new graph was built: KV cells ")
    assert frame["excess_ns"].to_numpy() == pytest.approx(DISTURBED, rel=0.1)


def test_a_thread_that_sleeps_for_a_disk_has_lost_no_cpu(tmp_path: Path) -> None:
    trace = Trace.open(kv_run(60, {20: "disk"}).write(tmp_path / "disk.pf"))
    frame = outliers.outliers(trace, trace.select(phase="decode")).frame
    row = frame[frame["position"] == PROMPT + 20].iloc[0]
    assert row["reason"] == "page faults held a thread up for 300 µs: 1 major"


def test_a_calm_run_has_no_outliers(tmp_path: Path) -> None:
    trace = Trace.open(kv_run(24, {}).write(tmp_path / "calm.pf"))
    result = outliers.outliers(trace, trace.select(phase="decode"))
    assert not len(result.frame)
    assert any("0 of 23 tokens are outliers" in n.text for n in result.notes)


def test_percentiles_are_nearest_rank(run: Trace) -> None:
    steps = decode_steps(run, run.select(phase="decode"))
    result = outliers.percentiles(run, run.select(phase="decode"))
    assert result.total is not None
    assert result.total["p50_ns"] == np.sort(steps.total)[44]
    assert result.total["max_ns"] == steps.total.max()
    assert result.frame["share"].sum() == pytest.approx(1.0)


def test_too_few_tokens_give_no_slope(tmp_path: Path) -> None:
    trace = Trace.open(kv_run(8, {}).write(tmp_path / "short.pf"))
    result = growth.growth(trace, trace.select(phase="decode"))
    assert not len(result.frame)
    assert any("too few" in n.text for n in result.notes)


def test_prompts_of_several_traces(run: Trace, tmp_path: Path) -> None:
    other = Trace.open(kv_run(3, {}).write(tmp_path / "b.pf"))
    result = prompts.prompts([run, other])
    assert result.frame["trace"].tolist() == ["kv.pf", "b.pf"]
    assert result.frame["tokens"].tolist() == [PROMPT, PROMPT]
    calls = run.calls
    took = int((calls["end_ns"] - calls["begin_ns"]).iloc[0])
    assert result.frame["time_ns"].iloc[0] == took
    assert result.frame["per_s"].iloc[0] == pytest.approx(PROMPT * 1e9 / took)
    assert not pd.isna(result.frame["ttft_ns"].iloc[0])
