"""Overview, phases, latency, wall time, calls, self-check."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from builders import SampleRun, TraceBuilder, sample_run

from profinfer.analysis import latency, overview, threads, tokens
from profinfer.model.trace import Trace


@pytest.fixture
def run() -> SampleRun:
    return sample_run(compute=lambda node, thread: 1000 + 300 * thread)


@pytest.fixture
def trace(run: SampleRun, tmp_path: Path) -> Trace:
    return Trace.open(run.builder.write(tmp_path / "t.pf"))


def test_latency_is_what_the_run_did(run: SampleRun, trace: Trace) -> None:
    (_, _), (prefill, after), *decode = run.call_ns
    first = latency.time_to_first_token(trace)
    assert first.tolist() == [after + 600 - prefill]  # the sample ends 600 ns after the call
    ends = [end for _, end in decode]
    assert latency.time_per_output_token(trace).tolist() == np.diff(ends).tolist()
    speed = {s.phase: s for s in latency.speeds(trace)}
    assert speed["decode"].per_s == pytest.approx(3e9 / sum(e - b for b, e in decode))
    assert speed["prefill"].per_s == pytest.approx(5e9 / (after - prefill))
    assert (speed["warmup"].tokens, speed["decode"].tokens) == (2, 3)
    assert speed["decode"].sampling_ns == 3 * 500


def test_ttft_without_a_sampler_ends_with_the_call(tmp_path: Path) -> None:
    builder = TraceBuilder()
    builder.call_begin(77, 1000, n_tokens=4, pos_first=0)
    builder.call_end(77, 3000)
    builder.call_begin(77, 3100, n_tokens=4, pos_first=4)
    builder.call_end(77, 5000)
    trace = Trace.open(builder.write(tmp_path / "t.pf"))
    assert latency.time_to_first_token(trace).tolist() == [4000]


def test_quantiles_are_measured_values() -> None:
    values = np.array([10, 20, 30, 40], np.int64)
    assert [latency.quantile(values, q) for q in (0.5, 0.9, 0.99, 0.0)] == [20, 40, 40, 10]
    assert latency.quantile(values[:0], 0.5) is None


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        (("x", "-m", "/models/a.gguf"), "a"),
        (("x", "--model=/models/b.gguf"), "b"),
        (("x", "-hf", "org/repo:Q4_0"), "repo:Q4_0"),
        (("python", "app.py", "c.gguf"), "c"),
        (("x", "-m"), None),
        ((), None),
    ],
)
def test_model_name(argv: tuple[str, ...], name: str | None) -> None:
    assert overview.model_name(argv) == name


def test_overview_row(trace: Trace) -> None:
    row = overview.overview(trace).frame.iloc[0]
    assert (row["model"], row["threads"], row["generations"], row["lost"]) == ("model", "2", 1, 0)
    assert row["explained"] > 0.98


def test_wall_time_rows_sum_to_the_whole(run: SampleRun, trace: Trace) -> None:
    for phase in ("prefill", "decode", None):
        result = overview.ledger(trace, trace.select(phase=phase))
        assert result.total is not None
        assert result.frame["time_ns"].sum() == result.total["time_ns"]
        assert result.frame["share"].sum() == pytest.approx(1)
        assert (result.frame["time_ns"] >= 0).all()
    decode = overview.ledger(trace, trace.select(phase="decode")).frame.set_index("part")
    # From the first decode call to the end of the last sample.
    assert decode["time_ns"].sum() == run.call_ns[-1][1] + 600 - run.call_ns[2][0]
    assert decode.loc["sampling", "time_ns"] == 3 * 500
    assert decode.loc["walk", "time_ns"] == 3 * 50


def test_threads_compute_and_wait(run: SampleRun, trace: Trace) -> None:
    result = threads.threads(trace, trace.select(phase="decode"))
    frame = result.frame.set_index("tid")
    played = [op for graph in run.graphs[2:] for op in graph.ops]
    for tid in (77, 78):
        mine = [op for op in played if op.tid == tid]
        assert frame.loc[tid, "ops"] == len(mine)
        assert frame.loc[tid, "compute_ns"] == sum(op.end_ns - op.begin_ns for op in mine)
        assert frame.loc[tid, "wait_ns"] == sum(op.release_ns - op.end_ns for op in mine)
        in_ops = sum(op.release_ns - op.begin_ns for op in mine)
        in_graphs = sum(g.end_ns - g.begin_ns for g in run.graphs[2:])
        assert frame.loc[tid, "gap_ns"] == in_graphs - in_ops
    assert frame["thread"].tolist() == ["llama", "worker-78"]


def test_tokens_one_row_a_call(run: SampleRun, trace: Trace) -> None:
    frame = tokens.tokens(trace, trace.select(warmup=True)).frame
    assert frame["call_ns"].tolist() == [end - begin for begin, end in run.call_ns]
    assert frame["phase"].tolist() == ["warmup", "prefill", *["decode"] * 3]
    assert frame["graph_ns"].tolist() == [g.end_ns - g.begin_ns for g in run.graphs]
    assert frame["step_ns"].isna().tolist() == [True, True, True, False, False]
    slowest = tokens.tokens(trace, trace.select(warmup=True), top=2)
    assert len(slowest.frame) == 2
    assert slowest.total is not None and slowest.total["tokens"] == 10


def test_self_check_is_one_line_when_all_is_well(trace: Trace) -> None:
    result = overview.self_check(trace)
    assert [n.severity for n in result.notes] == ["info"]
    assert set(result.frame["ok"]) == {"yes"}


def test_self_check_names_what_is_wrong(tmp_path: Path) -> None:
    run = sample_run()
    run.builder.call_begin(77, 10**12)
    run.builder.counters[32 + 7] = 3  # three GRAPH_BEGIN records refused
    trace = Trace.open(run.builder.write(tmp_path / "t.pf", trailer=False))
    assert {n.severity for n in overview.self_check(trace).notes} == {"warning"}
    said = " ".join(n.text for n in overview.self_check(trace).notes)
    assert "1 calls cut off" in said
    assert "trailer" in said
    trace = Trace.open(run.builder.write(tmp_path / "t.pf"))
    assert any("3 graph_begin records" in n.text for n in overview.overview(trace).notes)


def test_time_in_graphs_that_nobody_saw_is_not_zero(tmp_path: Path) -> None:
    builder = TraceBuilder(plan={"level": "token"})
    for ts in (1_000_000, 2_000_000):
        builder.call_begin(77, ts, n_tokens=1, pos_first=ts // 1_000_000, pos_last=-1, seq=0)
        builder.call_end(77, ts + 500_000)
    only_calls = Trace.open(builder.write(tmp_path / "calls.pf"))
    result = tokens.tokens(only_calls, only_calls.select(unsampled=True))
    assert len(result.frame) == 2 and result.frame["graph_ns"].isna().all()
    assert result.total is not None and result.total["graph_ns"] is None
