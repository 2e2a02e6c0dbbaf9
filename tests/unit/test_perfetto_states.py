"""Thread states on the timeline: every stretch, below its thread, with who took the CPU."""

from __future__ import annotations

import io
from pathlib import Path

from builders import sample_run
from perfetto_check import Report, check

from profinfer.model.trace import Trace
from profinfer.render.perfetto import write
from profinfer.render.timeline import Timeline


def exported(trace: Trace, phase: str | None = None, block_ops: int = 40) -> Report:
    out = io.BytesIO()
    chosen = trace.select(phase=phase) if phase else None
    write(Timeline.of_trace(trace, chosen), out, block_ops=block_ops)
    return check(out.getvalue())


def disturbed(tmp_path: Path) -> Trace:
    run = sample_run(decode_tokens=3)
    for graph in run.graphs:
        at = graph.begin_ns
        run.builder.sched(78, at + 200, "out", cpu=1, other=(900, 900, "stress"), prio=110)
        run.builder.sched(78, at + 900, "in", cpu=0, other=(78, 77, "worker-78"))
        run.builder.sched(77, at + 2_000, "out", cpu=0, state=1)
        run.builder.sched(77, at + 2_500, "wake", cpu=1, other=(78, 77, "worker-78"))
        run.builder.sched(77, at + 2_600, "in", cpu=0, other=(77, 77, "llama"))
    run.builder.sched(4242, run.graphs[0].begin_ns, "in", other=(4242, 77, "logger"))
    return Trace.open(run.builder.write(tmp_path / "t.pf"))


def test_every_stretch_is_a_slice_below_its_thread(tmp_path: Path) -> None:
    trace = disturbed(tmp_path)
    report = exported(trace)
    assert report.problems == []
    threads = {d.thread.tid: u for u, d in report.tracks.items() if d.HasField("thread")}
    tracks = {u: d.parent_uuid for u, d in report.tracks.items() if d.name == "state"}
    assert sorted(tracks.values()) == sorted(threads.values())
    for tid, uuid in threads.items():
        (track,) = [t for t, parent in tracks.items() if parent == uuid]
        mine = sorted((s for s in report.slices if s.track == track), key=lambda s: s.begin)
        wanted = trace.sched[trace.sched["tid"] == tid]
        # The timeline begins with the first call and ends with the last sample.
        assert [s.begin for s in mine][1:] == wanted["begin_ns"].tolist()[1:]
        assert [s.begin + s.dur for s in mine][:-1] == wanted["end_ns"].tolist()[:-1]
        assert all(s.depth == 0 and s.category == "sched" for s in mine)
        names = wanted["state"].astype(str).where(wanted["state"] != "blocked", wanted["reason"])
        assert [s.name for s in mine] == names.tolist()
    taken = [s for s in report.slices if "taken_by" in s.args]
    assert len(taken) == len(trace.graphs)
    assert taken[0].args == {
        "cpu": 1, "why": "preempted", "taken_by": "stress", "taken_by_pid": 900, "prio": 110,
    }  # fmt: skip
    # A thread that never came near the engine has no track.
    assert 4242 not in threads


def test_a_selection_is_not_overrun(tmp_path: Path) -> None:
    report = exported(disturbed(tmp_path), "decode")
    assert report.problems == []
    calls = [s for s in report.slices if s.category == "call"]
    states = [s for s in report.slices if s.category == "sched"]
    ends = [s.begin + s.dur for s in report.slices if s.category != "sched"]
    assert states
    assert min(s.begin for s in states) >= min(s.begin for s in calls)
    assert max(s.begin + s.dur for s in states) <= max(ends)


def test_blocks_change_nothing(tmp_path: Path) -> None:
    trace = disturbed(tmp_path)
    small, large = exported(trace, block_ops=8), exported(trace, block_ops=100_000)
    assert small.problems == large.problems == []
    assert sorted(map(str, small.slices)) == sorted(map(str, large.slices))


def test_without_scheduler_events_there_are_no_tracks(tmp_path: Path) -> None:
    trace = Trace.open(sample_run().builder.write(tmp_path / "t.pf"))
    report = exported(trace)
    assert report.problems == []
    assert not [d for d in report.tracks.values() if d.name == "state"]
