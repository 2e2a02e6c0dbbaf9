"""Reads a Perfetto trace back and says what is wrong with it.

A library for the tests (``check``), and a script: ``python tests/perfetto_check.py FILE...``
prints one line a problem and a summary, and exits with 1 if there was a problem. It knows the
rules that Perfetto's importer goes by and nothing of how profinfer writes.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as pb

_CLEARED, _NEEDED = 1, 2


@dataclass(frozen=True)
class Slice:
    track: int
    name: str
    category: str
    begin: int
    dur: int
    depth: int
    parent: str
    args: dict[str, Any]


@dataclass(frozen=True)
class Flow:
    id: int
    source: Slice
    target: Slice


@dataclass(frozen=True)
class Instant:
    track: int
    name: str
    ts: int
    args: dict[str, Any]


@dataclass
class Report:
    problems: list[str] = field(default_factory=list)
    packets: int = 0
    tracks: dict[int, Any] = field(default_factory=dict)
    slices: list[Slice] = field(default_factory=list)
    instants: list[Instant] = field(default_factory=list)
    flows: list[Flow] = field(default_factory=list)
    counters: dict[int, list[tuple[int, float]]] = field(default_factory=dict)
    attributes: dict[str, str | int] = field(default_factory=dict)
    clocks: dict[int, int] = field(default_factory=dict)

    def track(self, name: str) -> int:
        """The uuid of the only track of that name."""
        (uuid,) = [u for u, d in self.tracks.items() if name in (d.name, d.thread.thread_name)]
        return uuid

    def on(self, name: str) -> list[Slice]:
        uuid = self.track(name)
        return sorted((s for s in self.slices if s.track == uuid), key=lambda s: s.begin)


def packets(data: bytes) -> Iterator[tuple[int, Any]]:
    """(offset, TracePacket) of each; a frame that does not fit raises ValueError."""
    at = 0
    while at < len(data):
        if data[at] != 0x0A:
            raise ValueError(f"byte {at}: {data[at]:#x} is not a packet")
        size, shift, here = 0, 0, at + 1
        while True:
            byte = data[here]
            size |= (byte & 0x7F) << shift
            shift, here = shift + 7, here + 1
            if byte < 0x80:
                break
        if here + size > len(data):
            raise ValueError(f"byte {at}: the packet is cut short")
        yield at, pb.TracePacket.FromString(data[here : here + size])
        at = here + size


class _Sequence:
    def __init__(self) -> None:
        self.cleared = False
        self.clock: int | None = None
        self.track: int | None = None
        self.interned: dict[str, dict[int, str]] = {}

    def learn(self, data: Any, problem: Any) -> None:
        for descriptor, entries in data.ListFields():
            known = self.interned.setdefault(descriptor.name, {})
            for entry in entries:
                text = entry.str.decode() if hasattr(entry, "str") else entry.name
                if known.get(entry.iid, text) != text:
                    problem(f"{descriptor.name} {entry.iid} is given two meanings")
                known[entry.iid] = text


def check(data: bytes) -> Report:
    report = Report()
    sequences: dict[int, _Sequence] = {}
    stacks: dict[int, list[tuple[int, str, str, dict[str, Any], Any]]] = {}
    leaves: dict[int, Slice] = {}  # flow -> the slice that it comes from, once that has ended
    enters: dict[int, Slice] = {}
    open_flows: set[int] = set()
    last: dict[int, int] = {}
    count: Counter[str] = Counter()

    for at, packet in packets(data):
        report.packets += 1

        def problem(text: str, at: int = at) -> None:
            kind = text.split(":")[0]
            count[kind] += 1
            if count[kind] <= 20:
                report.problems.append(f"byte {at}: {text}")

        seq = sequences.setdefault(packet.trusted_packet_sequence_id, _Sequence())
        if not packet.trusted_packet_sequence_id:
            problem("no sequence id")
        if packet.sequence_flags & _CLEARED:
            seq.cleared, seq.interned = True, {}
        if packet.HasField("trace_packet_defaults"):
            seq.clock = packet.trace_packet_defaults.timestamp_clock_id
            seq.track = packet.trace_packet_defaults.track_event_defaults.track_uuid
        if packet.sequence_flags & _NEEDED and not seq.cleared:
            problem("state needed before it was cleared")
        if packet.HasField("interned_data"):
            seq.learn(packet.interned_data, problem)
        for clock in packet.clock_snapshot.clocks:
            report.clocks[clock.clock_id] = clock.timestamp
        for a in packet.trace_attributes.attribute:
            report.attributes[a.key] = a.long_value if a.HasField("long_value") else a.string_value
        if packet.HasField("track_descriptor"):
            d = packet.track_descriptor
            if d.uuid in report.tracks:
                problem(f"track declared twice: {d.uuid}")
            if d.HasField("parent_uuid") and d.parent_uuid not in report.tracks:
                problem(f"parent unknown: {d.parent_uuid}")
            report.tracks[d.uuid] = d
        if not packet.HasField("track_event"):
            continue

        event, ts = packet.track_event, packet.timestamp
        uuid = event.track_uuid or seq.track or 0
        if uuid not in report.tracks:
            problem(f"unknown track: {uuid}")
        clock = packet.timestamp_clock_id or seq.clock or 6
        if clock not in report.clocks:
            problem(f"clock without a snapshot: {clock}")
        if not packet.sequence_flags & _NEEDED:
            problem("event does not ask for the state it uses")
        if ts < last.get(uuid, 0):
            problem(f"not monotonic: {ts} after {last[uuid]}")
        last[uuid] = ts

        def text(kind: str, iid: int, seq: _Sequence = seq, problem: Any = problem) -> str:
            known = seq.interned.get(kind, {})
            if iid not in known:
                problem(f"undefined interned id: {kind} {iid}")
            return known.get(iid, "?")

        name = text("event_names", event.name_iid) if event.name_iid else event.name
        category = ",".join(text("event_categories", i) for i in event.category_iids)
        args: dict[str, Any] = {}
        for note in event.debug_annotations:
            key = text("debug_annotation_names", note.name_iid) if note.name_iid else note.name
            which = note.WhichOneof("value")
            value = getattr(note, which)
            if which == "string_value_iid":
                value = text("debug_annotation_string_values", value)
            if key in args:
                problem(f"argument given twice: {key}")
            args[key] = value

        stack = stacks.setdefault(uuid, [])
        if event.type == pb.TrackEvent.TYPE_SLICE_BEGIN:
            if not name:
                problem("slice without a name")
            for flow in event.terminating_flow_ids:
                if flow not in open_flows:
                    problem(f"flow ends that did not begin: {flow}")
                open_flows.discard(flow)
            for flow in event.flow_ids:
                if flow in open_flows or flow in leaves:
                    problem(f"flow begins twice: {flow}")
                open_flows.add(flow)
            stack.append((ts, name, category, args, event))
        elif event.type == pb.TrackEvent.TYPE_SLICE_END:
            if not stack:
                problem("unbalanced: an end without a begin")
                continue
            begin, name, category, args, opened = stack.pop()
            parent = stack[-1][1] if stack else ""
            done = Slice(uuid, name, category, begin, ts - begin, len(stack), parent, args)
            report.slices.append(done)
            leaves |= dict.fromkeys(opened.flow_ids, done)
            enters |= dict.fromkeys(opened.terminating_flow_ids, done)
        elif event.type == pb.TrackEvent.TYPE_INSTANT:
            report.instants.append(Instant(uuid, name, ts, args))
        elif event.type == pb.TrackEvent.TYPE_COUNTER:
            value_set = event.HasField("counter_value") + event.HasField("double_counter_value")
            if value_set != 1 or event.double_counter_value != event.double_counter_value:
                problem(f"a counter without one value: {uuid}")
            if not report.tracks[uuid].HasField("counter"):
                problem(f"a value on a track that is no counter: {uuid}")
            value = (
                event.counter_value
                if event.HasField("counter_value")
                else event.double_counter_value
            )
            report.counters.setdefault(uuid, []).append((ts, value))
        else:
            problem(f"event type {event.type}")
    for uuid, stack in stacks.items():
        if stack:
            report.problems.append(f"unbalanced: {len(stack)} slices left open on track {uuid}")
    if open_flows:
        report.problems.append(f"flows without an end: {len(open_flows)}")
    report.flows = [Flow(i, s, enters[i]) for i, s in leaves.items() if i in enters]
    report.problems += [f"and {n - 20} more: {k}" for k, n in count.items() if n > 20]
    return report


def main(paths: list[str]) -> int:
    bad = 0
    for path in paths:
        try:
            report = check(Path(path).read_bytes())
        except (OSError, ValueError) as error:
            print(f"{path}: {error}")
            bad = 1
            continue
        for line in report.problems:
            print(f"{path}: {line}")
        values = sum(map(len, report.counters.values()))
        print(
            f"{path}: {report.packets} packets, {len(report.tracks)} tracks, "
            f"{len(report.slices)} slices, {len(report.instants)} instants, "
            f"{values} counter values, {len(report.flows)} flows, {len(report.problems)} problems"
        )
        bad |= bool(report.problems)
    return bad


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
