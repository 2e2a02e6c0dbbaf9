"""Layer 4: BPF maps, made and read by system call."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import resource
import struct
from collections.abc import Iterator
from pathlib import Path

from profinfer.capture.kernelcall import bpf
from profinfer.capture.objectcode import MapSpec

_CREATE, _LOOKUP, _UPDATE = 0, 1, 2
_PER_CPU_ARRAY = 6
_NAME_LEN = 15


class _Create(ctypes.Structure):
    _fields_ = [
        ("map_type", ctypes.c_uint32),
        ("key_size", ctypes.c_uint32),
        ("value_size", ctypes.c_uint32),
        ("max_entries", ctypes.c_uint32),
        ("map_flags", ctypes.c_uint32),
        ("inner_map_fd", ctypes.c_uint32),
        ("numa_node", ctypes.c_uint32),
        ("map_name", ctypes.c_char * 16),
        ("map_ifindex", ctypes.c_uint32),
    ]


class _Element(ctypes.Structure):
    _fields_ = [
        ("map_fd", ctypes.c_uint32),
        ("key", ctypes.c_uint64),
        ("value", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
    ]


class KernelMap:
    """One map of ours; it lives as long as its descriptor or a program that uses it.

    Raises:
        OSError: the kernel does not make it.
    """

    def __init__(self, spec: MapSpec) -> None:
        self.spec = spec
        attr = _Create(
            map_type=spec.type,
            key_size=spec.key_size,
            value_size=spec.value_size,
            max_entries=spec.max_entries,
            map_flags=spec.flags,
            map_name=spec.name.encode()[:_NAME_LEN],
        )
        try:
            self.fd = bpf(_CREATE, attr)
        except OSError as error:
            if error.errno != errno.EPERM:
                raise
            # Kernels before 5.11 charge maps to the limit of locked memory.
            unlimited = resource.RLIM_INFINITY
            with contextlib.suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_MEMLOCK, (unlimited, unlimited))
            self.fd = bpf(_CREATE, attr)

    def at(self, index: int) -> bytes:
        """The value at an index of an array; in a per-CPU array, of all CPUs, padded to 8 bytes."""
        size = self.spec.value_size
        if self.spec.type == _PER_CPU_ARRAY:
            size = (size + 7 & ~7) * possible_cpus()
        value = ctypes.create_string_buffer(size)
        self._element(_LOOKUP, index, value)
        return value.raw

    def numbers(self, index: int) -> tuple[int, ...]:
        """The 64-bit numbers at an index: one, or one a CPU."""
        value = self.at(index)
        return struct.unpack(f"={len(value) // 8}Q", value)

    def put(self, index: int, value: bytes) -> None:
        """Write the value at an index of an array.

        Raises:
            OSError: the kernel refuses, as a program array does for a program of another kind.
        """
        self._element(_UPDATE, index, ctypes.create_string_buffer(value, len(value)))

    def values(self) -> Iterator[bytes]:
        """Every value of an array, in order."""
        return (self.at(index) for index in range(self.spec.max_entries))

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self.fd)

    def _element(self, command: int, index: int, value: ctypes.Array[ctypes.c_char]) -> None:
        key = ctypes.c_uint32(index)
        attr = _Element(map_fd=self.fd, key=ctypes.addressof(key), value=ctypes.addressof(value))
        bpf(command, attr)


@functools.cache  # it cannot change while the machine runs, and every look at a counter asks
def possible_cpus() -> int:
    """CPUs that the kernel keeps values for; its own ``numpossible_cpus()``."""
    last = Path("/sys/devices/system/cpu/possible").read_text().strip().split(",")[-1]
    return int(last.split("-")[-1]) + 1
