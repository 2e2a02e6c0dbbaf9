"""Layer 4: what goes on around the target and is no event: read now and then, with its time.

Counters of the whole system, the clocks of the CPUs, how often the target's cgroup was throttled.
Reads a few small files and descriptors; decodes nothing. Must not import bcc.
"""

from __future__ import annotations

import time
from typing import Any

from profinfer.capture.frequency import Frequency
from profinfer.capture.limits import Limits
from profinfer.capture.systemcounters import SystemCounters

_PERIOD_S = 0.1


class Surroundings:
    """Everything of the kind, for one recording.

    Args:
        counters: counters of the system, open.
        frequency: the clocks.
        limits: of the target.
    """

    def __init__(self, counters: SystemCounters, frequency: Frequency, limits: Limits) -> None:
        self._counters, self._frequency, self._limits = counters, frequency, limits
        self._due = 0.0
        self._khz: dict[str, int] = {}
        self._throttled: int | None = None

    def facts(self) -> dict[str, Any]:
        """For the metadata's ``surroundings``, at the begin."""
        return {
            "counters": self._counters.facts(),
            "not_counted": [refused.counter.name for refused in self._counters.refused],
            "clocks": self._frequency.facts(),
            "throttles": {"begin": self._frequency.throttles()},
        }

    def end(self) -> dict[str, Any]:
        """What is to be merged into it when the recording is over."""
        return {"throttles": {"end": self._frequency.throttles()}}

    def sample(self, *, now: bool = False) -> dict[str, Any] | None:
        """A reading, without what is as it was before; None if it is not time yet, or all is.

        ``counters`` as ``SystemCounters.read``; ``khz`` by CPU, only those that changed;
        ``quota`` with periods, throttled periods and ns, as ``CpuGroup.counters``.
        """
        at = time.monotonic()
        if at < self._due and not now:
            return None
        self._due = at + _PERIOD_S
        out: dict[str, Any] = {}
        if values := self._counters.read():
            out["counters"] = values
        if khz := {c: v for c, v in self._frequency.khz().items() if self._khz.get(c) != v}:
            out["khz"] = khz
            self._khz |= khz
        quota = self._limits.throttling()
        # Periods go on all the time; what is of interest is that the target was stopped.
        if quota and quota["throttled"] != self._throttled:
            self._throttled = quota["throttled"]
            out["quota"] = quota
        return out or None

    def close(self) -> None:
        """Count no more."""
        self._counters.close()
