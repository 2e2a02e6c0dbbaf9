"""The scheduler's events become stretches, and stretches are joined to operators."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from builders import Graph, Node, TraceBuilder

from profinfer.model import schedtables
from profinfer.model.oprows import Rows
from profinfer.model.opsched import per_operator, running_during, within
from profinfer.model.schedule import BLOCKED, REASONS, RUNNABLE, RUNNING
from profinfer.model.trace import Trace
from profinfer.tracefile.schema import CNT_LOST, Kind

OWN, OTHER, IDLE = (78, 77, "llama"), (900, 900, "stress"), (0, 0, "swapper/0")
START = 1_000


def opened(builder: TraceBuilder, tmp_path: Path) -> Trace:
    return Trace.open(builder.write(tmp_path / "t.pf"))


def stretches(trace: Trace, tid: int) -> list[tuple[str, str, int, int, int]]:
    """(state, reason, begin, end, cpu) of one thread."""
    s = trace.sched[trace.sched["tid"] == tid]
    columns = ("state", "reason", "begin_ns", "end_ns", "cpu")
    return list(zip(*(s[c].tolist() for c in columns), strict=True))


def test_states_follow_from_the_events(tmp_path: Path) -> None:
    b = TraceBuilder()
    b.thread(77, START, "llama")
    b.sched(77, 2_000, "out", cpu=1, other=OTHER, prio=110)
    b.sched(77, 3_000, "in", cpu=0, other=(77, 77, "llama"))
    b.sched(77, 4_000, "out", cpu=0, state=0x2001, other=IDLE)
    b.sched(77, 5_000, "wake", cpu=1, other=OTHER)
    b.sched(77, 5_100, "wake", cpu=1, other=OTHER)  # of one that is awake: no news
    b.sched(77, 6_000, "in", cpu=0, other=(77, 77, "llama"))
    b.sched(77, 7_000, "preempt", cpu=0, state=1, other=OWN)  # about to sleep, and preempted
    b.sched(77, 8_000, "in", cpu=1, other=(77, 77, "llama"))
    b.sched(77, 8_500, "out", cpu=1, state=2, other=IDLE)
    b.sched(77, 8_700, "wake", cpu=1, other=IDLE)
    b.sched(77, 8_800, "in", cpu=1, other=(77, 77, "llama"))
    b.sched(77, 9_000, "out", cpu=1, state=0x80, other=IDLE)
    b.thread(99, 10_000, "late")
    trace = opened(b, tmp_path)
    assert stretches(trace, 77) == [
        ("running", "", START, 2_000, 1),
        ("runnable", "preempted", 2_000, 3_000, 1),
        ("running", "", 3_000, 4_000, 0),
        ("blocked", "sleep", 4_000, 5_000, 0),
        ("runnable", "woken", 5_000, 6_000, 0),
        ("running", "", 6_000, 7_000, 0),
        ("runnable", "preempted", 7_000, 8_000, 0),
        ("running", "", 8_000, 8_500, 1),
        ("blocked", "uninterruptible", 8_500, 8_700, 1),
        ("runnable", "woken", 8_700, 8_800, 1),
        ("running", "", 8_800, 9_000, 1),
    ]  # and nothing after its end
    taken = trace.sched[trace.sched["by_tid"] >= 0]
    assert taken["by_name"].tolist() == ["stress", "llama"]
    assert taken["by_prio"].tolist() == [110, 120]
    assert taken["by_pid"].tolist() == [900, 77]
    assert trace.sched["migrated"].sum() == 2
    assert trace.schedule.own == 77


@pytest.mark.parametrize(
    ("what", "state"), [("out", "running"), ("in", "runnable"), ("wake", "blocked"), ("new", None)]
)
def test_before_the_first_event(what: str, state: str | None, tmp_path: Path) -> None:
    b = TraceBuilder()
    b.thread(77, START, "llama")
    b.sched(78, 5_000, what, other=OWN)
    found = stretches(opened(b, tmp_path), 78)
    if state is None:
        assert found[0][:2] == ("runnable", "woken")
    else:
        assert (found[0][0], found[0][2], found[0][3]) == (state, START, 5_000)


def test_a_signal_keeps_awake_who_was_about_to_sleep(tmp_path: Path) -> None:
    b = TraceBuilder()
    b.thread(77, START, "llama")
    b.sched(77, 2_000, "out", state=1, other=OTHER)
    b.sched(77, 3_000, "in", other=(77, 77, "llama"))
    b.counters[CNT_LOST + Kind.SCHED] = 0
    assert stretches(opened(b, tmp_path), 77)[1][:2] == ("runnable", "woken")
    b.counters[CNT_LOST + Kind.SCHED] = 1  # the wake-up may be what was lost
    assert stretches(opened(b, tmp_path), 77)[1][0] == "unknown"


def test_a_missing_event_makes_a_stretch_unknown(tmp_path: Path) -> None:
    b = TraceBuilder()
    b.thread(77, START, "llama")
    b.sched(77, 2_000, "out", other=OTHER)
    b.sched(77, 4_000, "out", other=OTHER)  # it ran in between, nobody knows since when
    b.sched(77, 5_000, "in", other=(77, 77, "llama"))
    b.sched(77, 6_000, "in", other=(77, 77, "llama"))
    states = [s[0] for s in stretches(opened(b, tmp_path), 77)]
    assert states == ["running", "unknown", "runnable", "unknown", "running"]


def test_operators_are_joined(tmp_path: Path) -> None:
    """Two threads, four operators; the second thread loses its CPU twice and moves once."""
    b = TraceBuilder()
    for tid in (77, 78):
        b.thread(tid, 1_000, "llama")
    graph = Graph([Node(f"n{i}", ne=(4,)) for i in range(4)])
    ns = {(0, 1): 3_000, (2, 0): 5_000}
    truth = b.run_graph(graph, begin=10_000, compute=lambda n, t: ns.get((n, t), 1_000))
    ops = [op for op in truth.ops if op.tid == 78]
    lost = ops[0].begin_ns
    b.sched(78, lost + 100, "out", cpu=1, other=OTHER)
    b.sched(78, lost + 1_100, "in", cpu=0, other=OWN)
    b.sched(78, lost + 1_200, "out", cpu=0, other=(77, 77, "llama"))
    b.sched(78, lost + 1_500, "in", cpu=0, other=OWN)
    # From the middle of one operator into the next: asleep, then waiting.
    sleep = ops[1].end_ns - 200
    b.sched(78, sleep, "out", cpu=0, state=1, other=IDLE)
    b.sched(78, sleep + 300, "wake", other=IDLE)
    b.sched(78, sleep + 500, "in", cpu=0, other=OWN)
    b.sched(78, truth.end_ns + 50, "out", cpu=0, state=1, other=IDLE)
    trace = opened(b, tmp_path)
    both = trace.ops.join(trace.op_sched)
    mine = both[both["tid"] == 78].sort_values("begin_ns").reset_index(drop=True)
    length = mine["release_ns"] - mine["begin_ns"]
    known = mine["running_ns"] + mine["runnable_ns"] + mine["blocked_ns"]
    assert (known == length).all()
    first, second, third = (mine.iloc[i] for i in range(3))
    assert (first["runnable_ns"], first["behind_other_ns"], first["behind_own_ns"]) == (
        1_300, 1_000, 300,
    )  # fmt: skip
    assert (first["migrations"], first["involuntary"]) == (1, 2)
    assert first["compute_running_ns"] == 3_000 - 1_300
    assert first["compute_runnable_ns"] == 1_300
    inside = mine["release_ns"][1] - sleep
    assert second["blocked_ns"] + third["blocked_ns"] == 300
    assert second["blocked_ns"] == min(300, inside)
    assert second["runnable_ns"] + third["runnable_ns"] == 200
    asleep = second["end_ns"] - second["begin_ns"] - second["compute_running_ns"]
    assert asleep == 200 and second["compute_runnable_ns"] == 0  # runnable after it had computed
    assert third["spinning_ns"] > 3_000  # it waited for the other thread and never left its CPU
    # The other thread was never switched: it ran all the time.
    other = both[both["tid"] == 77]
    assert (other["running_ns"] == other["release_ns"] - other["begin_ns"]).all()
    assert not other[["runnable_ns", "blocked_ns", "migrations", "involuntary"]].any().any()


@pytest.mark.parametrize("shuffled", [False, True])
def test_every_operator_against_every_stretch(shuffled: bool) -> None:
    """What look-ups find is what comparing each with each finds, in whatever order they are."""
    trace = Trace.open(Path(__file__).parents[1] / "golden" / "disturbed.pf")
    rows, schedule = trace.op_health.rows, trace.schedule
    if shuffled:
        order = np.random.default_rng(1).permutation(len(rows.tid))
        rows = Rows(*(getattr(rows, f.name)[order] for f in fields(rows)))
    told = schedtables.per_operator(rows, per_operator(rows, trace.op_health.tids, schedule))
    begin, release = rows.begin[:, None], rows.release[:, None]
    same = rows.tid[:, None] == schedule.tid

    def spent(until: np.ndarray, chosen: np.ndarray) -> list[int]:
        inside = np.minimum(schedule.end, until) - np.maximum(schedule.begin, begin)
        return list((inside.clip(min=0) * (same & chosen)).sum(axis=1))

    state, preempted = schedule.state, schedule.reason == REASONS.index("preempted")
    waits, own = (state == RUNNABLE) & preempted, schedule.by_tgid == schedule.own
    assert told["running_ns"].tolist() == spent(release, state == RUNNING)
    assert told["runnable_ns"].tolist() == spent(release, state == RUNNABLE)
    assert told["blocked_ns"].tolist() == spent(release, state == BLOCKED)
    assert told["behind_own_ns"].tolist() == spent(release, waits & own)
    assert told["behind_other_ns"].tolist() == spent(release, waits & ~own)
    end = rows.end[:, None]
    assert told["compute_running_ns"].tolist() == spent(end, state == RUNNING)
    assert told["compute_runnable_ns"].tolist() == spent(end, state == RUNNABLE)
    begins = same & (schedule.begin > begin) & (schedule.begin <= release)
    assert told["migrations"].tolist() == (begins & schedule.moved).sum(axis=1).tolist()
    lost = preempted & (state != RUNNING)
    assert told["involuntary"].tolist() == (begins & lost).sum(axis=1).tolist()


def test_a_trace_without_scheduler_events(tmp_path: Path) -> None:
    b = TraceBuilder(sched={"recorded": False, "why": "--no-sched"})
    b.run_graph(Graph([Node("n", ne=(4,))]), begin=10_000)
    trace = opened(b, tmp_path)
    assert not trace.has_sched
    assert len(trace.sched) == len(trace.op_sched) == 0


def test_within() -> None:
    begin, end = np.array([100, 200, 400]), np.array([150, 300, 500])
    since, until = np.array([0, 120, 160, 250, 450]), np.array([1000, 220, 190, 450, 460])
    assert within(begin, end, since, until).tolist() == [250, 50, 0, 100, 10]
    assert within(begin[:0], end[:0], since, until).tolist() == [0] * 5


def test_random_events_add_up(tmp_path: Path) -> None:
    """However events come, stretches of a thread follow each other without gap or overlap."""
    rng = np.random.default_rng(7)
    b = TraceBuilder()
    b.thread(77, START, "llama")
    for ts in np.sort(rng.integers(2_000, 90_000, 400)).tolist():
        tid = int(rng.integers(77, 81))
        b.sched(tid, ts, str(rng.choice(["out", "in", "wake", "preempt"])), cpu=ts % 2,
                state=int(rng.choice([0, 1, 2])), other=OTHER)  # fmt: skip
    s = opened(b, tmp_path).sched
    for _, mine in s.groupby("tid"):
        assert (mine["begin_ns"].to_numpy()[1:] == mine["end_ns"].to_numpy()[:-1]).all()
        assert mine["begin_ns"].iloc[0] == START
    assert set(s["state"]) == {"running", "runnable", "blocked", "unknown"}


def test_running_time_of_all_threads_during_stretches() -> None:
    rng = np.random.default_rng(5)
    n = 60
    begin = np.sort(rng.integers(0, 10**6, n)) + 10**15
    end = begin + rng.integers(0, 40_000, n)
    state = rng.choice([RUNNING, RUNNABLE, BLOCKED], n).astype(np.int8)
    held = SimpleNamespace(begin=begin, end=end, state=state)
    since = rng.integers(0, 10**6, 30) + 10**15
    until = since + rng.integers(1, 200_000, 30)
    ran = state == RUNNING
    for got, a, b in zip(running_during(held, since, until), since, until, strict=True):
        inside = np.minimum(end[ran], b) - np.maximum(begin[ran], a)
        assert got == inside.clip(min=0).sum()
    assert running_during(held, since[:0], until[:0]).tolist() == []
    none = SimpleNamespace(begin=begin[:0], end=end[:0], state=state[:0])
    assert not running_during(none, since, until).any()
