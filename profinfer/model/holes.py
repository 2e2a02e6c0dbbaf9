"""Layer 5: where begins and ends were lost, told by the numbers that the recorder gave them.

The recorder numbers the begins and ends of each thread by kind of span, lost ones included
(``bpf/events.h``), so that a jump shows where records are missing and how many. Must not import
pandas, the analyses or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from profinfer.model.decode import Rows, int64
from profinfer.tracefile.schema import NUMBER_SHIFT, NUMBERS

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Holes:
    """Stretches of a thread's time in which records of one kind of span were lost.

    Attributes:
        tid: thread, shape (h,).
        begin: the last record before, ns, shape (h,).
        end: the first record after, ns, shape (h,).
        numbered: the recorder numbered what it wrote; if not, holes are not known.
    """

    tid: I64
    begin: I64
    end: I64
    numbered: bool

    def touches(self, tid: I64, begin: I64, end: I64) -> Mask:
        """Which of the spans of threads have a hole, or a part of one, inside."""
        out = np.zeros(len(tid), bool)
        for one in np.unique(self.tid):
            mine, theirs = np.flatnonzero(tid == one), self.tid == one
            # Holes of a thread are in order and do not overlap: the first that ends later tells.
            far = np.iinfo(np.int64).max
            opens, closes = (np.r_[v[theirs], far] for v in (self.begin, self.end))
            since = np.minimum(begin[mine], far - 1)  # a damaged record may hold any time
            out[mine] = opens[np.searchsorted(closes, since, side="right")] < end[mine]
        return out


def find(*kinds: Rows) -> tuple[Holes, list[I64]]:
    """The holes, and for each record which stretch between holes of its thread it lies in.

    Args:
        kinds: all begins and ends that are numbered together, with their ``flags``.

    Returns:
        The holes; for each record of each kind 0 behind the last hole of its thread, -1 before
        it, and so on.
    """
    tid, ts, flags = (np.concatenate([rows[c] for rows in kinds]) for c in ("tid", "ts", "flags"))
    tid, ts = int64(tid), int64(ts)
    number = int64(flags >> NUMBER_SHIFT)
    order = np.lexsort((number, ts, tid))
    thread, when, number = tid[order], ts[order], number[order]
    same = np.r_[False, thread[1:] == thread[:-1]]
    known = (number > 0) & np.r_[False, number[:-1] > 0]
    hole = same & known & ((np.diff(number, prepend=0) - 1) % NUMBERS != 0)
    upto = np.cumsum(hole)
    last = np.r_[~same[1:], True][: len(order)]
    ends = upto[last]  # of each thread
    part = np.empty(len(order), np.int64)
    part[order] = upto - np.repeat(ends, np.diff(np.r_[-1, np.flatnonzero(last)]))
    at = np.flatnonzero(hole)
    holes = Holes(thread[at], when[at - 1], when[at], bool(number.any()) or not len(number))
    return holes, np.split(part, np.cumsum([len(rows) for rows in kinds])[:-1])
