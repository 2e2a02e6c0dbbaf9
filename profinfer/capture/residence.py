"""Layer 4: what /proc says of a process's memory, now and then: sizes, data mappings, its limit.

Reads a few small files; never smaps, which walks the page tables while the process waits. Needs
neither root nor BPF.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from profinfer.elf.process import map_lines

_FIRST_S, _FIRST_FOR_S, _LATER_S = 0.1, 5.0, 1.0
_PAGE = os.sysconf("SC_PAGE_SIZE")
_SMALLEST = 1 << 20  # a file worth naming
_NO_LIMIT = 1 << 60  # cgroup v1 says a number near 2^63 for none
_V1_MOUNT, _V2_MOUNTS = "/sys/fs/cgroup/memory", ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")


class Residence:
    """One process.

    Args:
        pid: it may be held, stopped or running.
        argv: its command line; the files that it names are looked up.
    """

    def __init__(self, pid: int, argv: list[str]) -> None:
        self._pid, self._proc = pid, Path(f"/proc/{pid}")
        self._argv = argv
        self._began = time.monotonic()
        self._due = 0.0
        self._mappings: set[tuple[int, int, int, str]] = set()
        self._files: dict[str, dict[str, Any]] = {}

    def sample(self, *, now: bool = False) -> dict[str, int] | None:
        """Sizes in bytes and counts since the process began; None if it is not time yet, or over.

        ``rss``, of it ``file`` and shared memory; ``read`` from disks; ``major``, ``minor`` faults,
        those of system calls such as mmap with MAP_POPULATE included.
        """
        at = time.monotonic()
        if at < self._due and not now:
            return None
        early = at - self._began < _FIRST_FOR_S
        self._due = at + (_FIRST_S if early else _LATER_S)
        try:
            _, resident, shared = map(int, (self._proc / "statm").read_text().split()[:3])
            if not resident:
                return None  # it has ended, and nobody has waited for it yet
            stat = (self._proc / "stat").read_text(errors="replace").rpartition(")")[2].split()
            out = {"rss": resident * _PAGE, "file": shared * _PAGE}
            out |= {"minor": int(stat[7]), "major": int(stat[9])}
        except (OSError, ValueError):
            return None
        with contextlib.suppress(OSError, ValueError):  # CONFIG_TASK_IO_ACCOUNTING
            lines = (self._proc / "io").read_text().splitlines()
            told = dict(line.split(": ") for line in lines)
            out["read"] = int(told["read_bytes"])
        return out

    def look(self) -> dict[str, Any]:
        """Data mappings of files and the files, and the limit.

        Mappings that were seen before and whose place is free now are among them.
        """
        page_files: dict[str, dict[str, Any]] = {}
        now: list[tuple[int, int]] = []
        seen: set[tuple[int, int, int, str]] = set()
        with contextlib.suppress(OSError):
            for line in map_lines(self._pid):
                now.append((line.start, line.end))
                if line.is_file and not line.is_code:
                    seen.add((line.start, line.end, line.offset, line.path))
                    facts = {"dev": list(line.device), "ino": line.inode}
                    page_files.setdefault(line.path, facts)
        # A mapping that has gone still names what faulted in it, unless its place was given away.
        self._mappings = seen | {m for m in self._mappings if not _taken(m, now)}
        for path, facts in page_files.items():
            self._files.setdefault(path, {"path": path, **facts, "size": _size(path)})
        self._named_files()
        files = [f for f in self._files.values() if f["size"] is None or f["size"] >= _SMALLEST]
        kept = {f["path"] for f in files}
        mappings = [list(m) for m in sorted(self._mappings) if m[3] in kept]
        return {"mappings": mappings, "files": files, **self._limit()}

    def _named_files(self) -> None:
        """Files of the command line: a model that is read instead of mapped is none of the maps."""
        for word in self._argv[1:]:
            with contextlib.suppress(OSError, ValueError):
                path = Path(os.path.realpath(self._proc / "cwd")) / word.rpartition("=")[2]
                if not path.is_file():
                    continue
                path = path.resolve()
                facts = path.stat()
                device = [os.major(facts.st_dev), os.minor(facts.st_dev)]
                named = {"path": str(path), "dev": device, "ino": facts.st_ino}
                self._files.setdefault(str(path), {**named, "size": facts.st_size})

    def _limit(self) -> dict[str, Any]:
        """The lowest memory limit of the process's cgroup and those around it."""
        found: list[tuple[int, str]] = []
        with contextlib.suppress(OSError, ValueError):
            for line in (self._proc / "cgroup").read_text(errors="surrogateescape").splitlines():
                _, controllers, group = line.split(":", 2)
                if "memory" in controllers.split(","):
                    places = [(Path(_V1_MOUNT), "memory.limit_in_bytes")]
                elif not controllers:
                    places = [(Path(mount), "memory.max") for mount in _V2_MOUNTS]
                else:
                    continue
                for mount, name in places:
                    found += _limits(mount, group, name)
        if not found:
            return {"limit_bytes": None, "limit_from": None}
        lowest = min(found)
        return {"limit_bytes": lowest[0], "limit_from": lowest[1]}


def _limits(mount: Path, group: str, name: str) -> list[tuple[int, str]]:
    out = []
    parts = Path(group.lstrip("/")).parts
    for depth in range(len(parts) + 1):
        path = mount.joinpath(*parts[:depth], name)
        with contextlib.suppress(OSError, ValueError):
            limit = int(path.read_text())
            if limit < _NO_LIMIT:
                out.append((limit, str(path)))
    return out


def _taken(mapping: tuple[int, int, int, str], now: list[tuple[int, int]]) -> bool:
    start, end = mapping[:2]
    return any(start < stop and begin < end for begin, stop in now)


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None
