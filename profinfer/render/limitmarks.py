"""Layer 7: where something was limited: operators' probes taken away, a cgroup's quota used up.

Owns the windows and instants that say so. May import numpy and pandas; must not import the command
line.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from profinfer.model.windows import Window
from profinfer.render.packets import Args, Packets
from profinfer.render.timeline import Timeline, ints

WINDOWS = "operators recorded"
QUOTA = "CPU quota"


def windows(
    packets: Packets, of: tuple[Window, ...], within: tuple[int, int]
) -> Iterator[tuple[int, int, int]]:
    """Begin, end and template of each stretch in which operators were recorded."""
    for window in of:
        begin, end = max(window.begin_ns, within[0]), min(window.end_ns, within[1])
        if begin < end:
            why = {"began": window.began, "ended": window.ended}
            args: Args = {k: v for k, v in why.items() if v}
            yield begin, end, packets.event(WINDOWS, "profinfer", args, once=True)


def switches(
    packets: Packets, of: tuple[Window, ...], within: tuple[int, int]
) -> Iterator[tuple[int, int]]:
    """Time and template of each moment when the recorder switched to another level, and why."""
    for window in of:
        for ts, why, to in (
            (window.begin_ns, window.began, "op"),
            (window.end_ns, window.ended, "graph"),
        ):
            if within[0] < ts < within[1]:
                args: Args = {"why": why} if why else {}
                yield ts, packets.event(f"to level {to}", "profinfer", args, instant=True)


def throttled(
    packets: Packets, timeline: Timeline, within: tuple[int, int]
) -> Iterator[tuple[int, int]]:
    """Time and template of each moment when the quota took a thread from its CPU.

    The kernel tells of no such moment. It is one where a thread that could go on was made to leave
    its CPU, and the CPU then had nothing else to do. Where another process takes the CPU at once,
    it looks like being preempted, and is not marked.
    """
    if not timeline.quota or not len(timeline.sched):
        return
    sched = timeline.sched
    left = (sched["reason"] == "preempted").to_numpy() & (ints(sched, "by_tid") == 0)
    at = np.flatnonzero(left & sched["begin_ns"].between(*within).to_numpy())
    rows = zip(
        *(ints(sched, c)[at].tolist() for c in ("begin_ns", "end_ns", "tid", "cpu")), strict=True
    )
    for begin, end, tid, cpu in rows:
        args: Args = {"tid": tid, "cpu": cpu, "for_us": (end - begin) / 1000}
        yield begin, packets.event("throttled", "quota", args, once=True, instant=True)
