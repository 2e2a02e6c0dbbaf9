"""Layer 1: measures bandwidth and compute peaks with a small C program, else with numpy.

A C program, compiled for this CPU, because numpy's matrix product measures its library as much
as the machine (which BLAS, how many threads it starts) and numpy has no 8-bit dot product.
Without a compiler numpy is better than nothing, and the method says so. Both run as children,
one for each number of threads, and print the same lines. Imports the standard library only.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from profinfer.errors import ProfinferError
from profinfer.machine.roofs import FEW, KINDS, Calibration, Machine, Roof

UNDISTURBED = 0.95  # of the CPU time that the threads could have had; as in kernel.c
REPEATS = 20
SECONDS = 20.0  # for all that is measured, setting up left out
REPEAT_MS = 4.0
_FLAGS = ("-O3", "-march=native", "-ffp-contract=fast", "-pthread")
_CPUS = Path("/sys/devices/system/cpu")


class CalibrationFailed(ProfinferError):
    """The machine could not be measured."""


def thread_counts(cpus: int, cores: int | None = None) -> tuple[int, ...]:
    """All counts up to 8 CPUs; of more CPUs the powers of two, the cores and all of them."""
    if cpus <= 8:
        return tuple(range(1, cpus + 1))
    powers = {1 << i for i in range(cpus.bit_length()) if 1 << i <= cpus}
    return tuple(sorted(powers | {cpus} | ({cores} if cores and cores < cpus else set())))


def array_megabytes(memory_bytes: int | None) -> int:
    """MB of all arrays: 4 times all last caches, at least 384, at most an eighth of memory.

    STREAM's rule. A repeat reads a sixth of it, and the next one another sixth.
    """
    wanted = max(384, 4 * last_caches_bytes() // 10**6)
    return max(24, min(wanted, (memory_bytes or 8 << 30) // 8 // 10**6))


def last_caches_bytes(cpus: Path = _CPUS) -> int:
    """Bytes of all caches of the highest level, 0 where the kernel does not tell."""
    caches: dict[tuple[int, str], int] = {}
    for folder in cpus.glob("cpu[0-9]*/cache/index*"):
        try:
            level = int((folder / "level").read_text())
            size = (folder / "size").read_text().strip()
            sharing = (folder / "shared_cpu_list").read_text().strip()
            number = int(size.rstrip("KMG"))
        except (OSError, ValueError):
            continue
        caches[level, sharing] = number * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(
            size[-1], 1
        )
    highest = max((level for level, _ in caches), default=0)
    return sum(size for (level, _), size in caches.items() if level == highest)


def measure(
    machine: Machine,
    threads: Sequence[int],
    *,
    repeats: int = REPEATS,
    seconds: float = SECONDS,
    progress: Callable[[int], None] = lambda threads: None,
) -> Calibration:
    """Measure every kind at every number of threads.

    Args:
        machine: this machine.
        threads: numbers of threads.
        repeats: undisturbed repeats wanted of each.
        seconds: that all of it may take on a busy machine; about a tenth on a quiet one.
        progress: called with the number of threads that comes next.

    Raises:
        CalibrationFailed: a kernel did not run.
    """
    size = array_megabytes(machine.memory_bytes)
    each = seconds / (len(KINDS) * len(threads))
    cpus = len(os.sched_getaffinity(0))
    roofs: list[Roof] = []
    with tempfile.TemporaryDirectory(prefix="profinfer-") as scratch:
        command, method = _kernel(Path(scratch))
        for count in threads:
            progress(count)
            arguments = [count, repeats, size, REPEAT_MS, each]
            env = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
            done = subprocess.run(
                [*command, *map(str, arguments)],
                capture_output=True, text=True, env=env, timeout=60 + 4 * seconds, check=False,
            )  # fmt: skip
            if done.returncode:
                said = (done.stderr.strip().splitlines() or ["no message"])[-1]
                raise CalibrationFailed(
                    f"the kernel failed with {count} threads ({done.returncode}): {said}",
                    "profinfer calibrate --threads 1",
                )
            roofs += summed(count, map(json.loads, done.stdout.splitlines()), cpus=cpus)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Calibration(machine, now, method, tuple(roofs))


def summed(threads: int, lines: Iterable[dict[str, Any]], *, cpus: int) -> list[Roof]:
    """One Roof a kind, from the lines of a kernel.

    Only undisturbed repeats count, unless there are too few. Then arithmetic, which goes on as
    long as a thread has its CPU, is set in proportion to the CPU time that the threads had of what
    so many CPUs have; bandwidth, which others use as well, is not.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    could = min(1.0, cpus / threads)
    for line in lines:
        found.setdefault(line["kind"], []).append((line["per_s"], line["cpu"]))
    out = []
    for kind, repeats in found.items():
        clean = [rate for rate, cpu in repeats if cpu >= UNDISTURBED]
        if len(clean) >= FEW:
            rates = sorted(clean)
        else:
            in_proportion = kind in ("fp32", "int8")
            rates = sorted(
                rate * could / cpu if in_proportion and 0 < cpu < could else rate
                for rate, cpu in repeats
            )
        middle = statistics.median(rates)
        low, high = (rates[round(q * (len(rates) - 1))] for q in (0.1, 0.9))
        spread = (high - low) / middle
        out.append(Roof(kind, threads, rates[-1], middle, spread, len(repeats), len(clean)))
    return out


def _kernel(scratch: Path) -> tuple[list[str], str]:
    """What to run, and what it is."""
    source = resources.files("profinfer.machine").joinpath("kernel.c").read_text("utf-8")
    text = scratch / "kernel.c"
    text.write_text(source)
    program = scratch / "kernel"
    names = [os.environ.get("CC", ""), "cc", "gcc", "clang"]
    for compiler in filter(None, map(shutil.which, filter(None, names))):
        # Compilers for some CPUs do not know -march=native.
        for flags in (_FLAGS, (_FLAGS[0], "-mcpu=native", *_FLAGS[2:]), (_FLAGS[0], *_FLAGS[2:])):
            command = [compiler, *flags, str(text), "-o", str(program)]
            if subprocess.run(command, capture_output=True, check=False).returncode == 0:
                return [str(program)], f"C kernel, {Path(compiler).name} {' '.join(flags[:2])}"
    return [sys.executable, "-m", "profinfer.machine.numpy_kernel"], "numpy, no C compiler found"
