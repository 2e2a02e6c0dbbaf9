"""Layer 4: a BPF program in the kernel: its maps, its functions, its groups of probes.

May not know what a token or an operator is; it is given C text, flags and places. Object code
comes from the cache, else from the compiler; loading is by system call, without BCC.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Iterable
from pathlib import Path

from profinfer.capture.compiler import compile_text
from profinfer.capture.kernelmap import KernelMap
from profinfer.capture.kernelprog import (
    KPROBE,
    PERF_EVENT,
    RAW_TRACEPOINT,
    ProgramKind,
    load_function,
    run_at_tracepoint,
    verdict,
)
from profinfer.capture.objectcache import ObjectCache, object_key
from profinfer.capture.objectcode import ObjectCode
from profinfer.capture.uprobes import (
    UPROBE_MULTI,
    AttachPoint,
    Method,
    ProbeGroup,
    best_method,
    release,
)
from profinfer.errors import EnvironmentProblem

# r0 = 0; exit
_NOTHING = struct.pack("<BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)


class Program:
    """A BPF program and the probes attached to it.

    Args:
        text: C source.
        cflags: ``-D`` definitions.
        headers: header tree BCC compiles against, None for the running kernel's own.
        pid: process the probes are limited to; all its threads are covered.
        method: how probes are attached; None takes the best that this kernel has.

    Attributes:
        method: how probes are attached.
        compiled: False when the object code came from the cache.

    Raises:
        EnvironmentProblem: BCC is missing or does not compile it, or the kernel makes no maps.
    """

    def __init__(
        self,
        text: str,
        cflags: list[str],
        *,
        headers: Path | None,
        pid: int,
        method: Method | None = None,
    ) -> None:
        self._pid = pid
        self._cache = ObjectCache.of_user()
        self._key = object_key(text, cflags, headers)
        cached = self._cache.get(self._key)
        self.compiled = cached is None
        self._code: ObjectCode = cached or compile_text(text, cflags, headers)
        if cached is None:
            self._cache.put(self._key, self._code)
        try:
            self._maps = {spec.name: KernelMap(spec) for spec in self._code.maps}
        except OSError as error:
            raise EnvironmentProblem(
                f"the kernel makes no BPF map: {error.strerror}", hint="profinfer doctor"
            ) from error
        self._functions: dict[str, int] = {}
        self._groups: list[ProbeGroup] = []
        self._tracepoints: list[int] = []
        self.method = method or _best_method()

    def load(self, function: str) -> int:
        """Verify and load one function of a uprobe, once; returns its descriptor.

        Raises:
            EnvironmentProblem: the kernel's verifier refused it.
        """
        return self._loaded(function, ProgramKind(KPROBE, _attach_type(self.method)))

    def load_together(self, functions: Iterable[str]) -> None:
        """Load several at once: the verifier takes 0.1 s for a big one, on a CPU of its own each.

        Raises:
            EnvironmentProblem: the kernel's verifier refused one.
        """
        refused: list[EnvironmentProblem] = []

        def load(function: str) -> None:
            try:
                self.load(function)
            except EnvironmentProblem as error:
                refused.append(error)

        threads = [threading.Thread(target=load, args=(function,)) for function in functions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if refused:
            raise refused[0]

    def load_perf_event(self, function: str) -> int:
        """Verify and load one function of a perf event, once; returns its descriptor.

        Raises:
            EnvironmentProblem: the kernel's verifier refused it.
        """
        return self._loaded(function, ProgramKind(PERF_EVENT, 0))

    def open_raw_tracepoint(self, name: str, function: str) -> int:
        """Run a function at a raw tracepoint for as long as the descriptor returned is open.

        Raises:
            EnvironmentProblem: the kernel's verifier refused it.
            OSError: there is no such tracepoint, or the kernel refuses to attach.
        """
        return run_at_tracepoint(name, self._loaded(function, ProgramKind(RAW_TRACEPOINT, 0)))

    def _loaded(self, function: str, kind: ProgramKind) -> int:
        if function not in self._functions:
            code = self._code.linked(function, [held.fd for held in self._maps.values()])
            try:
                self._functions[function] = load_function(code, function, kind)
            except OSError as error:
                self._cache.drop(self._key)
                said = verdict(code, function, kind) or error.strerror
                raise EnvironmentProblem(
                    f"the kernel refused the BPF program {function}: {said}",
                    hint="profinfer doctor",
                ) from error
        return self._functions[function]

    def on_tracepoint(self, tracepoint: str, function: str) -> None:
        """Run a function at a raw tracepoint of the kernel, of every process, until ``release``.

        Raises:
            EnvironmentProblem: the kernel refused the function or has no such tracepoint.
        """
        try:
            self._tracepoints.append(self.open_raw_tracepoint(tracepoint, function))
        except OSError as error:
            raise EnvironmentProblem(
                f"the kernel runs no BPF program at {tracepoint}: {error.strerror}",
                hint="profinfer doctor",
            ) from error

    def set_tail_call(self, table: str, index: int, function: str) -> None:
        """Put a loaded function into a program array."""
        self._maps[table].put(index, struct.pack("=I", self.load(function)))

    def group(self, points: Iterable[AttachPoint], *, pid: int | None = None) -> ProbeGroup:
        """Probes to be attached and detached together; not attached yet.

        Args:
            points: where.
            pid: another process than the program's.
        """
        group = ProbeGroup(self, self.method, points, self._pid if pid is None else pid)
        self._groups.append(group)
        return group

    def release(self) -> None:
        """The end: remove every probe in the background; maps and functions go with them."""
        release([fd for group in self._groups for fd in group.take()], self.method)
        for fd in (*self._tracepoints, *self._functions.values()):
            os.close(fd)
        self._tracepoints, self._functions = [], {}
        for held in self._maps.values():
            held.close()
        self._maps = {}

    def ring_fd(self, table: str) -> int:
        """File descriptor of a ring-buffer map."""
        return self._maps[table].fd

    def counters(self, table: str, count: int) -> list[int]:
        """A per-CPU array of 64-bit counters, summed over the CPUs."""
        return [sum(self._maps[table].numbers(i)) for i in range(count)]

    def array(self, table: str, count: int) -> list[int]:
        """The first entries of an array of 64-bit numbers."""
        return [self._maps[table].numbers(i)[0] for i in range(count)]

    def set_array(self, table: str, index: int, value: int) -> None:
        """Write one entry of an array of 64-bit numbers."""
        self._maps[table].put(index, struct.pack("=Q", value))

    def values(self, table: str) -> list[bytes]:
        """Every value of an array, as raw bytes."""
        return list(self._maps[table].values())

    def put(self, table: str, index: int, value: bytes) -> None:
        """Write one entry of an array, as raw bytes."""
        self._maps[table].put(index, value)


def _attach_type(method: Method) -> int:
    return UPROBE_MULTI if method is Method.MULTI else 0


def _best_method() -> Method:
    try:
        program = load_function(_NOTHING, "pf_nothing", ProgramKind(KPROBE, UPROBE_MULTI))
    except OSError:
        return Method.PERF
    try:
        return best_method(program)
    finally:
        os.close(program)
