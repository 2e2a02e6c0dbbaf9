"""Layer 8: how this process's memory is had from the kernel, for verbs that analyse long traces.

Analyses make and drop arrays of some ten megabytes by the hundred. By default the C library gives
each back to the kernel and asks for the next, and the kernel clears it, page fault by page fault:
of a report on ten million operators that was half of the time, on a virtual machine.
"""

from __future__ import annotations

import contextlib
import ctypes

# malloc.h of glibc; other C libraries have no mallopt, or one that refuses.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3
_LARGEST_KEPT = 1 << 30


def keep_freed_memory() -> None:
    """From now on, what is freed is kept for the next array. It stays ours until the end."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)
        libc.mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
        libc.mallopt(_TOP_PAD, 64 << 20)
