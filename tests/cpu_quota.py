"""A cgroup with a CPU quota, of version 1 or 2: whoever spins in it is stopped all the time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PERIOD_US = 100_000


@contextmanager
def cpu_group(quota_us: int) -> Iterator[Path]:
    """The group's folder; where none can be made the test is skipped."""
    v1, top = Path("/sys/fs/cgroup/cpu"), Path("/sys/fs/cgroup")
    group = (v1 if v1.is_dir() else top) / f"profinfer-cpu-{os.getpid()}"
    try:
        if not v1.is_dir():
            (top / "cgroup.subtree_control").write_text("+cpu")
        group.mkdir()
        if v1.is_dir():
            (group / "cpu.cfs_period_us").write_text(str(PERIOD_US))
            (group / "cpu.cfs_quota_us").write_text(str(quota_us))
        else:
            (group / "cpu.max").write_text(f"{quota_us} {PERIOD_US}")
    except OSError as error:
        pytest.skip(f"needs a cgroup that it may make: {error}")
    yield group
    for _ in range(50):
        try:
            group.rmdir()
            return
        except OSError:
            time.sleep(0.1)


def joined(group: Path, *command: str | Path) -> list[str | Path]:
    """A command that joins the group and then becomes the program."""
    return ["sh", "-c", 'echo $$ >"$0"; exec "$@"', group / "cgroup.procs", *command]
