"""Layer 7: what the scheduler did to each thread, as slices on a track below the thread's.

Owns their names and arguments. May import numpy and pandas; must not import the command line.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np

from profinfer.render.events import Spans
from profinfer.render.packets import Packets, Track
from profinfer.render.timeline import Timeline, ints
from profinfer.render.trackevent import Ints

CATEGORY = "sched"


class StateSlices:
    """Thread states of the threads that have a track.

    Attributes:
        tracks: one for each thread whose states are known, in the order of ``tids``.
    """

    def __init__(
        self,
        packets: Packets,
        timeline: Timeline,
        tids: Ints,
        first_track: int,
        span: tuple[int, int],
    ) -> None:
        """Prepare.

        Args:
            packets: builds the templates.
            timeline: its ``sched`` table.
            tids: sorted threads that have a track.
            first_track: index of the first of our tracks.
            span: what lies outside of these moments is not drawn, ns.
        """
        table = timeline.sched
        tid, begin, end = (ints(table, c) for c in ("tid", "begin_ns", "end_ns"))
        begin, end = np.maximum(begin, span[0]), np.minimum(end, span[1])
        kept = np.flatnonzero((begin < end) & np.isin(tid, tids))
        kept = kept[np.argsort(begin[kept], kind="stable")]
        table, tid, begin, end = table.iloc[kept], tid[kept], begin[kept], end[kept]
        shown = np.unique(tid)
        self.tracks = [Track("state", "state", int(t), parent="thread") for t in shown.tolist()]
        templates = np.empty(len(table), np.int64)
        groups = table.groupby(
            ["state", "reason", "cpu", "by_name", "by_pid", "by_prio"], observed=True, sort=False
        )
        # One turn a distinct slice, not a stretch.
        for key, rows in groups.indices.items():
            state, reason, cpu, name, pid, prio = cast(tuple[Any, ...], key)
            args: dict[str, str | int] = {"cpu": int(cpu)} if cpu >= 0 else {}
            if reason:
                args["why"] = str(reason)
            if name:
                args |= {"taken_by": str(name), "taken_by_pid": int(pid), "prio": int(prio)}
            title = str(reason) if state == "blocked" and reason else str(state)
            templates[rows] = packets.event(title, CATEGORY, args)
        n = len(table)
        self._spans = Spans(
            begin,
            end,
            np.searchsorted(shown, tid) + first_track,
            np.zeros(n, np.int64),
            templates,
            np.ones(n, np.bool_),
        )
        self._given = 0

    def spans(self, until_ns: int) -> Spans:
        """The slices that begin before ``until_ns`` and were not given yet."""
        upto = int(np.searchsorted(self._spans.begin, until_ns))
        part = self._spans.take(slice(self._given, upto))
        self._given = upto
        return part
