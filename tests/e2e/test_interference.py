"""What disturbs a real run is found, and named: too many threads, another process, a quota."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from cpu_quota import cpu_group, joined

from profinfer.analysis.finding import Finding
from profinfer.analysis.findings import findings
from profinfer.model.trace import Trace

pytestmark = pytest.mark.e2e

REPO = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def two_cpus() -> Iterator[None]:
    """Recorder and target may use CPUs 0 and 1, whatever the machine has."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {0, 1})
    yield
    os.sched_setaffinity(0, before)


def command(llama_bin: Path, model: Path, threads: int, tokens: int) -> list[str]:
    """A run that ends by itself."""
    return [
        str(llama_bin / "llama-completion"), "-m", str(model), "-t", str(threads),
        "-n", str(tokens), "-p", "Once upon a time", "-no-cnv", "--temp", "0", "--ignore-eos",
        "-lv", "0",
    ]  # fmt: skip


def record(out: Path, *args: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "profinfer", "record", "-o", str(out), *args],
        env={k: v for k, v in os.environ.items() if not k.startswith("SUDO_")}
        | {"PYTHONPATH": str(REPO)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def found(trace: Trace) -> dict[str, Finding]:
    return {f.name: f for f in findings(trace, trace.select())}


def running_on(trace: Trace, cpu: int, begin: int, end: int) -> float:
    """Part of a time that computing threads ran on a CPU."""
    sched = trace.sched[trace.sched["tid"].isin(trace.ops["tid"].unique())]
    sched = sched[(sched["state"] == "running") & (sched["cpu"] == cpu)]
    inside = sched["end_ns"].clip(upper=end) - sched["begin_ns"].clip(lower=begin)
    return float(inside.clip(lower=0).sum() / (end - begin))


@pytest.mark.parametrize("threads", [8, 2])
def test_threads_that_share_cpus(
    threads: int, tmp_path: Path, llama_bin: Path, smollm2: Path, run_profinfer
) -> None:
    out = tmp_path / "t.pf"
    done = run_profinfer("record", "-o", out, "--", *command(llama_bin, smollm2, threads, 12))
    assert done.returncode == 0, done.stderr
    trace = Trace.open(out)
    assert {k: v for k, v in trace.losses.items() if v} == {}
    said = found(trace)
    assert "throttled" not in said
    if threads == 2:
        assert "oversubscribed" not in said
    else:
        assert said["oversubscribed"].text.startswith("8 threads share 2 CPUs: ")
        assert said["oversubscribed"].tries == "-t 2"
        report = run_profinfer("report", out, "--by", "thread", "--phase", "decode")
        assert "8 threads share 2 CPUs" in report.stdout
    # Whatever else this machine does, all of the operators' time has a state.
    both = trace.ops.join(trace.op_sched)
    known = both["running_ns"] + both["runnable_ns"] + both["blocked_ns"]
    assert known.sum() > 0.9 * (both["release_ns"] - both["begin_ns"]).sum()


def test_a_busy_process_on_one_of_two_cpus(tmp_path: Path, llama_bin: Path, smollm2: Path) -> None:
    """The paper's figure 8: both threads share the other CPU until it ends."""
    out = tmp_path / "t.pf"
    busy = subprocess.Popen(
        ["nice", "-n", "-10", "taskset", "-c", "1", "sh", "-c", "while :; do :; done"]
    )
    comm = Path(f"/proc/{busy.pid}/comm")
    while comm.read_text().strip() != "sh":
        time.sleep(0.01)
    busy.send_signal(signal.SIGSTOP)
    recorder = record(out, "--", *command(llama_bin, smollm2, 2, 300))
    until = time.monotonic() + 60
    while not (out.exists() and out.stat().st_size > 600_000) and time.monotonic() < until:
        time.sleep(0.02)
    busy.send_signal(signal.SIGCONT)
    begin = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    time.sleep(1.5)
    end = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    busy.kill()
    busy.wait()
    _, stderr = recorder.communicate(timeout=200)
    assert recorder.returncode == 0, stderr
    trace = Trace.open(out)
    assert trace.ops["begin_ns"].min() < begin and trace.ops["end_ns"].max() > end
    taken = trace.sched[trace.sched["by_pid"] == busy.pid]
    # It may have got the CPU from somebody else, after whom the threads stayed away from it.
    assert set(taken["by_name"]) <= {"sh"}
    assert set(taken["by_prio"]) <= {110}
    assert set(taken["cpu"]) <= {1}
    # It has CPU 1; both threads share what others leave of CPU 0.
    assert running_on(trace, 1, begin, end) < 0.35
    chosen = trace.ops["begin_ns"].between(begin, end)
    both = trace.ops.join(trace.op_sched)[chosen.to_numpy()]
    length = (both["release_ns"] - both["begin_ns"]).sum()
    assert both["runnable_ns"].sum() > 0.25 * length
    said = found(trace)
    assert "preempted" in said or "shared" in said
    assert "oversubscribed" not in said


@pytest.fixture
def half_a_cpu() -> Iterator[Path]:
    """A cgroup with a CPU quota of 50 %."""
    with cpu_group(50_000) as group:
        yield group


def test_a_cgroup_quota(half_a_cpu: Path, tmp_path: Path, llama_bin: Path, smollm2: Path) -> None:
    out = tmp_path / "t.pf"
    argv = command(llama_bin, smollm2, 2, 100_000)
    target = subprocess.Popen(
        joined(half_a_cpu, *argv), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        time.sleep(3)
        recorder = record(out, "--pid", str(target.pid), "--duration", "2s")
        _, stderr = recorder.communicate(timeout=120)
        assert recorder.returncode == 0, stderr
    finally:
        target.kill()
        target.wait()
    trace = Trace.open(out)
    limits = trace.meta.limits
    assert limits["cpus"] == [0, 1]
    assert limits["cgroup"]["path"] == str(half_a_cpu)
    assert (limits["cgroup"]["quota_us"], limits["cgroup"]["period_us"]) == (50_000, 100_000)
    assert limits["end"]["throttled"] > limits["begin"]["throttled"]
    # When it was stopped, ten times a second: the sums agree with those of begin and end.
    stopped = trace.throttling
    assert len(stopped) >= 5 and (stopped["throttled"].diff().dropna() > 0).all()
    assert limits["begin"]["throttled"] <= stopped["throttled"].iloc[0]
    assert stopped["throttled"].iloc[-1] <= limits["end"]["throttled"]
    assert stopped["throttled_ns"].iloc[-1] > stopped["throttled_ns"].iloc[0]
    said = found(trace)
    assert "quota of 0.5 CPUs" in said["throttled"].text
    assert said["throttled"].tries.startswith("-t 1, or raise cpu.")
    states = pd.DataFrame(trace.sched)
    ran = (states["end_ns"] - states["begin_ns"])[states["state"] == "running"].sum()
    span = states["end_ns"].max() - states["begin_ns"].min()
    assert ran / span < 0.75
