"""Layer 4: what the target may use of the CPUs: affinity, cgroup quota, and how often it was hit.

Reads /proc and the cgroup file systems, version 1 and 2; what cannot be read is left out.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profinfer.capture.sysfs import text_of

_PROC = Path("/proc")


@dataclass(frozen=True)
class CpuGroup:
    """A cgroup that limits CPU time.

    Attributes:
        version: of the cgroup interface, 1 or 2.
        folder: where its files are.
        quota_us: CPU time that it gets a period.
        period_us: length of a period.
    """

    version: int
    folder: Path
    quota_us: int
    period_us: int

    def counters(self) -> dict[str, int]:
        """Periods so far, those in which it was throttled, and for how many ns."""
        found = dict(_pairs(self.folder / "cpu.stat"))
        ns = found.get("throttled_time", found.get("throttled_usec", 0) * 1000)
        return {
            "periods": found.get("nr_periods", 0),
            "throttled": found.get("nr_throttled", 0),
            "throttled_ns": ns,
        }


class Limits:
    """The limits of one process, from now on.

    Args:
        pid: the process.
        proc: where /proc is.
    """

    def __init__(self, pid: int, *, proc: Path = _PROC) -> None:
        self._pid, self._proc = pid, proc
        self._group: CpuGroup | None = None
        self._begin: dict[str, int] = {}
        self._cpus: list[int] = []
        self._cpuset: str | None = None
        self._look()

    def now(self) -> dict[str, Any]:
        """For the metadata's ``limits``, once the target computes.

        A program that was started to set limits and then became the target (``taskset``, a shell)
        has done so by then.
        """
        self._look()
        out: dict[str, Any] = {"cpus": self._cpus}
        if self._cpuset:
            out["cpuset"] = self._cpuset
        if self._group is not None:
            out["cgroup"] = {
                "path": str(self._group.folder),
                "version": self._group.version,
                "quota_us": self._group.quota_us,
                "period_us": self._group.period_us,
            }
            out["begin"] = self._begin
        return out

    def end(self) -> dict[str, Any]:
        """What is to be merged into ``limits`` when the recording is over."""
        return {"end": now} if (now := self.throttling()) else {}

    def throttling(self) -> dict[str, int]:
        """The quota's counters now; empty if there is no quota."""
        return self._group.counters() if self._group is not None else {}

    @property
    def cpus(self) -> list[int]:
        """CPUs that the target may run on."""
        return self._cpus

    def _look(self) -> None:
        self._cpus = self._affinity() or self._cpus
        with contextlib.suppress(OSError):
            group, self._cpuset = _groups(self._pid, self._proc)
            if group != self._group:  # it was moved, or its quota was changed
                self._group = group
                self._begin = group.counters() if group else {}

    def _affinity(self) -> list[int]:
        """CPUs that any thread may run on."""
        allowed: set[int] = set()
        with contextlib.suppress(OSError):
            for task in (self._proc / str(self._pid) / "task").iterdir():
                with contextlib.suppress(OSError):
                    allowed |= os.sched_getaffinity(int(task.name))
        return sorted(allowed)


def _groups(pid: int, proc: Path) -> tuple[CpuGroup | None, str | None]:
    """The tightest CPU quota above a process, and its cpuset.

    Raises:
        OSError: the process has ended.
    """
    mounts = list(_mounts(proc))
    tightest: CpuGroup | None = None
    cpuset: str | None = None
    for line in (proc / str(pid) / "cgroup").read_text(errors="surrogateescape").splitlines():
        number, controllers, path = line.split(":", 2)
        version = 2 if number == "0" and not controllers else 1
        names = set(controllers.split(",")) if version == 1 else {"cpu", "cpuset"}
        for mounted, root, has in mounts:
            if (has is None) != (version == 2) or (has is not None and not names & has):
                continue
            inside = path if root == "/" else path.removeprefix(root) or "/"
            folder = mounted / inside.lstrip("/")
            if "cpuset" in names:
                name = "cpuset.cpus.effective" if version == 2 else "cpuset.effective_cpus"
                cpuset = text_of(folder / name) or cpuset
            if "cpu" in names:
                for level in (folder, *folder.parents):
                    group = _quota(level, version)
                    if group and (tightest is None or _share(group) < _share(tightest)):
                        tightest = group
                    if level == mounted:
                        break
    return tightest, cpuset


def _share(group: CpuGroup) -> float:
    return group.quota_us / group.period_us


def _mounts(proc: Path) -> Iterator[tuple[Path, str, set[str] | None]]:
    """Mount point, root, and controllers (None for version 2) of every cgroup file system."""
    for line in (proc / "self/mountinfo").read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if kind[:1] == ["cgroup2"]:
            yield Path(fields[4]), fields[3], None
        elif kind[:1] == ["cgroup"]:
            yield Path(fields[4]), fields[3], set(kind[2].split(","))


def _quota(folder: Path, version: int) -> CpuGroup | None:
    """The quota of one cgroup, None if it has none."""
    if version == 2:
        quota, _, period = (text_of(folder / "cpu.max") or "max").partition(" ")
    else:
        quota = text_of(folder / "cpu.cfs_quota_us") or "-1"
        period = text_of(folder / "cpu.cfs_period_us") or ""
    if not quota.isdigit() or not period.isdigit() or not int(period):
        return None
    return CpuGroup(version, folder, int(quota), int(period))


def _pairs(path: Path) -> Iterator[tuple[str, int]]:
    for line in (text_of(path) or "").splitlines():
        name, _, value = line.partition(" ")
        if value.isdigit():
            yield name, int(value)
