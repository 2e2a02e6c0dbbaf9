"""Layer 7: counters of the whole process on a timeline, as series of values.

Owns which there are and what they are named: one ``Series`` each. May import numpy and pandas; must
not import perfetto or the command line.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from profinfer.render.trackevent import Ints

if TYPE_CHECKING:
    from profinfer.model.trace import Trace


@dataclass(frozen=True)
class Series:
    """A value over time; it stays until the next one.

    Attributes:
        name: of its track.
        unit: as Perfetto shows it.
        ts: ns, ascending, shape (n,).
        value: shape (n,).
    """

    name: str
    unit: str
    ts: Ints
    value: NDArray[np.float64]

    def steps(self, first_ns: int, last_ns: int) -> Series:
        """The values during these times, those that repeat the one before left out."""
        begin = max(int(np.searchsorted(self.ts, first_ns, side="right")) - 1, 0)
        end = int(np.searchsorted(self.ts, last_ns, side="right"))
        ts, value = np.maximum(self.ts[begin:end], first_ns), self.value[begin:end]
        moved = np.r_[True, value[1:] != value[:-1]][: len(value)]
        return Series(self.name, self.unit, ts[moved], value[moved])


def of_trace(trace: Trace) -> tuple[Series, ...]:
    """Memory, page faults and disk reads of the target, as they were read from /proc."""
    return residence(trace.residence)


def residence(table: pd.DataFrame) -> tuple[Series, ...]:
    """Series of a ``residence`` table; faults and reads are counted from its first row."""
    if not len(table):
        return ()
    ts = table["ts_ns"].to_numpy(np.int64)

    def of(name: str, column: str, unit: str, *, grown: bool = False) -> Series:
        value = table[column].to_numpy(np.float64)
        return Series(name, unit, ts, value - value[0] if grown else value)

    return (
        of("RSS", "rss", "bytes"),
        of("RSS: own memory", "anon", "bytes"),
        of("RSS: files", "file", "bytes"),
        of("read from disk", "read", "bytes", grown=True),
        of("faults: major, so far", "major", "faults", grown=True),
        of("faults: minor, so far", "minor", "faults", grown=True),
    )
