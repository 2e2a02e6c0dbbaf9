"""Layer 7: counters over time that come from operators: threads at work, and what they counted.

Owns their tracks, units and values. May import numpy; must not import the command line.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from profinfer.model.surroundings import CLOCKS
from profinfer.render.events import Points
from profinfer.render.opblocks import OpBlock
from profinfer.render.packets import Packets, Track
from profinfer.render.timeline import Timeline
from profinfer.render.trackevent import Ints


class ActiveThreads:
    """Counter: threads that compute an operator at a time, as steps."""

    def __init__(self, packets: Packets, most: int) -> None:
        """Prepare for at most ``most`` threads."""
        self._value = np.array([packets.count(n) for n in range(most + 1)], np.int64)
        self._ts = np.empty(0, np.int64)
        self._delta = np.empty(0, np.int64)
        self._running = 0

    def add(self, block: OpBlock) -> None:
        """Take in a block."""
        busy = (block.end > block.begin) & (block.fused > 0)
        begin, end = block.begin[busy], block.end[busy]
        self._ts = np.concatenate([self._ts, begin, end])
        one = np.ones(len(begin), np.int64)
        self._delta = np.concatenate([self._delta, one, -one])

    def until(self, until_ns: int, track: int) -> Points:
        """The steps before ``until_ns``."""
        due = self._ts < until_ns
        ts, where = np.unique(self._ts[due], return_inverse=True)
        step = np.bincount(where, self._delta[due], len(ts)).astype(np.int64)
        value = self._running + np.cumsum(step)
        self._ts, self._delta = self._ts[~due], self._delta[~due]
        if len(value):
            self._running = int(value[-1])
        moved = step != 0
        ts, value = ts[moved], np.clip(value[moved], 0, len(self._value) - 1)
        return Points(ts, np.full(len(ts), track, np.int64), self._value[value])


@dataclass(frozen=True)
class _Shown:
    """A track of each thread: ``factor`` times column ``over`` by time, or by column ``under``."""

    name: str
    unit: str
    over: int
    factor: float = 1e9
    under: int = -1


def _shown(timeline: Timeline) -> list[_Shown]:
    """What to show of the counters: rates; a clock as CPUs; instructions a cycle."""
    out = []
    base: dict[str, int] = {}
    for k, counter in enumerate(timeline.counted.counters if timeline.counted else ()):
        plain = counter.name.partition(":")[0]
        base[plain] = k
        if plain in CLOCKS:
            out.append(_Shown(f"on CPU ({counter.name})", "CPUs", k, 1.0))
        elif counter.bytes:
            done = "written" if counter.direction == "write" else "read"
            name = f"{done} ({counter.name})"
            out.append(_Shown(name, "bytes/s", k, 1e9 * counter.bytes))
        else:
            out.append(_Shown(counter.name, f"{counter.name}/s", k))
    cycles = base.get("cycles", base.get("cpu-cycles"))
    if cycles is not None and "instructions" in base:
        out.append(_Shown("IPC", "instructions/cycle", base["instructions"], 1.0, cycles))
    return out


class CountRates:
    """What each thread counted, as a rate over each operator; zero in between.

    Attributes:
        tracks: one for each thread and thing shown.
    """

    def __init__(self, packets: Packets, timeline: Timeline, tids: Ints, first_track: int) -> None:
        """Prepare.

        Args:
            packets: builds the templates.
            timeline: its ``counted``.
            tids: sorted threads that have a track.
            first_track: index of the first of our tracks.
        """
        self._counted = timeline.counted
        self._shown = _shown(timeline)
        self.tracks = [
            Track(f"counter:{s.name}", s.name, int(tid), rank, s.unit, parent="thread")
            for rank, s in enumerate(self._shown)
            for tid in tids.tolist()
        ]
        self._threads = len(tids)
        self._first = first_track
        self._template = packets.gauge() if self._shown else -1
        self._done = np.full(len(tids), np.iinfo(np.int64).min)

    def points(self, block: OpBlock) -> list[Points]:
        """The values of a block; none is before the block's first operator of its thread."""
        if self._counted is None:
            return []
        since = self._counted.since_ns[block.row]
        counts = self._counted.values[block.row]
        rows = np.flatnonzero((since >= 0) & (since < block.end))
        rows = rows[np.lexsort((block.end[rows], block.track[rows]))]
        track, end = block.track[rows], block.end[rows]
        if not len(rows):
            return []
        # Counting for an operator begins where that of the one before ended, at the earliest.
        first = np.r_[True, track[1:] != track[:-1]]
        before = np.where(first, self._done[track], np.r_[0, end[:-1]])
        begin = np.maximum(since[rows], np.maximum(before, block.begin.min()))
        begin = np.where(first, np.maximum(begin, block.begin[rows]), begin)
        begin = np.minimum(begin, end)
        self._done[track] = end  # the last one of each thread wins
        # The value falls to zero where nothing follows at once.
        follows = np.r_[begin[1:] <= end[:-1], False] & ~np.r_[first[1:], True]
        length = end - since[rows]
        return [self._points(k, counts[rows], length, track, begin, end, follows)
                for k in range(len(self._shown))]  # fmt: skip

    def _points(
        self, number: int, counts: np.ndarray, length: Ints, track: Ints,
        begin: Ints, end: Ints, follows: np.ndarray,
    ) -> Points:  # fmt: skip
        s = self._shown[number]
        under = counts[:, s.under] if s.under >= 0 else length.astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            value = s.factor * counts[:, s.over] / under
        value = np.where(np.isfinite(value), value, 0.0)
        falls = np.flatnonzero(~follows)
        ts = np.r_[begin, end[falls]]
        of = np.r_[track, track[falls]]
        value = np.r_[value, np.zeros(len(falls))]
        order = np.lexsort((ts, of))
        ts, of, value = ts[order], of[order], value[order]
        moved = np.r_[True, (value[1:] != value[:-1]) | (of[1:] != of[:-1])]
        ts, of, value = ts[moved], of[moved], value[moved]
        where = self._first + number * self._threads + of
        template = np.full(len(ts), self._template)
        return Points(ts, where, template, value.view(np.int64)[:, None])
