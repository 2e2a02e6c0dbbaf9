"""Layer 4: counters that know no threads, read by the recorder now and then.

What a package or the whole machine counts (memory controllers, or any event asked for as
``system:NAME``) cannot be told apart by operator: it is read with its time, and kept as it is.
Must not import bcc.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from typing import Any

from profinfer.capture.counters import Counter
from profinfer.capture.kernelcall import PERF_FLAG_FD_CLOEXEC, perf_event_open
from profinfer.capture.perfevents import Opener, Refused, attr, read_now


class SystemCounters:
    """Counters that count from now on: each on every PMU that has it, on that PMU's CPUs.

    Args:
        wanted: counters of the system.
        cpus: CPUs that are online.
        opener: the system call.

    Attributes:
        refused: those that this machine does not count.
    """

    def __init__(
        self, wanted: Sequence[Counter], cpus: Sequence[int], opener: Opener = perf_event_open
    ) -> None:
        self.refused: list[Refused] = []
        self._held: list[tuple[Counter, dict[tuple[int, int], int]]] = []
        for counter in wanted:
            held: dict[tuple[int, int], int] = {}
            code = errno.ENOENT
            for pmu, encoding in enumerate(counter.encodings):
                for cpu in filter(encoding.fits, cpus):
                    try:
                        fd = opener(attr(counter, encoding), -1, cpu, PERF_FLAG_FD_CLOEXEC)
                    except OSError as error:
                        code = error.errno or errno.EINVAL
                    else:
                        held[pmu, cpu] = fd
            if held:
                self._held.append((counter, held))
            else:
                self.refused.append(Refused(counter, code))

    def facts(self) -> list[dict[str, Any]]:
        """For the metadata: name, what one event is worth, and the CPUs it is read on."""
        return [
            {
                "name": counter.name,
                "cpus": sorted({cpu for _pmu, cpu in held}),
                "scale": counter.scale,
                "unit": counter.unit,
            }
            for counter, held in self._held
        ]

    def read(self) -> list[list[int]]:
        """Value, ns enabled and ns running of each, PMUs and CPUs summed; the order of ``facts``.

        A CPU that has gone offline counts no more.
        """
        out = []
        for _counter, held in self._held:
            total = [0, 0, 0]
            for fd in held.values():
                with contextlib.suppress(OSError):
                    total = [a + b for a, b in zip(total, read_now(fd), strict=True)]
            out.append(total)
        return out

    def close(self) -> None:
        """Count no more."""
        for _counter, held in self._held:
            for fd in held.values():
                os.close(fd)
        self._held = []
