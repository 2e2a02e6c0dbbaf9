"""Layer 7: a timeline becomes a file that ui.perfetto.dev opens, block by block.

Owns the tracks and the order of packets in the file. Must not import the command line.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from profinfer.render.backendtracks import BackendSlices
from profinfer.render.containers import ContainerSlices
from profinfer.render.markers import Markers, threads_of
from profinfer.render.nesting import contain
from profinfer.render.opblocks import OP_LEVEL, VISIT_LEVEL, OpBlock, op_blocks
from profinfer.render.opnames import OpNames
from profinfer.render.packets import Packets, preamble
from profinfer.render.states import StateSlices
from profinfer.render.timeline import Timeline, first_and_last
from profinfer.render.trackevent import (
    MAX_SEQUENCE,
    Events,
    Ints,
    Spans,
    TemplatePool,
    events_of,
    point_events,
    varint_width,
)

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
    """

    slices: int
    points: int
    bytes: int
    adjusted: int
    orphans: int


class _Ops:
    """Operators, visits and waits of a block as slices."""

    def __init__(self, packets: Packets, timeline: Timeline, graphs: ContainerSlices) -> None:
        self._packets = packets
        self._names = OpNames(timeline.nodes)
        self._graphs = graphs
        self._template: dict[tuple[int, int], int] = {}
        self._wait = packets.event("barrier wait", "wait", {})
        self._empty = packets.event("barrier after an empty node", "empty node", {})

    def _templates(self, node_id: Ints, fused: Ints) -> Ints:
        # One turn a distinct operator of the block, not an operator event.
        packed, which = np.unique(node_id << 16 | fused, return_inverse=True)
        ids = np.empty(len(packed), np.int64)
        for i, key in enumerate(packed.tolist()):
            node = (key >> 16, key & 0xFFFF)
            if node not in self._template:
                text = self._names.describe(*node)
                self._template[node] = self._packets.event(text.name, text.category, text.args)
            ids[i] = self._template[node]
        return ids[which]

    def _empty_or(self, block: OpBlock) -> tuple[Ints, Ints]:
        """Templates of the operators, and where their slices end.

        An empty node has nothing to compute: one slice to its barrier's end, of no operator.
        """
        empty = block.fused == 0
        if not empty.any():
            return self._templates(block.node_id, block.fused), block.end
        template = np.full(len(empty), self._empty)
        template[~empty] = self._templates(block.node_id[~empty], block.fused[~empty])
        return template, np.where(empty, block.release, block.end)

    def spans(self, block: OpBlock, first_track: int) -> list[Spans]:
        """Slices in the order of their threads and times."""
        n = len(block.begin)
        track = block.track + first_track
        level = np.full(n, OP_LEVEL)
        template, end = self._empty_or(block)
        ops = Spans(block.begin, end, track, level, template, block.late)
        waits = np.flatnonzero(block.release > end)
        v = block.visit_row
        graph_templates = [self._graphs.graph(row) for row in block.graph[v].tolist()]
        return [
            Spans(
                block.begin[v],
                block.visit_end,
                track[v],
                np.full(len(v), VISIT_LEVEL),
                np.array(graph_templates, np.int64),
                np.ones(len(v), np.bool_),
            ),
            ops,
            Spans(
                block.end[waits],
                block.release[waits],
                track[waits],
                level[waits],
                np.full(len(waits), self._wait),
                np.ones(len(waits), np.bool_),
            ),
        ]


class _Active:
    """Counter: threads that compute an operator at a time, as steps."""

    def __init__(self, packets: Packets, most: int) -> None:
        self._value = np.array([packets.count(n) for n in range(most + 1)], np.int64)
        self._ts = np.empty(0, np.int64)
        self._delta = np.empty(0, np.int64)
        self._running = 0

    def add(self, block: OpBlock) -> None:
        busy = (block.end > block.begin) & (block.fused > 0)
        begin, end = block.begin[busy], block.end[busy]
        self._ts = np.concatenate([self._ts, begin, end])
        one = np.ones(len(begin), np.int64)
        self._delta = np.concatenate([self._delta, one, -one])

    def until(self, until_ns: int, track: int) -> tuple[Ints, Ints, Ints]:
        """Times, tracks and templates of the steps before ``until_ns``."""
        due = self._ts < until_ns
        ts, where = np.unique(self._ts[due], return_inverse=True)
        step = np.bincount(where, self._delta[due], len(ts)).astype(np.int64)
        value = self._running + np.cumsum(step)
        self._ts, self._delta = self._ts[~due], self._delta[~due]
        if len(value):
            self._running = int(value[-1])
        moved = step != 0
        ts, value = ts[moved], np.clip(value[moved], 0, len(self._value) - 1)
        return ts, np.full(len(ts), track, np.int64), self._value[value]


class _Orderly:
    """Holds back what belongs after the end of a block, and puts the rest in order."""

    def __init__(self, end_template: int) -> None:
        self._end = end_template
        self._held: list[Events] = []
        self._rows = 0

    def add(self, spans: Spans) -> None:
        self._held.append(events_of(spans, self._end, self._rows))
        self._rows += len(spans)

    def add_points(self, ts: Ints, track: Ints, template: Ints) -> None:
        self._held.append(point_events(ts, track, template))

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
    packets = Packets(TemplatePool(varint_width(last_ns)))
    containers = contain(timeline, last_ns)
    threads = threads_of(timeline)
    markers = Markers(packets, timeline, first_ns, last_ns)
    tids = np.array(sorted(threads), np.int64)
    thread_track = len(markers.tracks)
    tracks = [*markers.tracks, *(threads[tid] for tid in tids.tolist())]
    states = StateSlices(packets, timeline, tids, len(tracks), (first_ns, last_ns))
    tracks += states.tracks
    backends = BackendSlices(packets, timeline.backends, len(tracks), (first_ns, last_ns))
    tracks += backends.tracks
    if len(tracks) > MAX_SEQUENCE:
        raise ValueError(f"{len(tracks)} tracks, {MAX_SEQUENCE} at most")

    held = 0
    holders = ContainerSlices(packets, timeline, containers, tids, thread_track)
    ops = _Ops(packets, timeline, holders)
    active = _Active(packets, len(tids))
    order = _Orderly(packets.end())
    order.add(markers.spans)
    order.add(backends.spans)
    slices, points, adjusted, drawn = (
        len(markers.spans) + len(backends.spans),
        0,
        containers.adjusted,
        0,
    )
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
        ):
            order.add_points(*due)
            points += len(due[0])
        adjusted += block.adjusted
        drawn += len(block.begin)
        events = order.until(block.until_ns)
        if len(packets.pool) > told.shape[1]:
            wider = np.zeros((len(tracks), 2 * len(packets.pool)), np.bool_)
            wider[:, : told.shape[1]] = told
            told = wider
        for data in _sequences(packets, told, events):
            size += out.write(data)
        encoded = packets.pool.encode(events.template, events.ts, events.track + 1)
        size += out.write(encoded.data)
    return Written(slices, points, size, adjusted, len(timeline.ops) - drawn)
