"""The Perfetto export: read back with Perfetto's own protos, compared with the tables."""

from __future__ import annotations

import dataclasses
import io
import tracemalloc
from collections import Counter

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from perfetto_check import Report, check
from timelines import PID, RECORDING, START, WORKER, synthetic

from profinfer.render.packets import track_uuid
from profinfer.render.perfetto import Written, write
from profinfer.render.timeline import Timeline

MAIN, OTHER = "main thread", "worker 1"


def export(timeline: Timeline, block_ops: int = 1 << 15) -> tuple[bytes, Written]:
    out = io.BytesIO()
    written = write(timeline, out, block_ops=block_ops)
    return out.getvalue(), written


def read(timeline: Timeline, block_ops: int = 1 << 15) -> tuple[Report, Written]:
    data, written = export(timeline, block_ops)
    report = check(data)
    assert report.problems == []
    assert written.bytes == len(data)
    assert written.slices == len(report.slices)
    points = len(report.instants) + sum(map(len, report.counters.values()))
    assert written.points == points
    return report, written


def with_ops(timeline: Timeline, **columns: object) -> Timeline:
    return dataclasses.replace(timeline, ops=timeline.ops.assign(**columns))


@pytest.fixture(scope="module")
def run() -> Timeline:
    return synthetic(tokens=6, n_nodes=16, threads=2)


@pytest.fixture(scope="module")
def report(run: Timeline) -> Report:
    return read(run)[0]


def test_every_operator_is_a_slice_with_its_times_and_name(run: Timeline, report: Report) -> None:
    nodes = run.nodes.set_index("node_id")
    for tid, track in ((PID, MAIN), (WORKER, OTHER)):
        ops = run.ops[run.ops.tid == tid].sort_values("begin_ns")
        expected = [
            (
                ("RMS_NORM+MUL" if op.fused == 2 else nodes.op[op.node_id])
                + f" {nodes.name[op.node_id]}",
                nodes.role[op.node_id],
                op.begin_ns,
                op.end_ns - op.begin_ns,
            )
            for op in ops.itertuples()
        ]
        found = [(s.name, s.category, s.begin, s.dur) for s in report.on(track) if "op" in s.args]
        assert found == expected
        assert len(found) == 6 * 8


def test_every_wait_is_a_slice_of_its_own(run: Timeline, report: Report) -> None:
    ops = run.ops[run.ops.release_ns > run.ops.end_ns]
    assert len(ops)
    for tid, track in ((PID, MAIN), (WORKER, OTHER)):
        mine = ops[ops.tid == tid].sort_values("begin_ns")
        waits = [s for s in report.on(track) if s.category == "wait"]
        assert [s.begin for s in waits] == mine.end_ns.tolist()
        assert [s.dur for s in waits] == (mine.release_ns - mine.end_ns).tolist()
        assert {s.name for s in waits} == {"barrier wait"}


def test_number_of_slices(run: Timeline, report: Report) -> None:
    waits = int((run.ops.release_ns > run.ops.end_ns).sum())
    expected = {
        "call": 6,
        "sampling": 6,
        "split": 6,
        "graph": 6 * 2,  # the owner's and the worker's
        "wait": waits,
        "profinfer": 1 + 1,  # the recording, one walk
        "generation": 2,  # to the first token, and from there
    }
    found = Counter(s.category for s in report.slices if "op" not in s.args)
    assert found == expected
    assert sum("op" in s.args for s in report.slices) == len(run.ops)


def test_nesting(run: Timeline, report: Report) -> None:
    main = {(s.depth, s.category, s.parent.split(" ")[0]) for s in report.on(MAIN)}
    assert main == {
        (0, "call", ""),
        (0, "sampling", ""),
        (1, "split", "prefill"),
        (1, "split", "decode"),
        (2, "graph", "split"),
        (2, "profinfer", "split"),
        (3, "ffn", "graph"),
        (3, "norm", "graph"),
        (3, "wait", "graph"),
    }
    worker = {(s.depth, s.category, s.parent.split(" ")[0]) for s in report.on(OTHER)}
    assert worker == {
        (0, "graph", ""),
        (1, "ffn", "graph"),
        (1, "norm", "graph"),
        (1, "wait", "graph"),
    }
    calls = [s.name for s in report.on(MAIN) if s.category == "call"]
    assert calls[:2] == ["prefill (4 tokens)", "decode #0 (1 token, pos 4)"]


def test_operator_details(report: Report) -> None:
    (first, *_) = [s for s in report.on(MAIN) if s.name == "MUL_MAT t-4"]
    assert first.args == {
        "op": "MUL_MAT",
        "tensor": "t-4",
        "shape": "[576,1536] x [576,4] -> [1536,4]",
        "types": "q4_1 x f32 -> f32",
        "layer": 1,
        "role": "ffn",
        "weight": "blk.0.w",
        "node": 4,
    }
    (no_layer, *_) = [s for s in report.on(MAIN) if s.name == "MUL_MAT t-0"]
    assert "layer" not in no_layer.args


def test_graph_and_call_details(run: Timeline, report: Report) -> None:
    graphs = [s for s in report.on(OTHER) if s.category == "graph"]
    assert [s.args["graph_id"] for s in graphs] == list(range(6))
    assert graphs[0].args["cgraph"] == "0x5000"
    (call, *_) = [s for s in report.on(MAIN) if s.category == "call"]
    assert call.args["context"] == "0xffff800000001000"
    (walk,) = [s for s in report.on(MAIN) if s.category == "profinfer"]
    assert (walk.dur, walk.begin + walk.dur) == (700, run.graphs.begin_ns[0])


def test_the_worker_visit_spans_its_operators(run: Timeline, report: Report) -> None:
    ops = run.ops[run.ops.tid == WORKER].groupby("graph_id")
    visits = [s for s in report.on(OTHER) if s.category == "graph"]
    assert [s.begin for s in visits] == ops.begin_ns.min().tolist()
    assert [s.begin + s.dur for s in visits] == ops.release_ns.max().tolist()


def test_active_threads_is_the_number_of_threads_that_compute(
    run: Timeline, report: Report
) -> None:
    steps = report.counters[report.track("active threads")]
    times = [ts for ts, _ in steps]
    assert times == sorted(set(times))
    ops = run.ops
    for ts, value in steps:
        assert value == int(((ops.begin_ns <= ts) & (ts < ops.end_ns)).sum())
    changes = set(ops.begin_ns) | set(ops.end_ns)
    assert set(times) <= changes | {START}
    assert steps[-1][1] == 0


def test_rates(run: Timeline, report: Report) -> None:
    decode = report.counters[report.track("decode tok/s")]
    end = run.calls.end_ns.to_numpy()
    assert decode == [
        (end[i], pytest.approx(1e9 / (end[i] - end[i - 1]))) for i in range(2, 6)
    ]  # 0 is the prefill, and 1 has no decode step before it
    prefill = report.counters[report.track("prefill tok/s")]
    begin = run.calls.begin_ns[0]
    assert prefill == [(begin, pytest.approx(4e9 / (end[0] - begin))), (end[0], 0)]


def test_rate_drops_when_a_generation_ends(run: Timeline) -> None:
    calls = run.calls.assign(
        phase=pd.Categorical(["prefill", "decode", "decode", "prefill", "decode", "decode"]),
        generation=[0, 0, 0, 1, 1, 1],
        n_decoded=[0, 1, 1, 0, 1, 1],
    )
    report, _ = read(dataclasses.replace(run, calls=calls))
    decode = report.counters[report.track("decode tok/s")]
    assert [ts for ts, value in decode if value == 0] == [run.calls.begin_ns[3]]
    assert len(decode) == 3


def test_each_sequence_has_a_track_of_its_generations(run: Timeline) -> None:
    one = run.generations
    more = pd.concat([one, one.assign(seq=3), one.assign(seq=3, generation=1, ttft_ns=pd.NA)])
    report, _ = read(dataclasses.replace(run, generations=more))
    assert [s.name for s in report.on("generation (sequence 0)")] == ["TTFT", "decoding"]
    names = [s.name for s in report.on("generation (sequence 3)")]
    assert sorted(names) == ["TTFT", "decoding", "decoding"]


def test_time_to_first_token_ends_with_the_first_sampling(run: Timeline, report: Report) -> None:
    begin, end = run.calls.begin_ns[0], run.samples.end_ns[0]
    ttft, _ = report.on("generation")
    assert (ttft.begin, ttft.dur) == (begin, end - begin)
    (token,) = [i for i in report.instants if i.name == "first token"]
    assert token.ts == end
    assert token.args == {
        "generation": 0,
        "prompt_tokens": 4,
        "ttft_ms": pytest.approx((end - begin) / 1e6),
    }


def test_provenance_clocks_and_process(report: Report) -> None:
    assert report.attributes == {
        "profinfer.engine": "llama.cpp 1.2.3",
        "profinfer.version": "0.1.0",
    }
    (recording,) = [s for s in report.on("profinfer") if s.name == "recording"]
    assert recording.args["argv"] == "./llama-cli -m tiny.gguf"
    assert report.clocks == {3: START, 6: START, 1: RECORDING.realtime_ns}
    (process,) = [d for d in report.tracks.values() if d.HasField("process")]
    assert list(process.process.cmdline) == ["./llama-cli", "-m", "tiny.gguf"]
    threads = {d.thread.tid: d.thread for d in report.tracks.values() if d.HasField("thread")}
    assert {t: d.thread_name for t, d in threads.items()} == {PID: MAIN, WORKER: OTHER}
    assert {d.pid for d in threads.values()} == {PID}


def test_boottime_is_used_when_it_is_known(run: Timeline) -> None:
    about = dataclasses.replace(RECORDING, boottime_ns=START + 77)
    report, _ = read(dataclasses.replace(run, recording=about))
    assert report.clocks[6] == START + 77


def test_losses_and_incomplete_graphs_are_shown(run: Timeline) -> None:
    about = dataclasses.replace(RECORDING, losses={"missing_batches": 3})
    graphs = run.graphs.assign(complete=run.graphs.graph_id != 4)
    report, _ = read(dataclasses.replace(run, recording=about, graphs=graphs))
    shown = {i.name: i for i in report.instants if i.name != "first token"}
    assert shown["lost"].args == {"missing_batches": 3}
    assert shown["incomplete graph"].args == {"graph_id": 4}
    assert shown["incomplete graph"].ts == graphs.begin_ns[4]
    (recording,) = [s for s in report.on("profinfer") if s.name == "recording"]
    assert recording.args["lost.missing_batches"] == 3
    assert [s.args["complete"] for s in report.on(OTHER) if s.category == "graph"] == [
        True, True, True, True, False, True,
    ]  # fmt: skip


def test_same_input_same_bytes(run: Timeline) -> None:
    again = synthetic(tokens=6, n_nodes=16, threads=2)
    assert export(run)[0] == export(again)[0]


def test_track_ids_are_fixed() -> None:
    assert track_uuid(4000, 4001, "thread") == track_uuid(4000, 4001, "thread")
    ids = {track_uuid(p, t, k) for p in (1, 2) for t in (1, 12) for k in ("thread", "tok/s")}
    assert len(ids) == 8
    assert track_uuid(4000, 4001, "thread") == 7822895571260077652


@pytest.mark.parametrize("block_ops", [1, 20, 33])
def test_blocks_change_nothing(run: Timeline, report: Report, block_ops: int) -> None:
    blocked, _ = read(run, block_ops)
    assert sorted(map(repr, blocked.slices)) == sorted(map(repr, report.slices))
    assert blocked.counters == report.counters
    assert sorted(map(repr, blocked.instants)) == sorted(map(repr, report.instants))


def test_rows_in_any_order(run: Timeline, report: Report) -> None:
    shuffled = dataclasses.replace(
        run, **{t: getattr(run, t).sample(frac=1, random_state=1) for t in ("ops", "graphs")}
    )
    other, _ = read(shuffled)
    assert sorted(map(repr, other.slices)) == sorted(map(repr, report.slices))


@pytest.mark.parametrize("start", [1, 1 << 48, (1 << 49) - 50_000, 1 << 62])
def test_any_uptime(start: int) -> None:
    timeline = synthetic(tokens=3, start=start)
    report, _ = read(timeline)
    found = sorted(s.begin for s in report.slices if "op" in s.args)
    assert found == sorted(timeline.ops.begin_ns)


def test_many_threads() -> None:
    timeline = synthetic(tokens=2, threads=150)  # sequence ids of two bytes
    report, _ = read(timeline)
    assert {s.track for s in report.slices} >= {report.track(f"worker {n}") for n in range(1, 150)}
    assert max(v for _, v in report.counters[report.track("active threads")]) == 150


def test_text_of_any_kind(run: Timeline) -> None:
    nodes = run.nodes.assign(name="a\ufffd\0é" + "x" * 70)
    about = dataclasses.replace(
        RECORDING, argv=("x" * 100_000, "\udc80"), facts={"engine": "y" * 100_000}
    )
    report, _ = read(dataclasses.replace(run, nodes=nodes, recording=about))
    (process,) = [d for d in report.tracks.values() if d.HasField("process")]
    assert list(process.process.cmdline) == ["x" * 100_000, "?"]
    assert report.attributes["profinfer.engine"] == "y" * 100_000


def test_missing_ends_reach_the_next_of_their_kind_or_their_parents_end(run: Timeline) -> None:
    lost = dict.fromkeys([2, 5], -1)
    calls = run.calls.assign(end_ns=[lost.get(i, e) for i, e in enumerate(run.calls.end_ns)])
    report, written = read(dataclasses.replace(run, calls=calls))
    found = [s for s in report.on(MAIN) if s.category == "call"]
    assert [s.args.get("end") for s in found] == [None, None, "not recorded", None, None,
                                                  "not recorded"]  # fmt: skip
    assert found[2].begin + found[2].dur == run.calls.begin_ns[3]
    assert written.adjusted == 0


@pytest.mark.parametrize("block_ops", [1, 1 << 15])
def test_what_does_not_fit_is_cut_and_counted(run: Timeline, block_ops: int) -> None:
    ops = run.ops
    outside = ops.release_ns.where(ops.graph_id != 3, ops.release_ns + 1_000_000)
    report, written = read(with_ops(run, release_ns=outside), block_ops)
    assert written.adjusted >= 1
    assert {s.depth for s in report.on(OTHER) if s.category != "graph" and s.dur} == {1}
    assert {s.depth for s in report.on(MAIN) if "op" in s.args and s.dur} == {3}
    graphs = [s for s in report.on(MAIN) if s.category == "graph"]
    assert [s.begin + s.dur for s in graphs] == run.graphs.end_ns.tolist()
    assert len([s for s in report.slices if "op" in s.args]) == len(ops)


def test_a_split_that_outlives_its_call_is_cut(run: Timeline) -> None:
    splits = run.splits.assign(end_ns=run.splits.end_ns + 10_000)
    report, written = read(dataclasses.replace(run, splits=splits))
    assert written.adjusted == 6
    found = [s for s in report.on(MAIN) if s.category == "split"]
    assert [s.begin + s.dur for s in found] == run.calls.end_ns.tolist()


def test_operators_of_unknown_graphs_are_counted(run: Timeline) -> None:
    _, written = read(with_ops(run, graph_id=run.ops.graph_id.where(run.ops.graph_id != 2, 99)))
    assert written.orphans == int((run.ops.graph_id == 2).sum())


def test_unknown_nodes_have_a_name(run: Timeline) -> None:
    report, _ = read(with_ops(run, node_id=12345))
    assert {s.name for s in report.slices if s.category == "unknown"} == {"unknown operator"}


@pytest.mark.parametrize(
    "keep", [(), ("calls",), ("graphs", "ops", "nodes"), ("samples",), ("splits", "graphs")]
)
def test_tables_may_be_empty(run: Timeline, keep: tuple[str, ...]) -> None:
    tables = ("calls", "samples", "splits", "graphs", "nodes", "ops", "threads")
    empty = {t: getattr(run, t).iloc[:0] for t in tables if t not in keep}
    read(dataclasses.replace(run, **empty))


@given(
    seed=st.integers(0, 2**32 - 1),
    grain=st.sampled_from([1, 3, 1000]),
    block_ops=st.sampled_from([1, 7, 1 << 15]),
)
@settings(max_examples=20, deadline=None)
def test_coarse_clocks_keep_every_slice(seed: int, grain: int, block_ops: int) -> None:
    """A clock that ticks rarely gives slices of no duration, and many at one moment."""
    rng = np.random.default_rng(seed)
    tokens, threads, m = 4, 2, 5
    timeline = synthetic(tokens=tokens, n_nodes=9, threads=threads, seed=seed % 1000)
    compute = rng.integers(0, 3, (tokens, m, threads)) * grain
    slowest = compute.max(axis=2)
    release = np.cumsum(slowest.reshape(-1)).reshape(tokens, m) + START
    begin = release - slowest
    # Graphs, splits and calls touch: each ends at the moment at which the next begins.
    edge = {"begin_ns": begin[:, 0], "end_ns": release[:, -1]}
    flat = np.repeat(begin[:, None, :], threads, axis=1).reshape(-1)
    timeline = dataclasses.replace(
        timeline,
        calls=timeline.calls.assign(**edge),
        splits=timeline.splits.assign(**edge),
        graphs=timeline.graphs.assign(**edge, walk_ns=0),
        samples=timeline.samples.iloc[:0],
        ops=timeline.ops.assign(
            begin_ns=flat,
            end_ns=flat + compute.transpose(0, 2, 1).reshape(-1),
            release_ns=np.repeat(release[:, None, :], threads, axis=1).reshape(-1),
        ),
    )
    report, written = read(timeline, block_ops)
    assert written.adjusted == 0
    ops = timeline.ops
    found = Counter((s.begin, s.dur) for s in report.slices if "op" in s.args)
    assert found == Counter(zip(ops.begin_ns, ops.end_ns - ops.begin_ns, strict=True))
    for track in (MAIN, OTHER):
        for s in report.on(track):
            if s.dur and "op" in s.args:
                assert s.parent.startswith("graph")
    for category, table in (("call", timeline.calls), ("split", timeline.splits)):
        found = Counter((s.begin, s.dur) for s in report.slices if s.category == category)
        assert found == Counter(zip(table.begin_ns, table.end_ns - table.begin_ns, strict=True))


def test_memory_does_not_grow_with_the_trace() -> None:
    class Sink(io.RawIOBase):
        def write(self, data: object) -> int:
            return memoryview(data).nbytes  # type: ignore[arg-type]

    def peak(tokens: int) -> int:
        timeline = synthetic(tokens=tokens, n_nodes=800)
        sink = Sink()
        tracemalloc.start()
        try:
            write(timeline, sink, block_ops=2_000)  # type: ignore[arg-type]
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(2)  # what is imported on first use
    assert peak(120) < 1.5 * peak(20)
