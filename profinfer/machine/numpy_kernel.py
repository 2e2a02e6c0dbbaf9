"""Layer 1: what ``kernel.c`` measures, with numpy, for machines without a C compiler.

The same arguments and lines; no 8-bit products. Python's threads run in parallel here because
numpy releases the interpreter's lock; BLAS is held to one thread by the environment.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from profinfer.machine.measure import UNDISTURBED

PARTS = 6
SIDE = 512  # of the square matrices: 3 MB, in the second cache or near it
F32 = npt.NDArray[np.float32]


class Worker:
    """One thread's arrays and what it does with part ``at`` of them."""

    def __init__(self, elements: int) -> None:
        self.a, self.b, self.c = (np.ones(elements, np.float32) for _ in range(3))
        self.x, self.y, self.z = (np.ones((SIDE, SIDE), np.float32) for _ in range(3))
        self.part = elements // PARTS

    def _parts(self, at: int) -> tuple[F32, F32, F32]:
        cut = slice(at * self.part, (at + 1) * self.part)
        return self.a[cut], self.b[cut], self.c[cut]

    def read(self, at: int) -> float:
        """Bytes summed up."""
        parts = self._parts(at)
        for part in parts:
            part.max()
        return float(sum(part.nbytes for part in parts))

    def triad(self, at: int) -> float:
        """Bytes of three arrays, as in STREAM; numpy's two passes move more."""
        a, b, c = self._parts(at)
        np.multiply(c, np.float32(3), out=a)
        np.add(a, b, out=a)
        return 3.0 * a.nbytes

    def fp32(self, at: int) -> float:
        """Operations of one matrix product."""
        np.matmul(self.x, self.y, out=self.z)
        return 2.0 * SIDE**3


def once(
    workers: list[Worker], kind: Callable[[Worker, int], float], at: int
) -> tuple[float, float]:
    """All threads do it once: (done a second, share of the CPU time they could have had)."""
    gate = threading.Barrier(len(workers))
    spans: list[tuple[float, float, float, float]] = []

    def run(worker: Worker) -> None:
        gate.wait()
        cpu, begin = time.thread_time(), time.perf_counter()
        done = kind(worker, at)
        end = time.perf_counter()
        spans.append((done, begin, end, time.thread_time() - cpu))

    threads = [threading.Thread(target=run, args=(worker,)) for worker in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    length = max(s[2] for s in spans) - min(s[1] for s in spans)
    return sum(s[0] for s in spans) / length, sum(s[3] for s in spans) / (len(spans) * length)


def main(arguments: list[str]) -> None:
    """Print one JSON object a repeat."""
    threads, repeats, megabytes = (int(a) for a in arguments[:3])
    limit = float(arguments[4])
    elements = megabytes * 10**6 // 3 // 4 // threads // PARTS * PARTS
    workers = [Worker(elements) for _ in range(threads)]
    for name, kind in (("read", Worker.read), ("triad", Worker.triad), ("fp32", Worker.fp32)):
        once(workers, kind, 0)
        start, clean, tries = time.perf_counter(), 0, 0
        while clean < repeats and (tries < repeats or time.perf_counter() - start < limit):
            rate, share = once(workers, kind, tries % PARTS)
            print(json.dumps({"kind": name, "per_s": rate, "cpu": share}))
            tries += 1
            clean += share >= UNDISTURBED


if __name__ == "__main__":
    main(sys.argv[1:])
