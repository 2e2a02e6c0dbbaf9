"""Layer 7: major page faults and disk reads as instants on a timeline.

Owns what they are named. May import numpy and pandas; must not import the command line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pandas as pd

from profinfer.render.packets import Args, Packets

FAULTS, READS = "major page faults", "disk reads"
_CATEGORY = {FAULTS: "fault", READS: "read"}

Point = tuple[int, int, int]  # time, track, template


def points(
    packets: Packets,
    faults: pd.DataFrame | None,
    reads: pd.DataFrame | None,
    track: Callable[[str], int],
    within: tuple[int, int],
) -> Iterator[Point]:
    """Instants inside ``within``.

    Args:
        packets: where templates are kept.
        faults: the trace's table of faults.
        reads: the trace's table of reads.
        track: makes a track; returns its index.
        within: first and last time of the timeline, ns.
    """
    for table, name in ((faults, FAULTS), (reads, READS)):
        if table is None:
            continue
        kept = table["ts_ns"].between(*within)
        if name == FAULTS:
            kept &= table["major"].to_numpy(dtype=bool)
        if not kept.any():
            continue
        at = track(name)
        more = "held_ns" if name == FAULTS else "bytes"
        columns = ("ts_ns", "tid", "tensor", "file", "file_offset", more)
        rows = zip(*(table.loc[kept, c].tolist() for c in columns), strict=True)
        for ts, tid, tensor, file, offset, value in rows:
            about: Args = {"held_us": value / 1000} if name == FAULTS else {"bytes": value}
            place: Args = {"file": file, "file_offset": offset} if file else {}
            args = {"tid": tid, **about, **place}
            what = tensor or (file.rpartition("/")[2] if file else "memory")
            yield ts, at, packets.event(what, _CATEGORY[name], args, once=True, instant=True)
