"""Layer 7: a timeline becomes a file that ui.perfetto.dev opens, block by block.

Owns the tracks and the order of packets in the file. Must not import the command line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from profinfer.render.containers import ContainerSlices
from profinfer.render.countertracks import ActiveThreads, CountRates
from profinfer.render.events import Events, Points, Spans, events_of, point_events
from profinfer.render.markers import Markers, threads_of
from profinfer.render.nesting import contain
from profinfer.render.opblocks import op_blocks
from profinfer.render.opslices import OpSlices
from profinfer.render.packets import Packets, preamble
from profinfer.render.states import StateSlices
from profinfer.render.timeline import Timeline, first_and_last
from profinfer.render.trackevent import MAX_SEQUENCE, TemplatePool, varint_width

BLOCK_OPS = 32_768


@dataclass(frozen=True)
class Written:
    """What went into the file.

    Attributes:
        slices: slices written.
        points: instants and counter values.
        bytes: size.
        adjusted: slices whose times were cut so that all nest; 0 in a sound trace.
        orphans: operators of graphs that are not in the timeline, left out.
        short: operators and waits left out because they are too short.
    """

    slices: int
    points: int
    bytes: int
    adjusted: int
    orphans: int
    short: int


class _Orderly:
    """Holds back what belongs after the end of a block, and puts the rest in order."""

    def __init__(self, end_template: int, values: int) -> None:
        self._end = end_template
        self._values = values
        self._held: list[Events] = []
        self._rows = 0

    def add(self, spans: Spans) -> None:
        self._held.append(events_of(spans, self._end, self._rows, self._values))
        self._rows += len(spans)

    def add_points(self, points: Points) -> None:
        self._held.append(point_events(points, self._values))

    def until(self, until_ns: int) -> Events:
        events = Events.concat(self._held)
        due = events.ts < until_ns
        self._held = [events.take(~due)]
        return events.take(due).ordered()


def _sequences(packets: Packets, told: NDArray[np.bool_], events: Events) -> Iterator[bytes]:
    """Interned data that the events need and their sequences have not been told."""
    new = ~told[events.track, events.template]
    if not new.any():
        return
    track, template = events.track[new], events.template[new]
    for t in np.unique(track).tolist():
        used = np.unique(template[track == t])
        told[t, used] = True
        yield packets.interned(t + 1, used.tolist())


def write(timeline: Timeline, out: BinaryIO, *, block_ops: int = BLOCK_OPS) -> Written:
    """Encode ``timeline`` as Perfetto packets, in blocks of some ten thousand operators.

    Args:
        timeline: the tables; the file depends on nothing else.
        out: open for binary writing.
        block_ops: about how many operators are encoded at a time; memory goes with it.

    Raises:
        OSError: ``out`` could not be written.
        ValueError: there are more threads than packet sequences.
    """
    first_ns, last_ns = first_and_last(timeline)
    values = len(timeline.counted.counters) if timeline.counted else 0
    packets = Packets(TemplatePool(varint_width(last_ns), values))
    containers = contain(timeline, last_ns)
    threads = threads_of(timeline)
    markers = Markers(packets, timeline, first_ns, last_ns)
    tids = np.array(sorted(threads), np.int64)
    thread_track = len(markers.tracks)
    tracks = [*markers.tracks, *(threads[tid] for tid in tids.tolist())]
    states = StateSlices(packets, timeline, tids, len(tracks), (first_ns, last_ns))
    tracks += states.tracks
    counts = CountRates(packets, timeline, tids, len(tracks))
    tracks += counts.tracks
    if len(tracks) > MAX_SEQUENCE:
        raise ValueError(f"{len(tracks)} tracks, {MAX_SEQUENCE} at most")

    held = 0
    holders = ContainerSlices(packets, timeline, containers, tids, thread_track)
    ops = OpSlices(packets, timeline, holders)
    active = ActiveThreads(packets, len(tids))
    order = _Orderly(packets.end(), values)
    order.add(markers.spans)
    slices, points, adjusted, drawn = len(markers.spans), 0, containers.adjusted, 0
    told = np.zeros((len(tracks), len(packets.pool)), np.bool_)
    size = out.write(preamble(timeline.recording, tracks))
    for block in op_blocks(timeline, containers, tids, last_ns, block_ops):
        begun = int(np.searchsorted(containers.begin, block.until_ns))
        for spans in (
            holders.spans(held, begun),
            *ops.spans(block, thread_track),
            states.spans(block.until_ns),
        ):
            order.add(spans)
            slices += len(spans)
        held = begun
        active.add(block)
        for due in (
            markers.points(block.until_ns),
            active.until(block.until_ns, markers.active_track),
            *counts.points(block),
        ):
            order.add_points(due)
            points += len(due)
        adjusted += block.adjusted
        drawn += len(block.begin)
        events = order.until(block.until_ns)
        if len(packets.pool) > told.shape[1]:
            wider = np.zeros((len(tracks), 2 * len(packets.pool)), np.bool_)
            wider[:, : told.shape[1]] = told
            told = wider
        for data in _sequences(packets, told, events):
            size += out.write(data)
        encoded = packets.pool.encode(events.template, events.ts, events.track + 1, events.values)
        size += out.write(encoded.data)
    orphans = len(timeline.ops) - drawn
    return Written(slices, points, size, adjusted, orphans, ops.short)
