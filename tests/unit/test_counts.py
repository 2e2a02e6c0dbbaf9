"""Counts per operator and thread from traces whose counters are known functions of time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from builders import Counting, TraceBuilder, sample_run

from profinfer.analysis.counters import counters
from profinfer.cli import run as run_cli
from profinfer.cli.export import command
from profinfer.model.trace import Trace
from profinfer.render.opnames import OpNames
from profinfer.render.timeline import Timeline
from profinfer.tracefile.schema import NOT_COUNTED

START = 1_000_000_000
CORES = [
    {"name": "cycles", "side": "user", "hardware": True},
    {"name": "instructions", "side": "user", "hardware": True},
]
BYTES = [{"name": "r2a", "side": "user", "hardware": True, "bytes": 64, "direction": "read"}]


def steady(*per_ns: int, part: float = 1.0) -> Counting:
    """Counters that go up by so much a nanosecond, and are counted during a part of the time."""

    def read(tid: int, ts: int) -> tuple[list[int], list[int], list[int]]:
        passed = ts - START + 1000 * tid
        values = [int(rate * passed * part) for rate in per_ns]
        return values, [passed] * len(per_ns), [int(passed * part)] * len(per_ns)

    return read


def recorded(
    tmp_path: Path, counting: Counting, asked: list[dict[str, object]], mode: str = "site"
) -> Trace:
    builder = TraceBuilder(plan={"ops": {"mode": mode}, "counters": asked})
    builder.counting = counting
    run = sample_run(builder=builder, compute=lambda node, thread: 2000 + 700 * thread + node)
    return Trace.open(run.builder.write(tmp_path / "t.pf"))


def test_from_arrival_to_arrival(tmp_path: Path) -> None:
    trace = recorded(tmp_path, steady(3, 6), CORES)
    assert trace.problems == [] and not any(trace.losses.values())
    since = trace.counted.since_ns
    assert (since >= 0).all()
    passed = trace.ops["end_ns"] - since
    assert list(trace.counters.columns) == ["cycles", "instructions"]
    assert (trace.counters["cycles"] == 3 * passed).all()
    assert (trace.counters["instructions"] == 6 * passed).all()
    # The slower thread never waits: its counts are those of its compute.
    slow = trace.ops["tid"] == 78
    assert (passed == trace.ops["end_ns"] - trace.ops["begin_ns"])[slow].mean() > 0.9
    assert (passed > trace.ops["end_ns"] - trace.ops["begin_ns"])[~slow].mean() > 0.9


def test_begin_to_end_where_there_is_a_record_of_the_begin(tmp_path: Path) -> None:
    trace = recorded(tmp_path, steady(3, 6), CORES, mode="pair")
    compute = trace.ops["end_ns"] - trace.ops["begin_ns"]
    assert (trace.counters["cycles"] == 3 * compute).all()


def test_turns_are_scaled_and_said(tmp_path: Path) -> None:
    whole = recorded(tmp_path, steady(4, 8), CORES).counters.sum()
    trace = recorded(tmp_path, steady(4, 8, part=0.25), CORES)
    assert trace.counted.running == pytest.approx([0.25, 0.25], abs=0.001)
    assert trace.counters.sum().to_numpy() == pytest.approx(whole.to_numpy(), rel=0.01)
    view = counters(trace, trace.select(phase="decode"), "op")
    said = " ".join(note.text for note in view.notes)
    assert "took turns, counted during cycles 25 %, instructions 25 %" in said
    assert view.frame["ipc"].to_numpy() == pytest.approx(2.0, rel=0.01)


def test_a_counter_that_never_ran_is_not_zero(tmp_path: Path) -> None:
    trace = recorded(tmp_path, steady(4, part=0.0), BYTES)
    assert trace.counters["r2a"].isna().all()
    view = counters(trace, trace.select(phase="decode"), "op")
    assert any("without a count, left out: r2a 1e+02 %" in n.text for n in view.notes)


def test_what_was_not_read_is_not_known(tmp_path: Path) -> None:
    def read(tid: int, ts: int) -> tuple[list[int], list[int], list[int]]:
        values, enabled, running = steady(3, 6)(tid, ts)
        return [NOT_COUNTED if tid == 78 else values[0], values[1]], enabled, running

    trace = recorded(tmp_path, read, CORES)
    assert (trace.counters["cycles"].isna() == (trace.ops["tid"] == 78)).all()
    assert trace.counters["instructions"].notna().all()


def test_a_lost_batch_of_counts(tmp_path: Path) -> None:
    """Batches whose COUNTS record is missing have operators, but no counts."""
    builder = TraceBuilder(plan={"counters": CORES})
    builder.counting = steady(3, 6)
    run = sample_run(builder=builder)
    plain = recorded(tmp_path, steady(3, 6), CORES)
    builder.counting = None
    truth = builder.run_graph(run.definitions[-1], begin=run.graphs[-1].end_ns + 10_000)
    assert truth.ops
    trace = Trace.open(builder.write(tmp_path / "u.pf"))
    assert len(trace.ops) > len(plain.ops)
    gone = trace.counters["cycles"].isna()
    last = trace.ops["graph_id"] == trace.ops["graph_id"].max()
    assert gone[last].all() and not gone[~last].any()


def test_bytes_and_rates(tmp_path: Path) -> None:
    trace = recorded(tmp_path, steady(1), BYTES)
    view = counters(trace, trace.select(phase="decode"), "op")
    frame, total = view.frame, view.total
    assert total is not None
    assert (frame["read_bytes"] == 64 * frame["r2a"]).all()
    rate = frame["read_bytes"] * 1e9 / frame["wall_ns"]
    assert frame["read_per_s"].to_numpy() == pytest.approx(rate.to_numpy())
    assert total["read_bytes"] == frame["read_bytes"].sum()
    by_node = counters(trace, trace.select(phase="decode"), "node")
    assert by_node.frame["r2a"].sum() == pytest.approx(frame["r2a"].sum())


def test_without_counters_there_is_an_empty_table(tmp_path: Path) -> None:
    trace = Trace.open(sample_run().builder.write(tmp_path / "t.pf"))
    assert isinstance(trace.counters, pd.DataFrame) and trace.counters.shape[1] == 0
    assert len(trace.counters) == len(trace.ops)
    assert not np.isnan(trace.counted.running).any()


def test_slices_of_a_timeline_say_what_they_counted(tmp_path: Path) -> None:
    trace = recorded(tmp_path, steady(3, 6), CORES)
    timeline = Timeline.of_trace(trace)
    names = OpNames(timeline.nodes)
    node = int(trace.ops["node_id"].iloc[-1])
    of_node = trace.counters[trace.ops["node_id"] == node].sum()
    runs = (trace.op_walls["node_id"] == node).sum()
    args = names.describe(node, 1).args
    assert args["mean cycles"] == round(of_node["cycles"] / runs)
    assert args["mean instructions"] == round(of_node["instructions"] / runs)


def test_counters_are_among_the_tables_as_files(tmp_path: Path) -> None:
    trace = recorded(tmp_path, steady(3, 6), CORES)
    for form, read in (("csv", pd.read_csv), ("parquet", pd.read_parquet)):
        assert run_cli(command, [str(trace.path), f"--{form}", str(tmp_path / form)]) == 0
        found = read(tmp_path / form / f"counters.{form}")
        pd.testing.assert_frame_equal(found, trace.counters, check_dtype=False)
        assert len(found) == len(trace.ops)
    field = pq.read_schema(tmp_path / "parquet" / "counters.parquet").field("cycles")
    assert field.metadata[b"unit"] == b"number" and field.metadata[b"description"]
