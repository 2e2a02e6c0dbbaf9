"""Layer 4: BPF functions, verified and loaded by system call, and run at raw tracepoints."""

from __future__ import annotations

import ctypes
import os
from typing import NamedTuple

from profinfer.capture.kernelcall import bpf

KPROBE, PERF_EVENT, RAW_TRACEPOINT = 2, 7, 17  # enum bpf_prog_type
_PROG_LOAD, _RAW_TRACEPOINT_OPEN = 5, 17  # enum bpf_cmd
_LOG_BYTES = 4 << 20
_NAME_LEN = 15


class _Load(ctypes.Structure):
    _fields_ = [
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64),
        ("kern_version", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_name", ctypes.c_char * 16),
        ("prog_ifindex", ctypes.c_uint32),
        ("expected_attach_type", ctypes.c_uint32),
    ]


class _RawTracepoint(ctypes.Structure):
    _fields_ = [("name", ctypes.c_uint64), ("prog_fd", ctypes.c_uint32), ("pad", ctypes.c_uint32)]


class ProgramKind(NamedTuple):
    """What a function is loaded for: ``enum bpf_prog_type`` and ``enum bpf_attach_type``."""

    program: int
    attach: int


def load_function(
    code: bytes, name: str, kind: ProgramKind, log: ctypes.Array[ctypes.c_char] | None = None
) -> int:
    """Verify and load one function; returns its descriptor.

    Args:
        code: instructions with descriptors of maps that exist.
        name: what the kernel shows of it, at most 15 characters.
        kind: what it is loaded for.
        log: takes what the verifier says.

    Raises:
        OSError: the kernel refused it.
    """
    insns = ctypes.create_string_buffer(code, len(code))
    terms = ctypes.create_string_buffer(b"GPL")
    attr = _Load(
        prog_type=kind.program,
        insn_cnt=len(code) // 8,
        insns=ctypes.addressof(insns),
        license=ctypes.addressof(terms),
        log_level=1 if log else 0,
        log_size=len(log) if log else 0,
        log_buf=ctypes.addressof(log) if log else 0,
        prog_name=name.encode()[:_NAME_LEN],
        expected_attach_type=kind.attach,
    )
    return bpf(_PROG_LOAD, attr)


def verdict(code: bytes, name: str, kind: ProgramKind) -> str | None:
    """What the verifier says last of a function that it refuses."""
    log = ctypes.create_string_buffer(_LOG_BYTES)
    try:
        os.close(load_function(code, name, kind, log))
    except OSError:
        lines = log.value.decode(errors="replace").splitlines()
        return next((ln for ln in reversed(lines) if ln and "processed" not in ln), None)
    return None


def run_at_tracepoint(name: str, program: int) -> int:
    """Run a loaded function at a raw tracepoint for as long as the descriptor returned is open.

    Raises:
        OSError: there is no such tracepoint, or the kernel refuses.
    """
    text = ctypes.create_string_buffer(name.encode())
    return bpf(_RAW_TRACEPOINT_OPEN, _RawTracepoint(ctypes.addressof(text), program))
