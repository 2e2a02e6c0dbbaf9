"""Layer 5: begins and ends become spans, spans get parents.

Owns the pairing of begin and end records and interval containment, vectorised.
Must not import pandas, the analyses or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pairs:
    """Outcome of pairing.

    Attributes:
        begin: index of the begin record of each span, ordered by time.
        end: index of its end record, -1 where the recording stopped first.
        open: index of the begins whose end record is missing although recording went on.
        stray: index of the ends whose begin record is missing.
    """

    begin: I64
    end: I64
    open: I64
    stray: I64

    @property
    def unmatched(self) -> int:
        """Records without a partner, spans cut off by the end of the recording not counted."""
        return len(self.open) + len(self.stray)


def pair(
    begin_ts: I64,
    begin_key: I64,
    end_ts: I64,
    end_key: I64,
    begin_part: I64 | None = None,
    end_part: I64 | None = None,
) -> Pairs:
    """Match each end with the latest open begin of the same key, as a stack per key.

    Args:
        begin_ts: nanoseconds of the begins, any order.
        begin_key: group of each begin (thread and probe packed into one integer).
        end_ts: nanoseconds of the ends.
        end_key: group of each end.
        begin_part: of each begin: between which losses of its group it lies, as ``holes.find``
            tells; nothing pairs across a loss. None: nothing was lost.
        end_part: of each end.

    A begin that never ends and is not the last of its group has lost its end; the last one is
    cut off by the end of the recording and kept as an open span, if nothing was lost after it.
    """
    n = len(begin_ts)
    key = np.concatenate([begin_key, end_key])
    part = np.zeros(len(key), np.int64)
    if begin_part is not None and end_part is not None:
        part = np.concatenate([begin_part, end_part])
    ts = np.concatenate([begin_ts, end_ts])
    sign = np.concatenate([np.ones(n, np.int64), -np.ones(len(end_ts), np.int64)])
    # An end at the same nanosecond as a begin closes an earlier span: ends first.
    order = np.lexsort((sign, ts, part, key))
    whole, part, sign = key[order], part[order], sign[order]
    if not len(whole):
        empty = np.zeros(0, np.int64)
        return Pairs(empty, empty, empty, empty)

    new = (whole[1:] != whole[:-1]) | (part[1:] != part[:-1])
    first = np.flatnonzero(np.r_[True, new])
    key = group = np.cumsum(np.r_[False, new])  # from one loss to the next is a group of its own
    running = np.cumsum(sign)
    depth = running - (running[first] - sign[first])[group]
    # The lowest depth seen so far within the group; each new minimum below zero is an end
    # without a begin. Offsetting groups far apart lets one accumulate serve them all.
    far = (len(first) - group) * np.int64(2 * len(key) + 2)
    floor = np.minimum(np.minimum.accumulate(np.minimum(depth, 0) + far) - far, 0)
    before = np.r_[0, floor[:-1]]
    before[first] = 0
    stray = (sign < 0) & (depth < before)
    level = depth - floor + (sign < 0)  # begin and its end get the same level, from 1

    rows = np.flatnonzero(~stray)
    by_level = rows[np.lexsort((rows, level[rows], key[rows]))]
    is_begin = sign[by_level] > 0
    same = np.r_[
        (key[by_level][1:] == key[by_level][:-1]) & (level[by_level][1:] == level[by_level][:-1]),
        False,
    ]
    closed = is_begin & same & np.r_[~is_begin[1:], False]
    begin_at = by_level[is_begin]
    end_at = np.where(closed[is_begin], np.r_[by_level[1:], 0][is_begin], -1)

    last_of_group = np.zeros(len(key), bool)
    begins = np.flatnonzero(sign > 0)
    if len(begins):
        tail = np.r_[whole[begins][1:] != whole[begins][:-1], True] & (part[begins] == 0)
        last_of_group[begins[tail]] = True
    lost = (end_at < 0) & ~last_of_group[begin_at]
    keep = ~lost
    b = order[begin_at[keep]]
    e = np.where(end_at[keep] < 0, -1, order[end_at[keep]] - n)
    by_time = np.argsort(begin_ts[b], kind="stable")
    return Pairs(b[by_time], e[by_time], order[begin_at[lost]], order[stray] - n)


def outermost(tid: I64, begin: I64, end: I64) -> npt.NDArray[np.bool_]:
    """Mask of the spans that lie in no other span of the same thread.

    Args:
        tid: thread of each span.
        begin: begin of each span, nanoseconds.
        end: end of each span, nanoseconds.
    """
    keep = np.zeros(len(tid), bool)
    order = np.lexsort((-end, begin, tid))
    for rows in np.split(order, np.flatnonzero(np.diff(tid[order])) + 1):
        if len(rows):
            covered = np.r_[np.int64(-1), np.maximum.accumulate(end[rows])[:-1]]
            keep[rows] = begin[rows] >= covered
    return keep


def parents(
    tid: I64, begin: I64, parent_tid: I64, parent_begin: I64, parent_end: I64
) -> npt.NDArray[np.int32]:
    """Index of the parent span that contains each ``begin`` on the same thread, -1 if none.

    The parents of one thread must not overlap one another.
    """
    out = np.full(len(tid), -1, np.int32)
    order = np.lexsort((parent_begin, parent_tid))
    for one in np.unique(tid):
        mine = np.flatnonzero(tid == one)
        theirs = order[parent_tid[order] == one]
        if not len(theirs):
            continue
        at = np.searchsorted(parent_begin[theirs], begin[mine], side="right") - 1
        ok = at >= 0
        ok[ok] = begin[mine][ok] <= parent_end[theirs[at[ok]]]
        out[mine[ok]] = theirs[at[ok]]
    return out
