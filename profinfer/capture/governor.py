"""Layer 4: decides when the operators' probes are in place, so that the user's limits are kept.

Only a detached probe costs nothing, so a limit is kept by taking the probes away for a while. Pure:
it is given readings of the kernel's counters and answers; it touches no probe and no clock. All
its times are the target's time in calls, so that an idle server decides nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from profinfer.capture.readings import Reading

_WINDOW_NS = 300_000_000  # calls' time between two decisions
_SLACK_NS = 10_000_000  # the cost may be this much above or below the limit: no flapping
_LEAST_STEPS = 4  # decode steps that make a speed
_SLOW_WINDOWS = 2  # in a row, before a speed counts as too low
_FIRST_HOLD_NS = 2_000_000_000
_LONGEST_HOLD_NS = 64_000_000_000
_MARGIN = 1.03  # speed must be this much above the limit before probes come back


@dataclass(frozen=True)
class QosLimits:
    """What the user asked for.

    Attributes:
        max_overhead: share of the calls' time that probes may cost, 0.02 for 2 %; None: any.
        min_tps: decode steps per second that must be kept; None: any.
    """

    max_overhead: float | None = None
    min_tps: float | None = None

    def __bool__(self) -> bool:
        """Whether there is any limit."""
        return self.max_overhead is not None or self.min_tps is not None

    def to_json(self) -> dict[str, float]:
        """Those that there are, for the trace's options."""
        both = {"max_overhead": self.max_overhead, "min_tps": self.min_tps}
        return {name: value for name, value in both.items() if value is not None}


@dataclass(frozen=True)
class Decision:
    """A change of level.

    Attributes:
        on: operators' probes in place, or taken away.
        why: one clause for the trace and the reader.
    """

    on: bool
    why: str


class _Budget:
    """Keeps the cost of probes below a share of the calls' time, by spending and saving."""

    def __init__(self, share: float) -> None:
        self._share = share
        self._debt_ns = 0.0
        self._over = 0  # windows in a row, without operators' probes, that cost too much
        self.on = True

    @property
    def hopeless(self) -> str:
        """Why the limit cannot be kept, "" if it can."""
        if self.on or self._over < _SLOW_WINDOWS:
            return ""
        return (
            "what stays without operators' probes (calls, graphs, thread states) costs more than "
            f"{100 * self._share:g} %"
        )

    def update(self, window: Reading, cost_ns: float) -> str:
        """Take a window in; returns why ``on`` changed, or ""."""
        # Time long past in which little was spent is no licence to spend more now.
        debt = self._debt_ns + cost_ns - self._share * window.call_ns
        self._debt_ns = max(debt, -_SLACK_NS)
        limit = f"{100 * self._share:g} %"
        dear = not self.on and cost_ns > self._share * window.call_ns
        self._over = self._over + 1 if dear else 0
        if self.on and self._debt_ns > _SLACK_NS:
            self.on = False
            return f"probes cost {100 * cost_ns / window.call_ns:.1f} %, more than {limit}"
        if not self.on and self._debt_ns <= -_SLACK_NS:
            self.on = True
            return f"the cost is below {limit} again"
        return ""


class _SpeedGuard:
    """Takes the probes away while decoding is slower than asked, and brings them back with care."""

    def __init__(self, min_tps: float) -> None:
        self._least = min_tps
        self._slow = self._steps = self._step_ns = 0
        self._hold_ns = _FIRST_HOLD_NS
        self._since_ns = 0
        self._share = 0.0
        self.on = True

    @property
    def hopeless(self) -> str:
        """Why the limit cannot be kept, "" if it can."""
        if self.on or self._slow < _SLOW_WINDOWS:
            return ""
        return f"it is slower than {self._least:g} tok/s without operators' probes, too"

    def update(self, window: Reading, cost_ns: float) -> str:
        """Take a window in; returns why ``on`` changed, or ""."""
        self._since_ns += window.call_ns
        self._steps += window.steps
        self._step_ns += window.step_ns
        if self._steps < _LEAST_STEPS:
            return ""
        tps = Reading(steps=self._steps, step_ns=self._step_ns).tps
        self._steps = self._step_ns = 0
        if self.on and cost_ns:
            self._share = min(cost_ns / window.call_ns, 0.9)
        self._slow = self._slow + 1 if tps < self._least else 0
        if self.on and self._slow >= _SLOW_WINDOWS:
            # Back to where it was soon after it came back: wait longer the next time.
            soon = self._since_ns < 4 * self._hold_ns
            self._hold_ns = min(self._hold_ns * 2, _LONGEST_HOLD_NS) if soon else _FIRST_HOLD_NS
            return self._switch(False, f"{tps:.1f} tok/s, less than {self._least:g}")
        if self.on:
            return ""
        enough = tps * (1 - self._share) >= self._least * _MARGIN
        if enough and self._since_ns >= self._hold_ns:
            return self._switch(True, f"{tps:.1f} tok/s, enough for {self._least:g} with probes")
        return ""

    def _switch(self, on: bool, why: str) -> str:
        self.on, self._slow, self._since_ns = on, 0, 0
        return why


class Governor:
    """One recording's decisions.

    Args:
        limits: at least one.
        hit_ns: what one hit costs on this machine.
    """

    def __init__(self, limits: QosLimits, hit_ns: float) -> None:
        self._hit_ns = hit_ns
        self._budget = None if limits.max_overhead is None else _Budget(limits.max_overhead)
        self._guard = None if limits.min_tps is None else _SpeedGuard(limits.min_tps)
        self._last = Reading()
        self._on = True

    @property
    def hopeless(self) -> str:
        """Why a limit cannot be kept, not even without operators' probes; "" if all can."""
        parts = [part for part in (self._budget, self._guard) if part is not None]
        return "; ".join(part.hopeless for part in parts if part.hopeless)

    def observe(self, now: Reading) -> Decision | None:
        """What to change, None for nothing. To be called often: it decides when enough was seen.

        Args:
            now: the counters.
        """
        window = now.since(self._last)
        if window.call_ns < _WINDOW_NS:
            return None
        self._last = now
        cost = window.cost_ns(self._hit_ns)
        parts = [part for part in (self._budget, self._guard) if part is not None]
        why = [part.update(window, cost) for part in parts]
        on = all(part.on for part in parts)
        if on == self._on:
            return None
        self._on = on
        return Decision(on, next(filter(None, why), ""))
