"""Layer 7: memory on a timeline: its size as counters, major page faults as instants.

Owns what they are named. May import numpy and pandas; must not import the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pandas as pd

from profinfer.render.packets import Packets

_COUNTERS = {"rss": "RSS", "anon": "RSS: own memory", "file": "RSS: files"}
FAULTS = "major page faults"

Point = tuple[int, int, int]  # time, track, template


def points(
    packets: Packets,
    residence: pd.DataFrame,
    faults: pd.DataFrame,
    track: Callable[..., int],
    within: tuple[int, int],
) -> Iterator[Point]:
    """Counter values and instants inside ``within``.

    Args:
        packets: where templates are kept.
        residence: the trace's table of sizes, in bytes.
        faults: the trace's table of faults.
        track: makes a track of a kind, with a unit for a counter; returns its index.
        within: first and last time of the timeline, ns.
    """
    sizes = residence[residence["ts_ns"].between(*within)]
    for column, name in _COUNTERS.items() if len(sizes) else ():
        at = track(name, unit="bytes")
        # A size that stays is one point.
        moved = sizes[sizes[column] != sizes[column].shift()]
        for ts, value in zip(moved["ts_ns"].tolist(), moved[column].tolist(), strict=True):
            yield ts, at, packets.count(value)
    majors = faults[faults["major"].to_numpy(dtype=bool) & faults["ts_ns"].between(*within)]
    if not len(majors):
        return
    at = track(FAULTS)
    columns = ("ts_ns", "tid", "tensor", "file", "file_offset", "held_ns")
    for ts, tid, tensor, file, offset, held in zip(
        *(majors[c].tolist() for c in columns), strict=True
    ):
        args: dict[str, str | int | float] = {"tid": tid, "held_us": held / 1000}
        if file:
            args |= {"file": file, "file_offset": offset}
        name = tensor or (file.rpartition("/")[2] if file else "memory")
        yield ts, at, packets.event(name, "fault", args, once=True, instant=True)
