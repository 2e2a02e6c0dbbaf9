"""Counters of the whole machine, read while a program is recorded: others' events are in them."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cpu_quota import cpu_group, joined

from profinfer.model.trace import Trace

pytestmark = pytest.mark.bpf

PAGES = 30_000
# Faults a known number of fresh pages in, a moment after the recording has begun.
NOISE = """
import mmap, os, sys, time
while not os.path.exists(sys.argv[2]):
    time.sleep(0.02)
time.sleep(0.5)
with mmap.mmap(-1, int(sys.argv[1]) << 12) as fresh:
    fresh.madvise(mmap.MADV_NOHUGEPAGE)
    for at in range(0, int(sys.argv[1]) << 12, 4096):
        fresh[at] = 1
"""


def test_what_another_process_does_is_counted(
    tmp_path: Path, fake_ggml: Path, run_profinfer: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    out = tmp_path / "t.pf"
    listed = "system:page-faults,system:cpu-clock,page-faults"
    command = ["--counters", listed, "--", fake_ggml, "--seconds", "3", "--no-ops"]
    noise = subprocess.Popen([sys.executable, "-c", NOISE, str(PAGES), str(out)])
    done = run_profinfer("record", "-o", out, *command)
    assert noise.wait(timeout=60) == 0 and done.returncode == 0, done.stderr
    trace = Trace.open(out)
    rows = trace.system_counters.set_index("name")
    assert list(trace.counters.columns) == ["page-faults"]
    assert set(rows.index) == {"system:page-faults", "system:cpu-clock"}
    faults, clock = rows.loc["system:page-faults"], rows.loc["system:cpu-clock"]
    assert len(faults) >= 10  # 0.1 s apart, and the machine may be busy
    assert (faults["value"].diff().dropna() >= 0).all() and faults["value"].iloc[0] == 0
    assert faults["value"].iloc[-1] >= PAGES
    # They came in one go, and not from the operators.
    assert faults["value"].diff().nlargest(8).sum() >= 0.9 * PAGES
    assert trace.counters["page-faults"].sum() < PAGES / 10
    # A CPU's clock runs as time does, on every CPU.
    took = clock["ts_ns"].iloc[-1] - clock["ts_ns"].iloc[0]
    cpus = len(trace.meta.extra["surroundings"]["counters"][1]["cpus"])
    assert clock["value"].iloc[-1] == pytest.approx(cpus * took, rel=0.1)


def test_at_token_level_and_without_operators(
    tmp_path: Path, fake_ggml: Path, run_profinfer: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    out = tmp_path / "t.pf"
    given = ("--level", "token", "--counters", "system:context-switches")
    done = run_profinfer("record", "-o", out, *given, "--", fake_ggml, "--seconds", "1")
    assert done.returncode == 0, done.stderr
    trace = Trace.open(out)
    assert trace.system_counters["value"].iloc[-1] > 10
    said = run_profinfer("report", "--counters", out)
    assert said.returncode == 0 and "system:context-switches" in said.stdout, said.stderr
    done = run_profinfer("record", "--level", "token", "--counters", "page-faults", "--", fake_ggml)
    assert done.returncode == 2 and "--level token has none" in done.stderr


@pytest.fixture
def narrow() -> Iterator[Path]:
    """A cgroup with 8 % of a CPU."""
    with cpu_group(8_000) as group:
        yield group


def test_when_a_quota_stopped_the_target(
    narrow: Path, tmp_path: Path, fake_ggml: Path, run_profinfer: Callable[..., object]
) -> None:
    out = tmp_path / "t.pf"
    command = joined(narrow, fake_ggml, "--seconds", "120", "--no-ops")
    target = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        time.sleep(1)
        run_profinfer("record", "-o", out, "--pid", str(target.pid), "--duration", "3s")
    finally:
        target.kill()
        target.wait()
    trace = Trace.open(out)
    stopped, limits = trace.throttling, trace.meta.limits
    assert len(stopped) >= 5 and (stopped["throttled"].diff().dropna() > 0).all()
    assert limits["begin"]["throttled"] <= stopped["throttled"].iloc[0]
    assert stopped["throttled"].iloc[-1] <= limits["end"]["throttled"]
    assert stopped["throttled_ns"].iloc[-1] > stopped["throttled_ns"].iloc[0]
    assert (stopped["throttled"] <= stopped["periods"]).all()
