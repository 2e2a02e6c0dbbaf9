"""Layer 7: slices, instants and counter values as arrays, and the order of their packets.

Owns the rule that keeps slices nested where times are equal. Knows no bytes. May import numpy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from profinfer.render.trackevent import Ints


@dataclass(frozen=True)
class Spans:
    """Slices of threads: parallel arrays, one row a slice, in order of begin on each track.

    Attributes:
        begin: ns.
        end: ns, >= begin.
        track: index of the track.
        level: depth class on its track; a child's is greater than its parent's.
        template: id of the begin packet.
        late: begins after its parent began. Tells, for a slice of no duration at a moment where
            one parent ends and another begins, to which of them it belongs.
        values: for the holes of the templates, (n, values); None if they have none.
    """

    begin: Ints
    end: Ints
    track: Ints
    level: Ints
    template: Ints
    late: NDArray[np.bool_]
    values: Ints | None = None

    def take(self, rows: slice | NDArray[np.bool_] | Ints) -> Spans:
        """A part of the rows."""
        values = None if self.values is None else self.values[rows]
        return Spans(
            self.begin[rows],
            self.end[rows],
            self.track[rows],
            self.level[rows],
            self.template[rows],
            self.late[rows],
            values,
        )

    def __len__(self) -> int:
        return len(self.begin)


@dataclass(frozen=True)
class Points:
    """Instants and values of counters: parallel arrays.

    Attributes:
        values: for the holes of the templates, (n, values); None if they have none.
    """

    ts: Ints
    track: Ints
    template: Ints
    values: Ints | None = None

    def __len__(self) -> int:
        return len(self.ts)


@dataclass(frozen=True)
class Events:
    """Packets to be written, unordered: parallel arrays.

    Attributes:
        key: orders equal times.
        values: (n, values), for the holes of the templates.
    """

    ts: Ints
    key: Ints
    track: Ints
    template: Ints
    values: Ints

    @classmethod
    def concat(cls, parts: list[Events]) -> Events:
        """One after the other; ``parts`` is not empty."""
        return cls(*(np.concatenate([getattr(p, f) for p in parts]) for f in cls.__annotations__))

    def take(self, rows: NDArray[np.bool_] | Ints) -> Events:
        """A part of the rows."""
        return Events(*(getattr(self, f)[rows] for f in self.__annotations__))

    def ordered(self) -> Events:
        """In the order in which they belong in the file."""
        return self.take(np.lexsort((self.key, self.ts)))

    def __len__(self) -> int:
        return len(self.ts)


_LEVEL_BITS = 8
_ORDER_BITS = 44  # rows of a trace, twice


def events_of(spans: Spans, end_template: int, first_row: int, values: int = 0) -> Events:
    """Begin and end packets of slices, with the key that keeps equal times nested.

    At one moment, on one track: first what ends, deepest first, then what begins, outermost
    first. A slice of no duration goes, begin and end together, with its siblings: after what
    ends at its level when its parent is already open, else among what begins.

    Args:
        spans: the slices.
        end_template: id of the one packet that ends a slice.
        first_row: number of slices before these in the trace; keeps slices of no duration at
            one moment in their order.
        values: values that an event can have.
    """
    n = len(spans)
    empty = spans.begin == spans.end
    order = 2 * (first_row + np.arange(n, dtype=np.int64))
    top = (1 << _LEVEL_BITS) - 1
    ending = (top - spans.level) << 1
    beginning = (1 << (_LEVEL_BITS + 1)) | (spans.level << 1)
    as_ending = empty & spans.late
    # bit 0 of the rank: at one level, ends before empty slices, empty slices before begins
    begin_rank = np.where(as_ending, ending | 1, np.where(empty, beginning, beginning | 1))
    end_rank = np.where(empty, begin_rank, ending)
    return Events(
        ts=np.concatenate([spans.begin, spans.end]),
        key=np.concatenate([begin_rank, end_rank]) << _ORDER_BITS
        | np.concatenate([order, order + empty]),
        track=np.concatenate([spans.track, spans.track]),
        template=np.concatenate([spans.template, np.full(n, end_template, np.int64)]),
        values=_widened(spans.values, 2 * n, values),
    )


def _widened(given: Ints | None, n: int, width: int) -> Ints:
    """``given`` with rows and columns of zeros added, shape (n, width)."""
    out = np.zeros((n, width), np.int64)
    if given is not None:
        out[: given.shape[0], : given.shape[1]] = given
    return out


def point_events(points: Points, values: int = 0) -> Events:
    """Instants and counter values: after all that ends, and within all that begins, at a time."""
    rank = (1 << (_LEVEL_BITS + 2)) - 1
    n = len(points)
    key = np.full(n, rank << _ORDER_BITS, np.int64)
    return Events(points.ts, key, points.track, points.template, _widened(points.values, n, values))
