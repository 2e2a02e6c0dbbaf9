"""Layer 4: counters opened on every CPU, for a BPF program to read.

Owns ``struct perf_event_attr`` and what a refusal means. Events count a whole CPU, whoever runs
there (``bpf/counters.bpf.c`` says why, and who takes the others out).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from profinfer.capture.counters import Counter, Encoding
from profinfer.capture.kernelcall import PERF_ATTR_BYTES, PERF_FLAG_FD_CLOEXEC, perf_event_open
from profinfer.capture.kernelprobe import try_cycles_counter

_EXCLUDE_USER, _EXCLUDE_KERNEL, _EXCLUDE_HV = 1 << 4, 1 << 5, 1 << 6
_TIMES = 3  # PERF_FORMAT_TOTAL_TIME_ENABLED | _RUNNING
_READ = struct.Struct("=QQQ")

Opener = Callable[[ctypes.Array[ctypes.c_char], int, int, int], int]


@dataclass(frozen=True)
class Refused:
    """A counter that the kernel does not open here, and why."""

    counter: Counter
    code: int


@dataclass
class Opened:
    """Counters that count.

    Attributes:
        counters: those that could be opened on at least one CPU.
        files: descriptors by counter and CPU.
        refused: the others.
    """

    counters: list[Counter]
    files: list[dict[int, int]]
    refused: list[Refused]

    def close(self) -> None:
        """Count no more."""
        for held in self.files:
            for fd in held.values():
                os.close(fd)
        self.files = []


def open_counters(
    wanted: Sequence[Counter], cpus: Sequence[int], opener: Opener = perf_event_open
) -> Opened:
    """Open each counter on each CPU; what is refused is left out and named.

    Args:
        wanted: the counters.
        cpus: those that are online.
        opener: the system call.
    """
    opened = Opened([], [], [])
    for counter in wanted:
        held: dict[int, int] = {}
        code = errno.ENOENT
        for cpu in cpus:
            encoding = next((e for e in counter.encodings if e.fits(cpu)), None)
            if encoding is None:
                continue
            try:
                held[cpu] = opener(attr(counter, encoding), -1, cpu, PERF_FLAG_FD_CLOEXEC)
            except OSError as error:
                code = error.errno or errno.EINVAL
        if held:
            opened.counters.append(counter)
            opened.files.append(held)
        else:
            opened.refused.append(Refused(counter, code))
    return opened


def attr(counter: Counter, encoding: Encoding) -> ctypes.Array[ctypes.c_char]:
    """``struct perf_event_attr`` of a counter that is not sampled."""
    flags = 0
    if not counter.system:
        flags |= 0 if counter.user else _EXCLUDE_USER
        flags |= 0 if counter.kernel else _EXCLUDE_KERNEL
        flags |= _EXCLUDE_HV if counter.hardware and not counter.kernel else 0
    raw = struct.pack(
        "=IIQQQQQIIQQ",
        encoding.type,
        PERF_ATTR_BYTES,
        encoding.config,
        0,
        0,
        _TIMES,
        flags,
        0,
        0,
        encoding.config1,
        encoding.config2,
    )
    return ctypes.create_string_buffer(raw, PERF_ATTR_BYTES)


def read_now(fd: int) -> tuple[int, int, int]:
    """Value, ns enabled and ns running of one event.

    Raises:
        OSError: it cannot be read.
    """
    value, enabled, running = _READ.unpack(os.read(fd, _READ.size))
    return value, enabled, running


def online_cpus() -> list[int]:
    """CPUs that run now."""
    out: list[int] = []
    with contextlib.suppress(OSError, ValueError):
        for part in Path("/sys/devices/system/cpu/online").read_text().strip().split(","):
            first, _, last = part.partition("-")
            out.extend(range(int(first), int(last or first) + 1))
    return out or list(range(os.cpu_count() or 1))


def refusal(
    refused: Sequence[Refused], cycles: Callable[[], int | None] = try_cycles_counter
) -> str:
    """One line that says what is not counted, and why; empty if nothing was refused."""
    if not refused:
        return ""
    names = ", ".join(r.counter.name for r in refused)
    codes = {r.code for r in refused}
    if codes & {errno.EACCES, errno.EPERM}:
        return f"counters are not allowed to this process: recorded without {names}; try as root"
    hardware = all(r.counter.hardware for r in refused)
    if hardware and cycles() in (errno.ENOENT, errno.EOPNOTSUPP, errno.ENODEV):
        return (
            "this machine has no hardware counters (a VM without a virtual PMU): recorded without "
            f"{names}; software events work"
        )
    why = ", ".join(sorted(os.strerror(code).lower() for code in codes))
    return f"this CPU does not count {names} ({why}): recorded without"
