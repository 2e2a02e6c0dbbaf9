"""Layer 1: the images of a running process, and which of them are parts of one engine.

Reads /proc only; nothing of the process is stopped or changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from profinfer.elf.debugfile import matches
from profinfer.elf.modules import EngineImage, Program, is_engine, roles_of
from profinfer.elf.symbols import ElfImage
from profinfer.errors import TargetError

# Reading all symbols of a library takes long; one that never names these has no engine in it.
_SIGNS = (b"ggml_", b"llama_", b"cblas_sgemm")


class MapLine(NamedTuple):
    """One line of /proc/PID/maps.

    Attributes:
        start, end: addresses.
        mode: such as ``r-xp``.
        offset: in the file.
        device: major and minor number of the file's.
        inode: of the file.
        path: as the process names it, or ``[heap]``; empty for memory of no name.
    """

    start: int
    end: int
    mode: str
    offset: int
    device: tuple[int, int]
    inode: int
    path: str

    @property
    def is_file(self) -> bool:
        """Whether it is of a file."""
        return self.path.startswith("/")

    @property
    def is_code(self) -> bool:
        """Whether it may be executed."""
        return "x" in self.mode


def map_lines(pid: int) -> Iterator[MapLine]:
    """What a process has mapped, in the order of addresses.

    Raises:
        OSError: there is no such process, or it cannot be looked at.
    """
    # A path may hold any byte but a line feed, which the kernel writes as \012.
    for line in os.fsdecode(Path(f"/proc/{pid}/maps").read_bytes()).split("\n")[:-1]:
        where, mode, offset, device, inode, *path = line.split(maxsplit=5)
        start, _, end = where.partition("-")
        major, _, minor = device.partition(":")
        yield MapLine(
            int(start, 16),
            int(end, 16),
            mode,
            int(offset, 16),
            (int(major, 16), int(minor, 16)),
            int(inode),
            path[0] if path else "",
        )


@dataclass(frozen=True)
class Mapping:
    """An executable file in a process.

    Attributes:
        path: as the process names it.
        opened: a path by which this process can open the same file: through the target's root
            (containers), or through its mapping when the file has been replaced.
    """

    path: str
    opened: Path


def executable_mappings(pid: int) -> list[Mapping]:
    """Files with executable pages, each once, in the order they lie in memory.

    Raises:
        TargetError: there is no such process, or it cannot be looked at.
    """
    try:
        lines = list(map_lines(pid))
    except FileNotFoundError:
        raise TargetError(f"there is no process {pid}", "ps -e | grep llama") from None
    except PermissionError:
        raise TargetError(f"process {pid} cannot be looked at: no permission", "sudo") from None
    except ProcessLookupError:
        raise TargetError(f"process {pid} has ended") from None
    found: dict[str, Mapping] = {}
    for line in lines:
        if line.is_file and line.is_code and line.path not in found:
            found[line.path] = Mapping(line.path, _openable(pid, line))
    return list(found.values())


def _openable(pid: int, line: MapLine) -> Path:
    if line.path.endswith(" (deleted)"):
        return Path(f"/proc/{pid}/map_files/{line.start:x}-{line.end:x}")
    inside = Path(f"/proc/{pid}/root{line.path}")
    try:
        if os.path.samefile(inside, line.path):
            return Path(line.path)
    except OSError:
        pass  # not there for us: the target lives in another mount namespace
    return inside


class ProcessImages:
    """The engine images of one process; remembers what it has read between looks.

    Args:
        pid: the process.
        debug_files: files with the symbols that were stripped from its images.
    """

    def __init__(self, pid: int, debug_files: Sequence[Path] = ()) -> None:
        self.pid = pid
        self._debug_files = [ElfImage(path) for path in debug_files]
        self._known: dict[str, EngineImage | None] = {}

    def look(self) -> tuple[EngineImage, ...]:
        """Images with a role in an engine that are mapped now."""
        found = []
        for mapping in executable_mappings(self.pid):
            if mapping.path not in self._known:
                self._known[mapping.path] = self._read(mapping)
            image = self._known[mapping.path]
            if image is not None:
                found.append(image)
        return tuple(found)

    def _read(self, mapping: Mapping) -> EngineImage | None:
        try:
            image = ElfImage(mapping.opened)
            names = image.table(".dynstr") + image.table(".strtab")
        except TargetError:
            return None  # not ours to judge: vdso, other machines' files
        given = next((d for d in self._debug_files if matches(image, d)), None)
        if given is not None:
            image.debug = given
        elif not any(sign in names for sign in _SIGNS):
            return None
        roles = roles_of(image)
        return EngineImage(image, roles) if roles else None

    def program(self) -> Program:
        """The first engine of the process as a program to plan for, and the others' paths.

        Raises:
            TargetError: there is no engine in the process.
        """
        engines = engines_of(self.look())
        executable = Path(f"/proc/{self.pid}/exe")
        path = Path(os.readlink(executable))
        if not engines:
            raise TargetError(
                f"process {self.pid} ({path.name}) has no ggml or llama.cpp loaded",
                "give the pid of the process that runs the model",
            )
        others = tuple(image.elf for engine in engines[1:] for image in engine)
        return Program(path, engines[0], others, ())


def engines_of(images: Iterable[EngineImage]) -> list[tuple[EngineImage, ...]]:
    """Tell engines in one process apart: images that need one another are one engine.

    A needed name is looked for in the image's own folder first, so that two packages that each
    bring a libggml-base.so stay two. The engine that computes (role ggml-cpu) comes first, then
    in the order of the images.
    """
    everything = list(images)
    group = {id(image): n for n, image in enumerate(everything)}
    for image in everything:
        for other in _needed(image, everything):
            old, new = group[id(other)], group[id(image)]
            for key, value in group.items():
                if value == old:
                    group[key] = new
    engines: dict[int, list[EngineImage]] = {}
    for image in everything:
        engines.setdefault(group[id(image)], []).append(image)
    return sorted(
        (tuple(engine) for engine in engines.values() if is_engine(engine)),
        key=lambda engine: not any("ggml-cpu" in image.roles for image in engine),
    )


def _needed(image: EngineImage, among: list[EngineImage]) -> Iterator[EngineImage]:
    for name in image.elf.needed:
        same = [i for i in among if i.elf.soname == name or i.elf.path.name == name]
        near = [i for i in same if i.elf.path.parent == image.elf.path.parent]
        yield from (near or same)[:1]
