"""What is wrong with a run, found; and nothing found where nothing is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import Graph, Node, TraceBuilder

from profinfer.analysis import findings, operators, scheduling, threads
from profinfer.analysis.finding import Finding
from profinfer.model.trace import Trace

IDLE = (0, 0, "swapper/0")
STRESS = (900, 900, "stress")
MS = 1_000_000


class Run:
    """Graphs of 20 nodes; each node takes each thread 1 ms unless told otherwise."""

    def __init__(self, tids: tuple[int, ...] = (77, 78), **changes: Any) -> None:
        self.b = TraceBuilder(**changes)
        self.tids = tids
        self.now = 1_000_000
        for tid in tids:
            self.b.thread(tid, self.now, "llama" if tid == 77 else f"worker-{tid}")
        self.graph = Graph([Node(f"n{i}", ne=(4,)) for i in range(20)])

    def graphs(self, count: int, compute: Callable[[int, int], int] | int = MS) -> None:
        for _ in range(count):
            truth = self.b.run_graph(self.graph, begin=self.now, tids=self.tids, compute=compute)
            self.now = truth.end_ns + 100_000

    def away(
        self,
        tid: int,
        at: int,
        ns: int,
        other: tuple[int, int, str],
        prio: int = 120,
        cpu: int = 0,
        kernel: bool = False,
    ) -> None:
        """The thread loses its CPU to ``other`` for some time."""
        self.b.sched(tid, at, "out", cpu=0, other=other, prio=prio, kernel=kernel)
        self.b.sched(tid, at + ns, "in", cpu=cpu, other=(tid, 77, "llama"))

    def trace(self, path: Path) -> Trace:
        return Trace.open(self.b.write(path / "t.pf"))


def found(trace: Trace) -> dict[str, Finding]:
    return {f.name: f for f in findings.findings(trace, trace.select())}


def test_nothing_is_wrong_with_an_undisturbed_run(tmp_path: Path) -> None:
    run = Run()
    run.graphs(10)
    run.away(77, 50 * MS, 100_000, (15, 15, "rcu_preempt"))
    run.away(78, 90 * MS, 200_000, (500, 500, "cron"), cpu=1)
    trace = run.trace(tmp_path)
    assert found(trace) == {}
    assert len(findings.result(trace, trace.select()).frame) == 0


def test_more_threads_than_cpus(tmp_path: Path) -> None:
    run = Run((77, 78, 79, 80))
    run.graphs(10)
    for tid in run.tids:
        for at in range(2 + tid - 77, 180, 4):
            run.away(tid, at * MS, 2 * MS, (77 if tid != 77 else 78, 77, "llama"))
    trace = run.trace(tmp_path)
    said = found(trace)["oversubscribed"]
    assert said.share == pytest.approx(0.45, abs=0.1)
    assert said.text.startswith("4 threads share 2 CPUs: 4")
    assert said.text.endswith("% of op time runnable, not running")
    assert said.tries == "-t 2"
    assert said.evidence["threads"].value == 4
    assert "shared" not in found(trace)
    # The same on four CPUs: something else must keep them busy.
    run.b.meta["limits"] = {"cpus": [0, 1, 2, 3]}
    said_also = found(run.trace(tmp_path))
    assert "oversubscribed" not in said_also
    assert said_also["shared"].text.startswith("4 threads took turns although they may use 4 CPUs")


def test_the_prize_of_fewer_threads(tmp_path: Path) -> None:
    """Four threads run for a quarter of the time: 2 CPUs would do it in half of the wall time."""
    run = Run((77, 78, 79, 80))
    run.graphs(10)
    for tid in run.tids:
        for at in range(1, 201, 4):
            run.away(tid, at * MS + (tid - 77) * MS, 3 * MS, (77 if tid != 77 else 78, 77, "llama"))
    said = found(run.trace(tmp_path))["oversubscribed"]
    assert said.prize is not None and said.prize.how.endswith("spread evenly over 2 CPUs")
    assert said.prize.ns == pytest.approx(100 * MS, rel=0.03)
    assert said.prize.share == pytest.approx(0.5, abs=0.02)


def test_who_drove_a_thread_away_is_named(tmp_path: Path) -> None:
    """One switch is enough: it is moved, and from then on two threads share a CPU."""
    run = Run()
    run.graphs(10)
    run.away(78, 5 * MS, 100_000, (44, 44, "kworker"), cpu=1)
    run.b.sched(78, 20 * MS, "out", cpu=1, other=STRESS, prio=110)
    run.b.sched(78, 21 * MS, "in", cpu=0, other=(78, 77, "worker-78"))
    for at in range(22, 180, 4):
        run.away(78, at * MS, 2 * MS, (77, 77, "llama"))
        run.away(77, (at + 2) * MS, 2 * MS, (78, 77, "worker-78"))
    said = found(run.trace(tmp_path))
    assert set(said) == {"shared"}
    assert said["shared"].text.endswith("; the longest after stress (pid 900, nice -10) took CPU 1")


def test_another_process_takes_the_cpu(tmp_path: Path) -> None:
    run = Run()
    run.graphs(10)
    for at in range(10, 190, 20):
        run.away(78, at * MS, 4 * MS, STRESS, prio=110)
    said = found(run.trace(tmp_path))
    assert said["preempted"].text.startswith(
        "preempted by stress (pid 900, nice -10): it was given"
    )
    assert "9 times, 9.0 % of op time runnable behind it" in said["preempted"].text
    run.b.meta["sched"]["recorder"] = 900
    assert found(run.trace(tmp_path))["preempted"].text.startswith(
        "preempted by profinfer's own recorder (pid 900, nice -10)"
    )
    assert "oversubscribed" not in said


def test_a_real_time_process_is_named_so(tmp_path: Path) -> None:
    run = Run()
    run.graphs(2)
    run.away(77, 5 * MS, 20 * MS, STRESS, prio=49)
    assert "real-time priority 50" in found(run.trace(tmp_path))["preempted"].text


def test_a_process_has_the_name_it_had_last(tmp_path: Path) -> None:
    """Longest away at its first moment, when it still was its parent's copy."""
    run = Run()
    run.graphs(10)
    run.away(78, 10 * MS, 20 * MS, (900, 900, "nice"), prio=120)
    for at in range(40, 190, 20):
        run.away(78, at * MS, MS, (900, 900, "sh"), prio=110)
    said = found(run.trace(tmp_path))["preempted"]
    assert said.text.startswith("preempted by sh (pid 900, nice -10)")
    moved = Run()
    moved.graphs(10)
    moved.away(78, 5 * MS, MS, (900, 900, "nice"), cpu=1)
    moved.b.sched(78, 150 * MS, "out", cpu=1, other=(900, 900, "sh"), prio=110)
    moved.b.sched(78, 151 * MS, "in", cpu=1, other=(78, 77, "worker-78"))
    who = scheduling.displacer(moved.trace(tmp_path))
    assert who is not None and (who.name, who.about, who.cpu) == ("sh", "pid 900, nice -10", 0)


def test_threads_of_the_kernel_cannot_be_moved(tmp_path: Path) -> None:
    run = Run()
    run.graphs(2)
    run.away(77, 5 * MS, 20 * MS, (15, 15, "rcu_preempt"), kernel=True)
    said = found(run.trace(tmp_path))["preempted"]
    assert said.text.startswith("preempted by rcu_preempt, a thread of the kernel (pid 15, nice 0)")
    assert "renice" not in said.tries and "isolcpus" in said.tries


def test_time_outside_of_operators_does_not_count(tmp_path: Path) -> None:
    run = Run()
    run.graphs(2)
    run.away(77, run.now + MS, 500 * MS, STRESS)
    assert found(run.trace(tmp_path)) == {}


def test_one_straggler(tmp_path: Path) -> None:
    slow = Run()
    slow.graphs(5, lambda n, t: 2 * MS if t == 1 else MS)
    slow.away(77, run_end(slow), 1_000, IDLE)
    said = found(slow.trace(tmp_path))
    assert "thread 78 (worker-78) is what 100 % of all waiting" in said["straggler"].text
    assert "a slower core, or a larger part of the work" in said["straggler"].text
    assert said["spinning"].share == pytest.approx(0.25, abs=0.01)
    # The same, because it has no CPU for half of the time.
    away = Run()
    away.graphs(5, lambda n, t: 2 * MS if t == 1 else MS)
    for i in range(100):
        away.away(78, 1_000_000 + i * 2 * MS + 300_000, MS, STRESS)
    assert "it had no CPU" in found(away.trace(tmp_path))["straggler"].text


def run_end(run: Run) -> int:
    return run.now + MS


def test_waiting_for_each_other_in_turn_is_no_straggler(tmp_path: Path) -> None:
    run = Run()
    run.graphs(5, lambda n, t: 2 * MS if t == n % 2 else MS)
    run.away(77, run_end(run), 1_000, IDLE)
    said = found(run.trace(tmp_path))
    assert set(said) == {"spinning"}


def test_migrations(tmp_path: Path) -> None:
    run = Run()
    run.graphs(10)
    for i in range(30):
        run.b.sched(77, (5 + 6 * i) * MS, "out", cpu=i % 2, other=IDLE)
        run.b.sched(77, (5 + 6 * i) * MS + 1000, "in", cpu=(i + 1) % 2, other=(77, 77, "llama"))
    assert "moved between CPUs 30 times" in found(run.trace(tmp_path))["migrations"].text


QUOTA = {
    "cpus": [0, 1],
    "cgroup": {"path": "/sys/fs/cgroup/x", "version": 2, "quota_us": 50_000, "period_us": 100_000},
    "begin": {"periods": 10, "throttled": 2, "throttled_ns": 5 * MS},
}


def test_a_quota(tmp_path: Path) -> None:
    run = Run(limits=QUOTA | {"end": {"periods": 40, "throttled": 22, "throttled_ns": 1005 * MS}})
    run.graphs(2)
    said = found(run.trace(tmp_path))["throttled"]
    assert "quota of 0.5 CPUs in 20 of 30 periods, 1.00 s in all" in said.text
    assert said.tries == "-t 1, or raise cpu.max of /sys/fs/cgroup/x"


def test_the_prize_of_a_quota_leaves_the_quota_out(tmp_path: Path) -> None:
    """Both threads stand still for 3 of 4 ms: without the quota, two CPUs take a quarter."""
    run = Run(limits=QUOTA | {"end": {"periods": 40, "throttled": 22, "throttled_ns": 1005 * MS}})
    run.graphs(10)
    for at in range(2, 201, 4):
        for tid in run.tids:
            run.away(tid, at * MS, 3 * MS, IDLE)
    prize = found(run.trace(tmp_path))["throttled"].prize
    assert prize is not None and prize.share == pytest.approx(0.75, abs=0.02)
    assert prize.how.endswith("spread evenly over 2 CPUs")
    assert prize.text.endswith(" or more")


def test_a_quota_that_was_not_reached(tmp_path: Path) -> None:
    run = Run(limits=QUOTA | {"end": QUOTA["begin"]})
    run.graphs(2)
    assert found(run.trace(tmp_path)) == {}


def test_thread_views(tmp_path: Path) -> None:
    run = Run()
    run.graphs(10)
    for at in range(10, 190, 20):
        run.away(78, at * MS, 4 * MS, STRESS, prio=110, cpu=at // 20 % 2)
    trace = run.trace(tmp_path)
    states = scheduling.thread_states(trace, trace.select()).frame.set_index("tid")
    assert states["runnable"].tolist() == pytest.approx([0, 0.18], abs=0.002)
    assert states["on_cpu"].tolist() == pytest.approx([1, 0.82], abs=0.002)
    assert states["involuntary"].tolist() == [0, 9]
    assert states["taken_by"].tolist() == ["", "stress"]
    more = threads.threads(trace, trace.select()).frame.set_index("tid")
    for column in ("on_cpu", "runnable", "blocked", "migrations", "involuntary"):
        assert more[column].tolist() == states[column].tolist()


def test_operators_have_what_the_scheduler_did_to_them(tmp_path: Path) -> None:
    """One node of 20 stands still on one of two threads for 3 of its 4 ms in each graph."""
    run = Run()
    starts = []
    for _ in range(5):
        starts.append(run.now)
        run.graphs(1, lambda n, t: 4 * MS if n == 0 else MS)
    for number, at in enumerate(starts):
        run.away(78, at + MS // 2, 3 * MS, STRESS, cpu=number % 2)
    trace = run.trace(tmp_path)
    node = operators.by_node(trace, trace.select()).frame.set_index("name")
    assert node.loc["n0", "on_cpu"] == pytest.approx(5 / 8, abs=0.01)
    assert node.loc["n0", "runnable"] == pytest.approx(3 / 8, abs=0.01)
    assert node.loc["n0", ["migrations", "involuntary"]].tolist() == [2, 5]
    assert node.loc["n1", "on_cpu"] == 1 and node.loc["n1", "involuntary"] == 0
    threads_told = scheduling.thread_states(trace, trace.select()).total
    assert threads_told is not None
    for told in (
        *(operators.by(trace, trace.select(), key) for key in ("op", "role", "layer")),
        operators.by_shape(trace, trace.select()),
    ):
        assert told.total is not None
        for name in ("on_cpu", "runnable", "blocked", "migrations", "involuntary"):
            assert told.total[name] == threads_told[name], (told.name, name)
            assert name in told.frame


def test_a_trace_without_scheduler_events_says_nothing_of_them(tmp_path: Path) -> None:
    run = Run()
    run.graphs(2, lambda n, t: 3 * MS if t else MS)
    trace = run.trace(tmp_path)
    assert found(trace) == {}
    columns = {c.name for c in threads.threads(trace, trace.select()).columns}
    assert "on_cpu" not in columns
    assert "on_cpu" not in operators.by(trace, trace.select(), "op").frame


def test_time_of_unknown_state_is_said(tmp_path: Path) -> None:
    run = Run()
    run.graphs(10)
    run.b.sched(77, 10 * MS, "out", other=STRESS)
    run.b.sched(77, 20 * MS, "out", other=STRESS)
    run.b.sched(77, 21 * MS, "in", other=(77, 77, "llama"))
    trace = run.trace(tmp_path)
    said = [n.text for n in scheduling.thread_states(trace, trace.select()).notes]
    assert any(text.startswith("2.5 % of the operators' time is of unknown state") for text in said)
