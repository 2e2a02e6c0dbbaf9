"""Layer 4: asks the kernel itself what it allows, with a system call instead of a guess.

Owns the two system calls that profinfer's preflight tries. Needs no bcc, leaves nothing behind.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct

_NUMBERS = {"x86_64": {"bpf": 321, "perf": 298}, "aarch64": {"bpf": 280, "perf": 241}}
_BPF_MAP_CREATE = 0
_RINGBUF_MAP = 27
_PERF_TYPE_HARDWARE = 0
_PERF_ATTR_SIZE = 64
# disabled, exclude_kernel, exclude_hv
_PERF_FLAGS = 1 << 0 | 1 << 5 | 1 << 6


def try_ring_buffer() -> int | None:
    """Create and drop a BPF ring buffer. 0: it works; else the errno; None: cannot be tried."""
    pages = os.sysconf("SC_PAGE_SIZE")
    attr = struct.pack("<IIIII", _RINGBUF_MAP, 0, 0, pages, 0).ljust(72, b"\0")
    return _try("bpf", _BPF_MAP_CREATE, ctypes.create_string_buffer(attr, len(attr)), len(attr))


def try_cycles_counter() -> int | None:
    """Open and close a CPU cycle counter. 0: there is one; else the errno; None: untried."""
    attr = struct.pack("<IIQQQQQ", _PERF_TYPE_HARDWARE, _PERF_ATTR_SIZE, 0, 0, 0, 0, _PERF_FLAGS)
    buffer = ctypes.create_string_buffer(attr.ljust(_PERF_ATTR_SIZE, b"\0"), _PERF_ATTR_SIZE)
    return _try("perf", buffer, 0, -1, -1, 0)


def _try(call: str, *args: object) -> int | None:
    number = _NUMBERS.get(platform.machine(), {}).get(call)
    if number is None:
        return None
    syscall = ctypes.CDLL(None, use_errno=True).syscall
    passed = [
        ctypes.c_long(arg) if isinstance(arg, int) else ctypes.byref(arg)  # type: ignore[arg-type]
        for arg in args
    ]
    fd: int = syscall(ctypes.c_long(number), *passed)
    if fd < 0:
        return ctypes.get_errno() or errno.EINVAL
    os.close(fd)
    return 0
