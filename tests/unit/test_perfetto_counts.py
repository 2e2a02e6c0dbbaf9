"""Counts, flows, marks and narrowing of the Perfetto export, read back with Perfetto's protos."""

from __future__ import annotations

import dataclasses
import io
import struct
from typing import BinaryIO, cast

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as pb
from perfetto_check import Report, check, packets
from timelines import PID, START, WORKER, synthetic

from profinfer.model.windows import Window
from profinfer.render import narrowing, opdetails
from profinfer.render.perfetto import write
from profinfer.render.series import Series, residence
from profinfer.render.timeline import OpCounts, Timeline
from profinfer.render.trackevent import MOST_INT, TemplatePool, double_hole, int_hole

COUNTERS = ("instructions", "cycles", "task-clock")


def read(timeline: Timeline, block_ops: int = 1 << 15) -> Report:
    out = io.BytesIO()
    write(timeline, out, block_ops=block_ops)
    report = check(out.getvalue())
    assert report.problems == []
    return report


@pytest.fixture(scope="module")
def run() -> Timeline:
    return synthetic(tokens=5, n_nodes=16, threads=2, counters=COUNTERS)


@given(
    whole=st.lists(st.integers(0, MOST_INT), min_size=2, max_size=2),
    real=st.floats(allow_nan=False),
)
def test_holes_take_any_value(whole: list[int], real: float) -> None:
    pool = TemplatePool(5, values=2)
    event = pb.TrackEvent(type=1, name="x")
    event.debug_annotations.add(name="a", int_value=int_hole(0))
    event.debug_annotations.add(name="b", int_value=int_hole(1))
    with_ints = pool.add(pb.TracePacket(track_event=event).SerializeToString())
    gauge = pb.TrackEvent(type=4, double_counter_value=double_hole(0))
    with_double = pool.add(pb.TracePacket(track_event=gauge).SerializeToString())
    bits = struct.unpack("<q", struct.pack("<d", real))[0]
    data = pool.encode(
        np.array([with_ints, with_double, with_ints]),
        np.array([1, 2, 3]),
        np.array([1, 1, 1]),
        np.array([whole, [bits, 0], whole[::-1]]),
    )
    first, second, third = (p.track_event for _, p in packets(data.tobytes()))
    assert [a.int_value for a in first.debug_annotations] == whole
    assert second.double_counter_value == real
    assert [a.int_value for a in third.debug_annotations] == whole[::-1]


def test_every_operator_carries_what_it_counted(run: Timeline) -> None:
    assert run.counted is not None
    report = read(run)
    found = {
        (tid, s.begin): [s.args[name] for name in COUNTERS]
        for tid, track in ((PID, "main thread"), (WORKER, "worker 1"))
        for s in report.on(track)
        if "op" in s.args
    }
    keys = zip(run.ops.tid.tolist(), run.ops.begin_ns.tolist(), strict=True)
    assert found == dict(zip(keys, run.counted.values.astype(int).tolist(), strict=True))


def test_what_was_not_counted_is_left_out(run: Timeline) -> None:
    assert run.counted is not None
    values = run.counted.values.copy()
    values[3] = np.nan
    values[4, 1] = np.nan
    counted = OpCounts(run.counted.counters, values, run.counted.since_ns)
    report = read(dataclasses.replace(run, counted=counted))
    args = {
        (s.begin, s.dur): s.args for s in report.slices if "op" in s.args
    }  # distinct times, by construction
    rows = run.ops.iloc[[3, 4]]
    none, some = (args[op.begin_ns, op.end_ns - op.begin_ns] for op in rows.itertuples(index=False))
    assert not set(COUNTERS) & set(none)
    assert set(COUNTERS) & set(some) == {"instructions", "task-clock"}


@pytest.mark.parametrize("block_ops", [20, 1 << 15])
def test_rates_are_steps_of_each_thread(run: Timeline, block_ops: int) -> None:
    report = read(run, block_ops)
    threads = {d.thread.tid: u for u, d in report.tracks.items() if d.HasField("thread")}
    for name, unit, value in (
        ("cycles", "cycles/s", 3e9),
        ("on CPU (task-clock)", "CPUs", 4.0),
        ("IPC", "instructions/cycle", 2 / 3),
    ):
        tracks = {d.parent_uuid: u for u, d in report.tracks.items() if d.name == name}
        assert set(tracks) == set(threads.values())
        for tid, thread in threads.items():
            assert report.tracks[tracks[thread]].counter.unit_name == unit
            points = report.counters[tracks[thread]]
            ops = run.ops[run.ops.tid == tid].sort_values("begin_ns")
            # Between an operator and the next one, where it waits, nothing is counted.
            for op in ops.itertuples():
                at = max(i for i, (ts, _) in enumerate(points) if ts <= op.begin_ns)
                assert points[at][1] == pytest.approx(value)
                after = [v for ts, v in points if op.end_ns <= ts < op.release_ns]
                assert after[:1] in ([], [0.0])
            assert points[-1] == (ops.end_ns.max(), 0.0)


def test_texts_of_single_executions(run: Timeline) -> None:
    details = pd.DataFrame(
        {"graph_id": [1, 2, 2], "node_id": [4, 4, 8], "experts": ["3, 9", "0, 1", "3, 9"]}
    )
    report = read(dataclasses.replace(run, details=details), 20)
    ops = run.ops.merge(details, how="left")
    wanted = sorted(
        (op.begin_ns, op.end_ns - op.begin_ns, op.experts)
        for op in ops.dropna().itertuples(index=False)
    )
    found = sorted((s.begin, s.dur, s.args["experts"]) for s in report.slices
                   if "experts" in s.args)  # fmt: skip
    assert found == wanted
    assert len(found) == 6


def test_experts_are_told_of_every_product_of_their_layer() -> None:
    nodes = pd.DataFrame(
        {
            "node_id": [0, 1, 2, 3, 4],
            "def_id": [0, 0, 0, 0, 1],
            "layer": [0, 0, 0, 1, 0],
            "op": ["MUL_MAT_ID", "GLU", "MUL_MAT_ID", "MUL_MAT_ID", "MUL_MAT_ID"],
        }
    )
    one = [(7, 0, 0, 1, 4), (7, 0, 0, 0, 9), (7, 3, 0, 0, 2)]
    several = [(8, 0, row, slot, e) for row, slot, e in [(0, 0, 5), (1, 0, 5), (0, 1, 1)]]
    table = pd.DataFrame(one + several, columns=["graph_id", "node_id", "row", "slot", "expert"])
    found = opdetails.of_experts(table, nodes)
    assert found.to_numpy().tolist() == [
        [7, 0, "9, 4"], [7, 2, "9, 4"], [7, 3, "2"], [8, 0, "1, 5 x2"], [8, 2, "1, 5 x2"],
    ]  # fmt: skip


def test_experts_of_a_run_without_single_tokens() -> None:
    nodes = pd.DataFrame({"node_id": [0], "def_id": [0], "layer": [0], "op": ["MUL_MAT_ID"]})
    several = [(8, 0, row, 0, expert) for row, expert in enumerate([5, 5, 1])]
    table = pd.DataFrame(several, columns=["graph_id", "node_id", "row", "slot", "expert"])
    assert opdetails.of_experts(table, nodes)["experts"].tolist() == ["1, 5 x2"]
    one = opdetails.of_experts(table[:1], nodes)
    assert one["experts"].tolist() == ["5"]


def test_flows_lead_from_the_slowest_thread_to_every_reader(run: Timeline) -> None:
    # Node 4 reads 0 and 2; node 6, which node 5 runs fused with, reads what 5 reads: 4.
    producers = {4: (0, 2), 5: (4,), 6: (5,), 8: (6,)}
    report = read(dataclasses.replace(run, producers=producers), 20)
    ops = run.ops
    wanted = set()
    for graph_id, graph in ops.groupby("graph_id"):
        nodes = dict(iter(graph.groupby("node_id")))
        for source, target in ((0, 4), (2, 4), (4, 6), (6, 8)):
            slowest = nodes[source].loc[nodes[source].end_ns.idxmax()]
            wanted |= {
                (graph_id, int(slowest.begin_ns), int(slowest.tid), int(begin), int(tid))
                for begin, tid in zip(nodes[target].begin_ns, nodes[target].tid, strict=True)
            }
    tids = {u: d.thread.tid for u, d in report.tracks.items() if d.HasField("thread")}
    graph_of = dict(zip(ops.begin_ns, ops.graph_id, strict=True))
    found = {
        (graph_of[f.source.begin], f.source.begin, tids[f.source.track], f.target.begin,
         tids[f.target.track])
        for f in report.flows
    }  # fmt: skip
    assert found == wanted
    assert len(report.flows) == len(wanted) == 5 * 4 * 2
    assert all(f.source.begin + f.source.dur <= f.target.begin for f in report.flows)


def test_tokens_have_instants_with_their_time(run: Timeline) -> None:
    report = read(run)
    tokens = [i for i in report.instants if i.name.startswith("token #")]
    decode = run.calls[run.calls.token_index >= 0]
    assert [(t.name, t.ts) for t in tokens] == [
        (f"token #{c.token_index}", c.end_ns) for c in decode.itertuples()
    ]
    steps = np.diff(decode.end_ns)
    assert [t.args["tpot_ms"] for t in tokens[1:]] == pytest.approx(steps / 1e6)
    assert "tpot_ms" not in tokens[0].args


def test_switches_of_the_recorder_are_instants(run: Timeline) -> None:
    first, last = int(run.calls.begin_ns.min()), int(run.calls.end_ns.max())
    limits = np.iinfo(np.int64)
    windows = (
        Window(int(limits.min), first + 100, "", "6 % of 2 %"),
        Window(last - 100, int(limits.max), "0.5 % of 2 %"),
    )
    report = read(dataclasses.replace(run, windows=windows))
    track = report.track("operators recorded")
    found = [(i.ts, i.name, i.args) for i in report.instants if i.track == track]
    assert found == [
        (first + 100, "to level graph", {"why": "6 % of 2 %"}),
        (last - 100, "to level op", {"why": "0.5 % of 2 %"}),
    ]


def test_throttling_is_marked_where_an_idle_cpu_shows_it(run: Timeline) -> None:
    at = int(run.calls.begin_ns.min()) + 100
    sched = pd.DataFrame(
        {
            "tid": PID,
            "begin_ns": [at, at + 100, at + 200],
            "end_ns": [at + 100, at + 200, at + 300],
            "state": "runnable",
            "reason": ["preempted", "woken", "preempted"],
            "cpu": 1,
            "by_tid": [0, -1, 33],
            "by_name": ["", "", "stress"],
            "by_pid": [0, -1, 33],
            "by_prio": 120,
        }
    )
    quiet = dataclasses.replace(run, sched=sched)
    assert not any(i.name == "throttled" for i in read(quiet).instants)
    report = read(dataclasses.replace(quiet, quota=True))
    (hit,) = [i for i in report.instants if i.name == "throttled"]
    assert (hit.ts, hit.args) == (at, {"tid": PID, "cpu": 1, "for_us": 0.1})


def test_series_are_counters() -> None:
    table = pd.DataFrame(
        {
            "ts_ns": START + np.array([0, 10, 20]), "rss": [5, 7, 7], "anon": [1, 1, 1],
            "file": [4, 6, 6], "read": [100, 100, 4196], "major": [1, 2, 2], "minor": [3, 3, 9],
        }
    )  # fmt: skip
    series = residence(table)
    speed = Series("CPU 0", "MHz", START + np.array([-5, 10]), np.array([3000.0, 2400.5]))
    run = synthetic(tokens=2)
    first = int(run.calls.begin_ns.min())
    report = read(dataclasses.replace(run, series=(*series, speed)))
    values = {d.name: report.counters.get(u) for u, d in report.tracks.items()
              if d.HasField("counter")}  # fmt: skip
    assert first == START
    assert values["RSS"] == [(START, 5), (START + 10, 7)]
    assert values["read from disk"] == [(START, 0), (START + 20, 4096)]
    assert values["faults: major, so far"] == [(START, 0), (START + 10, 1)]
    assert values["CPU 0"] == [(START, 3000), (START + 10, 2400.5)]
    assert report.tracks[report.track("CPU 0")].counter.unit_name == "MHz"


def test_some_threads_keep_the_calls_of_all(run: Timeline) -> None:
    report = read(narrowing.of_threads(run, [WORKER]))
    assert sum("op" in s.args for s in report.on("worker 1")) == len(run.ops) // 2
    assert {s.category for s in report.on("main thread")} == {
        "call", "graph", "split", "sampling", "profinfer",
    }  # fmt: skip


def test_short_operators_are_left_out_and_counted(run: Timeline) -> None:
    limit = 4_000
    out = io.BytesIO()
    written = write(dataclasses.replace(run, min_ns=limit), out)
    report = check(out.getvalue())
    assert report.problems == []
    length = run.ops.end_ns - run.ops.begin_ns
    wait = run.ops.release_ns - run.ops.end_ns
    assert sum("op" in s.args for s in report.slices) == int((length >= limit).sum())
    short = int((length < limit).sum() + ((wait > 0) & (wait < limit)).sum())
    assert written.short == short > 0
    # Who was at work is still counted of all.
    assert len(report.counters[report.track("active threads")]) == len(
        read(run).counters[report.track("active threads")]
    )


class Sink:
    def write(self, data: bytes) -> int:
        return len(data)


def size_of(timeline: Timeline) -> int:
    return write(timeline, cast(BinaryIO, Sink())).bytes


def test_a_limit_is_made_use_of() -> None:
    run = synthetic(tokens=30, n_nodes=40)
    dear = np.arange(10, 14)  # neither first nor last: the mean says nothing of those

    def size(part: Timeline) -> int:
        costs = np.where(np.isin(part.ops["graph_id"], dear), 500, 10)
        return 10_000 + int(costs.sum())

    limit = 10_000 + 10 * len(run.ops) // 2
    fitted = narrowing.fit(run, limit, size)
    assert 0.85 * limit <= size(fitted.timeline) <= limit
    assert not set(dear) & set(fitted.timeline.ops["graph_id"])
    # And where the first ones are dear, they do not go beyond it.
    dear = np.arange(4)
    limit = 10_000 + 500 * int(np.isin(run.ops["graph_id"], dear).sum())
    fitted = narrowing.fit(run, limit, size)
    assert size(fitted.timeline) <= limit and len(fitted.timeline.ops)


def test_a_limit_that_all_fits_leaves_nothing_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrowing, "_SAMPLE", 10)
    run = synthetic(tokens=30, n_nodes=40)

    def size(part: Timeline) -> int:  # the first operators look far dearer than they are
        return 1_000 + 100 * min(len(part.ops), 10) + 10 * len(part.ops)

    assert narrowing.fit(run, size(run), size).left_out is None


def test_a_timeline_is_made_to_fit() -> None:
    run = synthetic(tokens=30, n_nodes=40)
    slow = 17
    graphs = run.graphs.assign(
        end_ns=run.graphs.end_ns + np.where(run.graphs.graph_id == slow, 1_000, 0)
    )
    run = dataclasses.replace(run, graphs=graphs)
    whole = size_of(run)
    assert narrowing.fit(run, whole, size_of).left_out is None
    fitted = narrowing.fit(run, whole // 2, size_of)
    assert whole // 4 < size_of(fitted.timeline) <= whole // 2
    kept = set(fitted.timeline.ops.graph_id)
    length = run.graphs.end_ns - run.graphs.begin_ns
    assert {0, 1, 28, 29, int(length.idxmax())} <= kept
    assert len(fitted.timeline.calls) == 30
    assert fitted.left_out is not None
    assert f"{len(kept)} of 30 calls are there" in fitted.left_out
    with pytest.raises(narrowing.TooLarge):
        narrowing.fit(run, 1000, size_of)
