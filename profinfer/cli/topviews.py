"""Layer 8: from the recorder's answers to what ``profinfer top`` shows."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profinfer.errors import TraceError

if TYPE_CHECKING:
    from rich.text import Text

    from profinfer.analysis.live import LiveView
    from profinfer.capture.readings import Reading
    from profinfer.capture.session import RecordOptions
    from profinfer.render.live import About


class Looks:
    """Remembers the answer before, so that "now" is what happened since.

    Args:
        options: of the recording.
        by: what operators are grouped by.
        limit: that the probes' cost is kept below.
        interval_s: between two looks.
        end: what the last line says.
    """

    def __init__(
        self, options: RecordOptions, by: str, limit: float, interval_s: float, end: str
    ) -> None:
        self._options = options
        self._by = by
        self._limit = limit
        self._end = end
        self._before: Reading | None = None
        self._since = time.clock_gettime_ns(time.CLOCK_MONOTONIC) - int(interval_s * 1e9)
        self._start = self._since
        self._cpu = (0.0, time.process_time())
        self._about: About | None = None

    def look(self, told: dict[str, Any], snapshot: Path | None) -> LiveView | None:
        """One look; None as long as there is nothing to see.

        Args:
            told: the recorder's answer.
            snapshot: the trace that it speaks of.
        """
        from profinfer.analysis.live import live
        from profinfer.model.trace import Trace

        if snapshot is None:
            return None
        now = int(told["ts"])
        trace = Trace.open(snapshot)
        if self._before is None:
            # The recording began when its probes were in place, which takes a while.
            began = trace.meta.options.get("attached_ns", now)
            self._since = self._start = min(max(self._since, int(began)), now - 1)
        try:
            view = live(trace, self._since, now, self._by, told.get("open_ns"))
            self._about = self._facts(told, trace, now)
        except TraceError:
            return None  # of a program that just began there may be nothing
        finally:
            trace.reader.close()
        self._since = now
        return view

    def _facts(self, told: dict[str, Any], trace: Any, now: int) -> About:
        from profinfer.analysis.overview import model_name
        from profinfer.capture.liveport import reading
        from profinfer.capture.probing import lost_events
        from profinfer.render.live import About

        counters = reading(told)
        grown = counters.since(self._before) if self._before is not None else counters
        cost = None
        if told.get("hit_ns") and grown.call_ns:
            cost = grown.cost_ns(told["hit_ns"]) / grown.call_ns
        self._before = counters
        cpu = (float(told["cpu_s"]), time.process_time())
        used = sum(cpu) - sum(self._cpu)
        self._cpu = cpu
        sizes = trace.residence.iloc[-1] if len(trace.residence) else None
        name = Path(self._options.exe).name
        title = f"profinfer top  {name} (pid {told['pid']})  "
        title += model_name(tuple(self._options.argv)) or ""
        return About(
            title=title.rstrip(),
            elapsed_s=(now - self._start) / 1e9,
            calls=int(told.get("calls", 0)),
            tokens=int(told.get("tokens", 0)),
            mean_tps=counters.tps or None,
            cost=cost,
            limit=self._limit,
            lost=lost_events(told["counters"]),
            rss=None if sizes is None else int(sizes["rss"]),
            file=None if sizes is None else int(sizes["file"]),
            own_cpu=used / max((now - self._since) / 1e9, 0.1),
            end=self._end,
        )

    def lines(self, view: LiveView, width: int, height: int) -> list[Text]:
        """The look as lines."""
        from profinfer.render.live import lines

        assert self._about is not None
        return lines(view, self._about, width, height)

    def as_object(self, view: LiveView) -> dict[str, Any]:
        """The look as a JSON object."""
        from profinfer.render.live import as_object

        assert self._about is not None
        return as_object(view, self._about)
