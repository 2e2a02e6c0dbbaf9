"""CPU limits of a process, from a made-up /proc and cgroup file systems."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from profinfer.capture.limits import Limits

PID = os.getpid()  # affinity is asked of the kernel


class Machine:
    """A folder that looks like /proc and /sys/fs/cgroup."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.proc = root / "proc"
        (self.proc / str(PID) / "task" / str(PID)).mkdir(parents=True)
        (self.proc / "self").mkdir()
        self.mounts: list[str] = []

    def mount(self, name: str, kind: str, options: str) -> Path:
        at = self.root / name
        at.mkdir()
        self.mounts.append(f"30 20 0:26 / {at} rw shared:1 - {kind} none {options}")
        (self.proc / "self" / "mountinfo").write_text("\n".join(self.mounts) + "\n")
        return at

    def belongs(self, text: str) -> None:
        (self.proc / str(PID) / "cgroup").write_text(text)

    def limits(self) -> Limits:
        return Limits(PID, proc=self.proc)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def stat(folder: Path, throttled: int, **time: int) -> None:
    rest = "".join(f"{name} {value}\n" for name, value in time.items())
    (folder / "cpu.stat").write_text(f"nr_periods 100\nnr_throttled {throttled}\n{rest}")


def test_version_2_the_tightest_level_counts(machine: Machine) -> None:
    top = machine.mount("unified", "cgroup2", "rw")
    inner = top / "pod" / "app"
    inner.mkdir(parents=True)
    machine.belongs("0::/pod/app\n")
    (inner / "cpu.max").write_text("max 100000\n")
    (top / "pod" / "cpu.max").write_text("150000 100000\n")
    (inner / "cpuset.cpus.effective").write_text("0-1\n")
    stat(top / "pod", 3, throttled_usec=7_000)
    limits = machine.limits()
    stat(top / "pod", 5, throttled_usec=9_000)
    found = limits.now()
    assert found["cpus"] == sorted(os.sched_getaffinity(0))
    assert found["cpuset"] == "0-1"
    assert found["cgroup"] == {
        "path": str(top / "pod"), "version": 2, "quota_us": 150_000, "period_us": 100_000,
    }  # fmt: skip
    assert found["begin"] == {"periods": 100, "throttled": 3, "throttled_ns": 7_000_000}
    assert limits.end()["end"] == {"periods": 100, "throttled": 5, "throttled_ns": 9_000_000}


def test_version_1(machine: Machine) -> None:
    top = machine.mount("cpu", "cgroup", "rw,cpu,cpuacct")
    machine.mount("memory", "cgroup", "rw,memory")
    (top / "small").mkdir()
    machine.belongs("5:memory:/else\n2:cpu,cpuacct:/small\n0::/\n")
    (top / "small" / "cpu.cfs_quota_us").write_text("50000\n")
    (top / "small" / "cpu.cfs_period_us").write_text("100000\n")
    stat(top / "small", 1, throttled_time=12_345)
    found = machine.limits().now()
    assert (found["cgroup"]["version"], found["cgroup"]["quota_us"]) == (1, 50_000)
    assert found["begin"]["throttled_ns"] == 12_345


def test_no_quota(machine: Machine) -> None:
    top = machine.mount("cpu", "cgroup", "rw,cpu")
    machine.belongs("1:cpu:/\n")
    (top / "cpu.cfs_quota_us").write_text("-1\n")
    (top / "cpu.cfs_period_us").write_text("100000\n")
    limits = machine.limits()
    assert set(limits.now()) == {"cpus"}
    assert limits.end() == {}


def test_a_target_that_is_moved_begins_to_count_there(machine: Machine) -> None:
    top = machine.mount("unified", "cgroup2", "rw")
    machine.belongs("0::/\n")
    limits = machine.limits()
    (top / "new").mkdir()
    (top / "new" / "cpu.max").write_text("20000 100000\n")
    stat(top / "new", 40, throttled_usec=1)
    machine.belongs("0::/new\n")
    assert limits.now()["begin"]["throttled"] == 40


def test_a_process_that_has_ended_is_no_error(tmp_path: Path) -> None:
    limits = Limits(1 << 22, proc=tmp_path)
    assert limits.now() == {"cpus": []}
    assert limits.end() == {}
