"""Layer 4: the two system calls that libc has no function for: bpf(2) and perf_event_open(2).

Owns their numbers and nothing above them. The recorder makes them itself, because BCC's library
brings a whole compiler with it (some 150 MB of the process).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform

_NUMBERS = {"x86_64": {"bpf": 321, "perf": 298}, "aarch64": {"bpf": 280, "perf": 241}}
PERF_ATTR_BYTES = 72  # PERF_ATTR_SIZE_VER1: up to config2
PERF_FLAG_FD_CLOEXEC = 8
PERF_SET_BPF, PERF_ENABLE = 0x40042408, 0x2400  # PERF_EVENT_IOC_*
_libc = ctypes.CDLL(None, use_errno=True)


def known() -> bool:
    """Whether the calls' numbers are known on this architecture."""
    return platform.machine() in _NUMBERS


def bpf(command: int, attr: ctypes.Structure | ctypes.Array[ctypes.c_char]) -> int:
    """``bpf(command, attr, sizeof(attr))``; other threads of ours run meanwhile.

    Args:
        command: ``enum bpf_cmd`` of linux/bpf.h.
        attr: the member of ``union bpf_attr`` for it; addresses in it must stay alive.

    Returns:
        What the call returned: a file descriptor, or 0.

    Raises:
        OSError: the kernel refused; ENOSYS also where the machine's call number is not known.
    """
    size = ctypes.sizeof(attr)
    return _call("bpf", ctypes.c_long(command), ctypes.byref(attr), ctypes.c_long(size))


def perf_event_open(attr: ctypes.Array[ctypes.c_char], pid: int, cpu: int, flags: int) -> int:
    """Open one perf event, in no group; returns its descriptor.

    Args:
        attr: ``struct perf_event_attr``.
        pid: process, or -1 for all of them.
        cpu: CPU, or -1 for all of them.
        flags: ``PERF_FLAG_*``.

    Raises:
        OSError: the kernel refused; ENOSYS also where the machine's call number is not known.
    """
    numbers = (ctypes.c_long(n) for n in (pid, cpu, -1, flags))
    return _call("perf", ctypes.byref(attr), *numbers)


def _call(name: str, *args: object) -> int:
    number = _NUMBERS.get(platform.machine(), {}).get(name)
    if number is None:
        raise OSError(errno.ENOSYS, f"no number of {name} known for {platform.machine()}")
    result = int(_libc.syscall(ctypes.c_long(number), *args))
    if result < 0:
        code = ctypes.get_errno() or errno.EINVAL
        raise OSError(code, os.strerror(code))
    return result
