"""Thread states of a target that is known to spin, to sleep, and to lose its CPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from truth import read_truth

from profinfer.model.trace import Trace
from profinfer.tracefile.schema import CNT_LOST, CNT_SENT, Kind

pytestmark = pytest.mark.bpf


def recorded(tmp_path: Path, run_profinfer, target: list[str | Path], *more: str) -> Trace:
    out = tmp_path / "t.pf"
    result = run_profinfer("record", "--force", *more, "-o", out, "--", *target)
    assert result.returncode == 0, result.stderr
    return Trace.open(out)


def joined(trace: Trace) -> pd.DataFrame:
    """Operators with what the scheduler did to them."""
    ops = trace.ops.join(trace.op_sched)
    return ops.assign(length=ops["release_ns"] - ops["begin_ns"])


def test_every_nanosecond_has_a_state(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    trace = recorded(tmp_path, run_profinfer, [fake_ggml, "--threads", "3"])
    assert {k: v for k, v in trace.losses.items() if v} == {}
    counters = trace.reader.counters
    assert counters[CNT_LOST + Kind.SCHED] == 0
    assert counters[CNT_SENT + Kind.SCHED] == trace.reader.count_by_kind()[Kind.SCHED]
    assert set(trace.ops["tid"]) <= set(trace.sched["tid"])
    for _, mine in trace.sched.groupby("tid"):
        assert (mine["begin_ns"].to_numpy()[1:] == mine["end_ns"].to_numpy()[:-1]).all()
    ops = joined(trace)
    known = ops["running_ns"] + ops["runnable_ns"] + ops["blocked_ns"]
    # Where an event is missing the state is unknown; this is rare.
    assert (known <= ops["length"]).all()
    assert known.sum() > 0.8 * ops["length"].sum()
    assert trace.meta.sched.recorded and trace.meta.sched.states
    # No CPU runs two threads at once, and none has more time than there is.
    running = trace.sched[trace.sched["state"] == "running"].sort_values(["cpu", "begin_ns"])
    for cpu, mine in running.groupby("cpu"):
        assert cpu < os.cpu_count()
        overlap = mine["end_ns"].to_numpy()[:-1] - mine["begin_ns"].to_numpy()[1:]
        assert overlap.max(initial=0) <= 0


def test_on_cpu_time_is_what_the_kernel_charged(tmp_path: Path, fake_ggml: Path) -> None:
    """Running stretches of every thread against the kernel's own account, /proc/…/schedstat."""
    out = tmp_path / "t.pf"
    env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    target = subprocess.Popen([fake_ggml, "--seconds", "60", "--out", "/dev/null"])
    try:
        recorder = subprocess.Popen(
            [sys.executable, "-m", "profinfer", "record", "-o", out, "--duration", "2s",
             "--pid", str(target.pid)],
            env=env,
        )  # fmt: skip
        readings: dict[int, list[tuple[int, int]]] = {}
        while recorder.poll() is None:
            for task in Path(f"/proc/{target.pid}/task").iterdir():
                charged = int((task / "schedstat").read_text().split()[0])
                reading = (time.clock_gettime_ns(time.CLOCK_MONOTONIC), charged)
                readings.setdefault(int(task.name), []).append(reading)
            time.sleep(0.02)
        assert recorder.returncode == 0
    finally:
        target.kill()
        target.wait()
    sched = Trace.open(out).sched
    assert len(set(sched["tid"])) == 2
    for tid, mine in sched.groupby("tid"):
        moments, charged = np.array(readings[tid]).T
        ends = [mine["begin_ns"].min(), mine["end_ns"].max()]
        wanted = np.diff(np.interp(ends, moments, charged))[0]
        length = mine["end_ns"] - mine["begin_ns"]
        ran = length[mine["state"] == "running"].sum()
        unknown = length[mine["state"] == "unknown"].sum()
        assert ends[1] - ends[0] > 1.5e9
        # A reading every 20 ms, and a running thread's account moves with the clock.
        assert wanted * 0.95 - 2e7 - unknown <= ran <= wanted * 1.05 + 2e7


def test_sleep_is_sleep_and_only_there(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    out = tmp_path / "truth.json"
    command = [fake_ggml, "--nap", "--base-us", "400", "--tokens", "30", "--out", out]
    trace = recorded(tmp_path, run_profinfer, command)
    truth = read_truth(out)
    ops = joined(trace).merge(trace.nodes[["node_id", "idx", "op"]], on="node_id")
    sleeper = truth.raw["contexts"][0]["tids"][1]
    naps = (ops["tid"] == sleeper) & (ops["idx"] % 5 == 0) & (ops["op"] != "MUL_MAT")
    naps &= ops["fused"] == 1
    assert naps.sum() > 100
    decode = trace.graphs[trace.graphs["phase"] == "decode"]
    naps &= ops["graph_id"].isin(decode["graph_id"])
    # Asleep for the planned time, whatever else this machine does.
    planned = (400 + 10 * (ops["idx"] % 7) + 60) * 1000
    slept = ops["blocked_ns"][naps] / planned[naps]
    assert 0.9 < slept.median() < 1.3  # timers may be 50 µs late
    # It also sleeps before a graph begins, as long as the pool has nothing to do.
    assert ops["blocked_ns"][naps].sum() > 3 * ops["blocked_ns"][~naps].sum()
    asleep = trace.sched[trace.sched["reason"] == "sleep"]
    assert (asleep["tid"] == sleeper).sum() >= naps.sum()
    # Whoever spins does not sleep.
    assert ops["blocked_ns"][~naps & (ops["tid"] != sleeper)].median() == 0


def test_a_thread_that_loses_its_cpu(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    """A busy process of high priority on the only CPU that the target may use."""
    busy = subprocess.Popen(
        ["nice", "-n", "-15", "taskset", "-c", "1", "sh", "-c", "while :; do :; done"]
    )
    try:
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {1})  # the target inherits it
        try:
            command = [fake_ggml, "--threads", "1", "--tokens", "40", "--out", "/dev/null"]
            trace = recorded(tmp_path, run_profinfer, command)
        finally:
            os.sched_setaffinity(0, before)
    finally:
        busy.kill()
        busy.wait()
    ops = joined(trace)
    assert ops["behind_other_ns"].sum() > 0.3 * ops["length"].sum()
    taken = trace.sched[trace.sched["by_pid"] == busy.pid]
    assert len(taken) > 3
    assert set(taken["by_prio"]) == {105}
    assert set(taken["by_name"]) == {"sh"}
    assert set(taken["cpu"]) == {1}
    # The kernel's threads are told from programs.
    assert not taken["by_kernel"].any()
    others = trace.sched[(trace.sched["by_tid"] > 0) & (trace.sched["by_tid"] != busy.pid)]
    kernels = {row.by_name: row.by_kernel for row in others.itertuples()}
    assert all(kernels[n] for n in kernels if n.startswith(("rcu_", "ksoftirqd/", "migration/")))
    assert ops["involuntary"].sum() > 3
    # It has one CPU only, and never moves.
    assert ops["migrations"].sum() == 0


def test_a_spinning_thread_runs(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    trace = recorded(tmp_path, run_profinfer, [fake_ggml, "--threads", "1", "--tokens", "30"])
    ops = joined(trace)
    assert ops["blocked_ns"].sum() == 0
    # Other work on this machine may take its CPU; many operators are undisturbed.
    assert ((ops["running_ns"] == ops["length"]).mean()) > 0.3


def test_no_sched(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    trace = recorded(tmp_path, run_profinfer, [fake_ggml, "--tokens", "2"], "--no-sched")
    assert Kind.SCHED not in trace.reader.count_by_kind()
    assert trace.meta.sched.recorded is False
    assert not trace.has_sched


def test_a_forked_child_is_not_the_target(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    out = tmp_path / "truth.json"
    trace = recorded(
        tmp_path, run_profinfer, [fake_ggml, "--mode", "fork", "--tokens", "12", "--out", out]
    )
    pid = json.loads(out.read_text())["pid"]
    assert trace.schedule.own == pid
    engine = {t for c in read_truth(out).raw["contexts"] for t in c["tids"]}
    assert set(trace.sched["tid"]) <= engine | {pid}
