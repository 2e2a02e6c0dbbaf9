"""Layer 5: work on blocks of records on several CPUs, results in order.

numpy lets go of the interpreter's lock while it computes: threads are enough, and share all arrays.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

A = TypeVar("A")
B = TypeVar("B")

# Each block under way needs room for its own arrays; and past this memory is what is waited for.
_MOST_THREADS = 4


def ahead(work: Callable[[A], B], blocks: Iterable[A]) -> Iterator[B]:
    """``map(work, blocks)``, some blocks worked on at once, no further ahead than that.

    Raises:
        Whatever ``work`` raised, at its block's turn.
    """
    threads = min(len(os.sched_getaffinity(0)), _MOST_THREADS)
    if threads == 1:
        yield from map(work, blocks)
        return
    with ThreadPoolExecutor(threads, "profinfer-blocks") as pool:
        waiting: deque[Future[B]] = deque()
        for block in blocks:
            waiting.append(pool.submit(work, block))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
