"""Layer 4: the only import of bcc. Compiles, loads, attaches, reads counters.

May not know what a token or an operator is; it is given C text, flags and places.
"""

from __future__ import annotations

import ctypes
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profinfer.errors import EnvironmentProblem, ProfinferError

_RETURN, _ENTRY = 1, 0
_HANDOVER_S = 0.5  # the child must outlive our own closing of the descriptors


@dataclass(frozen=True)
class AttachPoint:
    """Where one BPF function is attached: a file offset in a binary."""

    handler: str
    path: str
    offset: int
    is_return: bool


class AttachError(ProfinferError):
    """The kernel refused a uprobe."""


@contextmanager
def _stderr_kept(log: list[str]) -> Iterator[None]:
    """BCC's C++ side writes compiler and verifier messages straight to descriptor 2."""
    saved = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            sink.seek(0)
            log.extend(sink.read().decode(errors="replace").splitlines())


def _import_bcc(headers: Path | None) -> Any:
    if headers is not None:
        # libbcc reads it from the environment when it compiles; without it BCC looks for
        # kernel headers, which few machines have.
        os.environ["BCC_KERNEL_SOURCE"] = str(headers)
    try:
        import bcc
    except ImportError as error:
        raise EnvironmentProblem(
            "BCC's Python bindings are missing",
            hint="apt install python3-bpfcc, and a venv of /usr/bin/python3 made with "
            "--system-site-packages",
        ) from error
    if not hasattr(bcc, "BPF"):
        raise EnvironmentProblem(
            "the installed 'bcc' is not the BPF Compiler Collection but a namesake from PyPI",
            hint="pip uninstall bcc && apt install python3-bpfcc",
        )
    return bcc


class Program:
    """A compiled BPF module and the probes attached to it.

    Args:
        text: C source.
        cflags: ``-D`` definitions.
        headers: header tree BCC compiles against, None for the running kernel's own.
        pid: process the probes are limited to; all its threads are covered.
    """

    def __init__(self, text: str, cflags: list[str], *, headers: Path | None, pid: int) -> None:
        self._bcc = _import_bcc(headers)
        self._pid = pid
        self._fds: dict[AttachPoint, int] = {}
        self._functions: dict[str, Any] = {}
        log: list[str] = []
        try:
            with _stderr_kept(log):
                self._bpf = self._bcc.BPF(text=text, cflags=cflags)
        except Exception as error:
            raise EnvironmentProblem(
                f"BCC could not compile the probes: {_first_error(log) or error}",
                hint="profinfer doctor; profinfer record --print-bpf shows the program",
            ) from error

    def load(self, function: str) -> Any:
        """Verify and load one function; returns bcc's handle.

        Raises:
            EnvironmentProblem: the kernel's verifier refused it.
        """
        if function not in self._functions:
            log: list[str] = []
            try:
                with _stderr_kept(log):
                    loaded = self._bpf.load_func(function, self._bcc.BPF.KPROBE)
            except Exception as error:
                said = next(
                    (line for line in reversed(log) if line and "processed" not in line), error
                )
                raise EnvironmentProblem(
                    f"the kernel refused the BPF program {function}: {said}",
                    hint="profinfer doctor",
                ) from error
            self._functions[function] = loaded
        return self._functions[function]

    def set_tail_call(self, table: str, index: int, function: str) -> None:
        """Put a loaded function into a program array."""
        self._bpf[table][ctypes.c_int(index)] = ctypes.c_int(self.load(function).fd)

    def attach(self, point: AttachPoint, *, pid: int | None = None) -> None:
        """Attach one uprobe or uretprobe, to the program's process unless ``pid`` is given.

        bcc's own ``attach_uprobe`` is not used: its detach touches tracefs, which need not be
        mounted, and takes addresses where the kernel takes file offsets.
        """
        function = self.load(point.handler)
        kind = _RETURN if point.is_return else _ENTRY
        pid = self._pid if pid is None else pid
        name = f"pf_{'r' if point.is_return else 'p'}_{point.offset:x}_{pid}".encode()
        log: list[str] = []
        with _stderr_kept(log):
            fd = self._bcc.lib.bpf_attach_uprobe(
                function.fd,
                kind,
                name,
                os.fsencode(point.path),
                point.offset,
                pid,
                # The C function's reference-counter offset, which bcc's Python forgets to pass.
                ctypes.c_uint(0),
            )
        if fd < 0:
            raise AttachError(
                f"the kernel refused a uprobe at {Path(point.path).name}+{point.offset:#x}"
                + (f": {log[-1]}" if log else ""),
                hint="profinfer doctor",
            )
        self._fds[point] = fd

    def detach(self, point: AttachPoint) -> None:
        """Remove one probe: afterwards it costs nothing."""
        os.close(self._fds.pop(point))

    def detach_all(self) -> None:
        """Remove every probe, for a target that goes on. Takes about 0.1 s a probe."""
        for point in list(self._fds):
            self.detach(point)

    def release(self) -> None:
        """Remove every probe in the background, for a target that has ended.

        Each removal waits for grace periods of the kernel, one after the other. A child that holds
        the descriptors and exits does the waiting; ours are then not the last ones.
        """
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
        self.detach_all()

    def ring_fd(self, table: str) -> int:
        """File descriptor of a ring-buffer map."""
        return int(self._bpf[table].map_fd)

    def counters(self, table: str, count: int) -> list[int]:
        """A per-CPU array of 64-bit counters, summed over the CPUs."""
        values = self._bpf[table]
        return [sum(values[ctypes.c_int(i)]) for i in range(count)]

    def array(self, table: str, count: int) -> list[int]:
        """The first entries of an array of 64-bit numbers."""
        return [int(self._bpf[table][ctypes.c_int(i)].value) for i in range(count)]

    def set_array(self, table: str, index: int, value: int) -> None:
        """Write one entry of an array of 64-bit numbers."""
        self._bpf[table][ctypes.c_int(index)] = ctypes.c_ulonglong(value)

    def values(self, table: str) -> list[bytes]:
        """Every value of a map, as raw bytes."""
        return [bytes(value) for value in self._bpf[table].values()]


def _first_error(log: list[str]) -> str | None:
    return next((line for line in log if "error:" in line), None)
