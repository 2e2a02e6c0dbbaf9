"""Layer 4: puts loaded BPF functions on instructions, in groups that come and go together.

Two ways. A uprobe-multi link (Linux 6.6) takes many places and is removed in some 80 ms however
many there are, since the kernel's grace periods of several links can be waited for at once. A perf
event takes one place, and the kernel removes one after the other, 0.1 s each.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Protocol

from profinfer.capture.kernelcall import (
    PERF_ATTR_BYTES,
    PERF_ENABLE,
    PERF_FLAG_FD_CLOEXEC,
    PERF_SET_BPF,
    bpf,
    perf_event_open,
)
from profinfer.errors import ProfinferError

UPROBE_MULTI = 48  # enum bpf_attach_type: what a function of such a link must be loaded for
_LINK_CREATE = 28
_MULTI_RETURN = 1
_PMU = Path("/sys/bus/event_source/devices/uprobe")
_HANDOVER_S = 0.5  # the child must outlive our own closing of the descriptors


class Method(Enum):
    """How probes are attached; the value is what a trace and ``doctor`` say."""

    MULTI = "uprobe-multi link"
    PERF = "perf event"


@dataclass(frozen=True)
class AttachPoint:
    """Where one BPF function is attached: a file offset in a binary."""

    handler: str
    path: str
    offset: int
    is_return: bool


class AttachError(ProfinferError):
    """The kernel refused a uprobe."""


class Loader(Protocol):
    """Gives the descriptor of a loaded BPF function."""

    def load(self, function: str) -> int:
        """Load it if it is not loaded yet."""


class ProbeGroup:
    """Probes on one process that are attached and detached together, as often as wanted.

    Args:
        loader: loads the handlers, for ``method``.
        method: how they are attached.
        points: where.
        pid: the process; all its threads are covered.
    """

    def __init__(
        self, loader: Loader, method: Method, points: Iterable[AttachPoint], pid: int
    ) -> None:
        self._loader = loader
        self._method = method
        self._points = tuple(points)
        self._pid = pid
        self._fds: list[int] = []

    @property
    def attached(self) -> bool:
        """Whether the probes are in place."""
        return bool(self._fds)

    def attach(self) -> None:
        """Put the probes in place, all or none; nothing to do if they are.

        Raises:
            AttachError: the kernel refused one.
        """
        if self._fds:
            return
        places: dict[tuple[str, str, bool], list[int]] = {}
        for point in self._points:
            places.setdefault((point.handler, point.path, point.is_return), []).append(point.offset)
        fds: list[int] = []
        try:
            for (handler, path, is_return), offsets in places.items():
                program = self._loader.load(handler)
                if self._method is Method.MULTI:
                    fds.append(_link(program, path, offsets, is_return, self._pid))
                    continue
                for offset in offsets:
                    fd = _event(program, path, offset, is_return, self._pid)
                    fds.append(fd)
        except AttachError:
            close_together(fds)
            raise
        self._fds = fds

    def detach(self) -> None:
        """Remove the probes: afterwards they cost nothing, and no handler of them runs."""
        close_together(self.take())

    def take(self) -> list[int]:
        """The descriptors that keep the probes, now the caller's to close."""
        fds, self._fds = self._fds, []
        return fds


def close_together(fds: list[int]) -> None:
    """Close descriptors of probes at once, so that the waits for grace periods overlap."""
    for thread in _closing(fds):
        thread.join()


def release(fds: list[int], method: Method) -> None:
    """Close descriptors of probes without waiting for it.

    Perf events are removed one after the other however they are closed. A child that holds them
    and exits does the waiting; ours are then not the last ones.
    """
    if method is Method.MULTI:
        _closing(fds)
        return
    child = os.fork()
    if child == 0:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for standard in range(3):  # nobody who reads our output must wait for the child
            os.dup2(null, standard)
        if os.fork() == 0:
            time.sleep(_HANDOVER_S)
        os._exit(0)
    os.waitpid(child, 0)
    for fd in fds:
        os.close(fd)


def _closing(fds: list[int]) -> list[threading.Thread]:
    threads = [threading.Thread(target=os.close, args=(fd,)) for fd in fds]
    for thread in threads:
        thread.start()
    return threads


# --- uprobe-multi links -----------------------------------------------------------------------


class _UprobeMulti(ctypes.Structure):
    _fields_ = [
        ("prog_fd", ctypes.c_uint32),
        ("target_fd", ctypes.c_uint32),
        ("attach_type", ctypes.c_uint32),
        ("flags", ctypes.c_uint32),
        ("path", ctypes.c_uint64),
        ("offsets", ctypes.c_uint64),
        ("ref_ctr_offsets", ctypes.c_uint64),
        ("cookies", ctypes.c_uint64),
        ("cnt", ctypes.c_uint32),
        ("multi_flags", ctypes.c_uint32),
        ("pid", ctypes.c_int32),
    ]


def _create_link(program: int, path: str, offsets: list[int], is_return: bool, pid: int) -> int:
    where = ctypes.create_string_buffer(os.fsencode(path))
    numbers = (ctypes.c_uint64 * len(offsets))(*offsets)
    attr = _UprobeMulti(
        prog_fd=program,
        attach_type=UPROBE_MULTI,
        path=ctypes.addressof(where),
        offsets=ctypes.addressof(numbers),
        cnt=len(offsets),
        multi_flags=_MULTI_RETURN if is_return else 0,
        pid=pid,
    )
    return bpf(_LINK_CREATE, attr)


def _link(program: int, path: str, offsets: list[int], is_return: bool, pid: int) -> int:
    try:
        return _create_link(program, path, offsets, is_return, pid)
    except OSError as error:
        raise _refused(path, offsets[0], error) from error


def best_method(program: int) -> Method:
    """Whether this kernel's uprobe-multi links can be used.

    Args:
        program: a BPF function that was loaded for UPROBE_MULTI.

    The first kernels that have them take a process for a thread: the probes would miss all other
    threads. They are told by a process number that only later ones refuse, as libbpf does
    (``probe_uprobe_multi_link`` in its features.c).
    """
    for pid, wanted in ((0, errno.EBADF), (-1, errno.EINVAL)):
        try:
            os.close(_create_link(program, "/", [0], False, pid))
        except OSError as error:
            if error.errno == wanted:
                continue
        return Method.PERF
    return Method.MULTI


# --- perf events ------------------------------------------------------------------------------


def _event(program: int, path: str, offset: int, is_return: bool, pid: int) -> int:
    """One perf event of the kind uprobe (perf_event_open(2), config1 and config2)."""
    try:
        kind = int((_PMU / "type").read_text())
        bit = int((_PMU / "format" / "retprobe").read_text().split(":")[1])
        where = ctypes.create_string_buffer(os.fsencode(path))
        # type, size, config, sample_period, sample_type, read_format, flags, wakeup_events,
        # bp_type, config1: the path, config2: the offset
        fields = (kind, PERF_ATTR_BYTES, is_return << bit, 1, 0, 0, 0, 1, 0)
        attr = struct.pack("=IIQQQQQIIQQ", *fields, ctypes.addressof(where), offset)
        buffer = ctypes.create_string_buffer(attr, len(attr))
        fd = perf_event_open(buffer, pid, -1, PERF_FLAG_FD_CLOEXEC)
    except OSError as error:
        raise _refused(path, offset, error) from error
    try:
        fcntl.ioctl(fd, PERF_SET_BPF, program)
        fcntl.ioctl(fd, PERF_ENABLE, 0)
    except OSError as error:
        os.close(fd)
        raise _refused(path, offset, error) from error
    return fd


def _refused(path: str, offset: int, error: OSError) -> AttachError:
    return AttachError(
        f"the kernel refused a uprobe at {Path(path).name}+{offset:#x}: {error.strerror}",
        hint="profinfer doctor",
    )
