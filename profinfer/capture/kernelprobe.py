"""Layer 4: asks the kernel itself what it allows, with a system call instead of a guess.

Owns the two system calls that profinfer's preflight tries. Needs no bcc, leaves nothing behind.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable

from profinfer.capture.kernelcall import bpf, known, perf_event_open

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
    buffer = ctypes.create_string_buffer(attr, len(attr))
    return _try(lambda: bpf(_BPF_MAP_CREATE, buffer))


def try_cycles_counter() -> int | None:
    """Open and close a CPU cycle counter. 0: there is one; else the errno; None: untried."""
    attr = struct.pack("<IIQQQQQ", _PERF_TYPE_HARDWARE, _PERF_ATTR_SIZE, 0, 0, 0, 0, _PERF_FLAGS)
    buffer = ctypes.create_string_buffer(attr.ljust(_PERF_ATTR_SIZE, b"\0"), _PERF_ATTR_SIZE)
    return _try(lambda: perf_event_open(buffer, 0, -1, 0))


def _try(opens: Callable[[], int]) -> int | None:
    if not known():
        return None
    try:
        os.close(opens())
    except OSError as error:
        return error.errno or errno.EINVAL
    return 0
