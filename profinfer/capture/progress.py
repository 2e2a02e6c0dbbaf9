"""Layer 4: the one line that tells a waiting person what a recording does."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from profinfer.units import format_bytes, format_count

_PERIOD_S = 0.25


class ProgressLine:
    """Rewrites one terminal line a few times a second; silent when not wanted."""

    def __init__(self, *, wanted: bool, stream: TextIO | None = None) -> None:
        self._wanted = wanted
        self._stream = stream or sys.stderr
        self._start = self._last = time.monotonic()
        self._last_events = 0
        self._shown = False

    def due(self) -> bool:
        """True when a new line should be drawn."""
        return self._wanted and time.monotonic() - self._last >= _PERIOD_S

    def tell(self, text: str) -> None:
        """Print a line that stays, also where no progress is shown."""
        self.clear()
        self._stream.write(f"profinfer: {text}\n")
        self._stream.flush()

    def show(
        self, *, tokens: int, events: int, lost: int, size: int, cost: float | None = None
    ) -> None:
        """Draw the line.

        Args:
            tokens: tokens given to the engine so far.
            events: operator records and others so far.
            lost: events the kernel had to drop so far.
            size: bytes of the trace file.
            cost: share of the calls' time that probes cost, None if it is not known yet.
        """
        now = time.monotonic()
        rate = (events - self._last_events) / max(now - self._last, 1e-3)
        self._last, self._last_events = now, events
        lost_text = f"{format_count(lost)} LOST" if lost else "none lost"
        cost_text = "" if cost is None else f", probes cost {100 * cost:.1f} %"
        self._stream.write(
            f"\r\x1b[Kprofinfer: {now - self._start:.0f} s, {format_count(tokens)} tokens, "
            f"{format_count(round(rate))} events/s, {lost_text}, {format_bytes(size)}{cost_text}"
        )
        self._stream.flush()
        self._shown = True

    def clear(self) -> None:
        """Remove the line so that what follows starts clean."""
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown = False
