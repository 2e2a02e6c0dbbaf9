"""Layer 4: measures what one probe hit costs here, on a function of our own process.

The forecast of a recording and the estimate in its report rest on this number: kernels and
virtual machines differ by a factor of twenty.
"""

from __future__ import annotations

import ctypes
import os
import time
from dataclasses import dataclass
from pathlib import Path

from profinfer.capture.program import Program
from profinfer.capture.source import bpf_folder, headers_folder
from profinfer.capture.uprobes import AttachPoint
from profinfer.elf.disasm import Decoder
from profinfer.elf.sites import Site, entry_site
from profinfer.elf.symbols import ElfImage

HANDLER = "pf_on_calibrate"
# Functions of libc that are short, harmless and without arguments to get wrong.
_CANDIDATES = ("rand", "random", "clock", "getppid", "sched_yield", "lrand48", "labs", "abs")
_CALLS = 2000
_ROUNDS = 5


@dataclass(frozen=True)
class HitCost:
    """What one hit costs.

    Attributes:
        ns: nanoseconds a hit, the best of several rounds.
        insn: the instruction it was measured on.
        emulated: whether the kernel emulates that instruction.
        attached_by: how the probe was attached.
    """

    ns: int
    insn: str
    emulated: bool
    attached_by: str


def measure_hit(program: Program) -> HitCost | None:
    """Time calls of a libc function without and with a probe.

    Args:
        program: a program with ``bpf/calibrate.bpf.c`` in it. Its handler stays attached to this
            process until the program is released, since removing a probe takes 0.1 s.

    Returns:
        None if libc has no function whose entry the kernel can emulate.
    """
    found = _function()
    if found is None:
        return None
    name, path, site = found
    call = getattr(ctypes.CDLL(None), name)
    without = _best(call)
    point = AttachPoint(HANDLER, str(path), site.offset, False)
    program.group([point], pid=os.getpid()).attach()
    cost = _best(call) - without
    ns = max(0, round(cost))
    return HitCost(ns, site.insn, site.emulated is not None, program.method.value)


def _function() -> tuple[str, Path, Site] | None:
    libc = next(
        (
            Path(line.split(maxsplit=5)[5].strip())
            for line in Path("/proc/self/maps").read_text().splitlines()
            if "/libc.so" in line or "/libc-" in line
        ),
        None,
    )
    if libc is None:
        return None
    image = ElfImage(libc)
    decoder = Decoder(image)
    for name in _CANDIDATES:
        function = image.function(name)
        if function is not None:
            site = entry_site(decoder, function.address)
            if site.emulated is not None:
                return name, image.path, site
    return None


def _best(call: ctypes._NamedFuncPointer) -> float:
    """Nanoseconds a call, of the fastest round: the others met somebody else on the CPU."""
    best = float("inf")
    for _ in range(_ROUNDS):
        start = time.perf_counter_ns()
        for _ in range(_CALLS):
            call()
        best = min(best, time.perf_counter_ns() - start)
    return best / _CALLS


def measure_here() -> HitCost | None:
    """Measure with a small program of its own, for ``profinfer doctor``.

    Raises:
        ProfinferError: BCC or the kernel refuses.
    """
    folder = bpf_folder()
    files = ("events.h", "prelude.bpf.c", "calibrate.bpf.c")
    text = "#include <linux/ptrace.h>\n" + "".join((folder / f).read_text() for f in files)
    flags = ["-DPF_RING_PAGES=16", "-DPF_MAX_THREADS=64"]
    program = Program(text, flags, headers=headers_folder(), pid=os.getpid())
    try:
        return measure_hit(program)
    finally:
        program.release()
