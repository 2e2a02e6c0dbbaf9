"""Layer 7: what Perfetto is told, as protobuf: tracks, names, arguments.

The only `import perfetto`. Owns the look of every slice. Builds each distinct packet once;
``trackevent`` multiplies them.
Must not import the command line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as pb

from profinfer.render.about import Recording
from profinfer.render.trackevent import TemplatePool, double_hole, frame, int_hole

_MAX_TEXT = 500  # characters of a name or argument of a slice
_MONOTONIC = 3
_BOOTTIME = 6
_REALTIME = 1
_CLEARED = 1
_NEEDED = 2

# Interned data: the field of InternedData, and that of its entries that holds the text.
_CATEGORY = ("event_categories", "name")
_NAME = ("event_names", "name")
_ARG = ("debug_annotation_names", "name")
_TEXT = ("debug_annotation_string_values", "str")
_Interned = tuple[tuple[str, str], int]


@dataclass(frozen=True)
class Value:
    """In place of an argument: value ``k`` of each event, a whole number."""

    k: int


@dataclass(frozen=True)
class Unique:
    """In place of an argument: a text of this event alone, which is not interned."""

    text: str


Args = Mapping[str, str | int | float | bool | Value | Unique]


@dataclass(frozen=True)
class Track:
    """One row of the timeline, written as one packet sequence.

    Attributes:
        kind: what it is, part of its identity: "thread", "tok/s", ...
        name: what is shown.
        tid: thread id, or a number that tells tracks of one kind apart.
        rank: order among its siblings.
        unit: unit of a counter; None for slices.
        parent: kind of the track with the same tid that it stands below; None for the process.
    """

    kind: str
    name: str
    tid: int = 0
    rank: int = 0
    unit: str | None = None
    parent: str | None = None


def track_uuid(pid: int, tid: int, kind: str) -> int:
    """Identity of a track: the same in every export of the same process."""
    digest = hashlib.blake2b(f"{pid}:{tid}:{kind}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1 or 1


def _clean(text: str) -> str:
    """Text that protobuf accepts: bytes that were not UTF-8 become question marks."""
    return text.encode("utf-8", "replace").decode()


def _short(text: str) -> str:
    """Text of a size that fits a template, however long a prompt on the command line is."""
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 3]}..."


@dataclass
class Packets:
    """Builds the packets of one export.

    Attributes:
        pool: where templates go.
    """

    pool: TemplatePool
    _iid: dict[tuple[str, str], dict[str, int]] = field(default_factory=dict)
    _text: dict[_Interned, str] = field(default_factory=dict)
    _uses: list[tuple[_Interned, ...]] = field(default_factory=list)
    _known: dict[int, set[_Interned]] = field(default_factory=dict)

    def _intern(self, kind: tuple[str, str], text: str, uses: list[_Interned]) -> int:
        text = _clean(_short(text))
        ids = self._iid.setdefault(kind, {})
        iid = ids.setdefault(text, len(ids) + 1)
        self._text[kind, iid] = text
        uses.append((kind, iid))
        return iid

    def _add(self, event: pb.TrackEvent, uses: list[_Interned]) -> int:
        template = self.pool.add(pb.TracePacket(track_event=event).SerializeToString())
        assert template == len(self._uses)
        self._uses.append(tuple(uses))
        return template

    def event(
        self,
        name: str,
        category: str,
        args: Args,
        *,
        once: bool = False,
        instant: bool = False,
        flows: Sequence[int] = (),
        ends: Sequence[int] = (),
    ) -> int:
        """Template of a slice's begin, or of an instant.

        Args:
            name: shown on the slice.
            category: one word.
            args: details, in the order shown.
            once: name and texts occur in this packet only: they are not interned.
            instant: a moment and not the begin of a slice.
            flows: ids of the flows that begin here.
            ends: ids of the flows that end here.
        """
        uses: list[_Interned] = []
        kind = pb.TrackEvent.TYPE_INSTANT if instant else pb.TrackEvent.TYPE_SLICE_BEGIN
        event = pb.TrackEvent(type=kind, flow_ids=flows, terminating_flow_ids=ends)
        event.category_iids.append(self._intern(_CATEGORY, category, uses))
        if once:
            event.name = _clean(_short(name))
        else:
            event.name_iid = self._intern(_NAME, name, uses)
        for key, value in args.items():
            note = event.debug_annotations.add(name_iid=self._intern(_ARG, key, uses))
            if isinstance(value, bool):
                note.bool_value = value
            elif isinstance(value, int):
                note.int_value = value
            elif isinstance(value, float):
                note.double_value = value
            elif isinstance(value, Value):
                note.int_value = int_hole(value.k)
            elif isinstance(value, Unique):
                note.string_value = _clean(_short(value.text))
            elif once:
                note.string_value = _clean(_short(value))
            else:
                note.string_value_iid = self._intern(_TEXT, value, uses)
        return self._add(event, uses)

    def end(self) -> int:
        """Template that ends the innermost open slice of its track."""
        return self._add(pb.TrackEvent(type=pb.TrackEvent.TYPE_SLICE_END), [])

    def count(self, value: int) -> int:
        """Template of a counter's value, a whole number."""
        return self._add(pb.TrackEvent(type=pb.TrackEvent.TYPE_COUNTER, counter_value=value), [])

    def rate(self, value: float) -> int:
        """Template of a counter's value."""
        kind = pb.TrackEvent.TYPE_COUNTER
        return self._add(pb.TrackEvent(type=kind, double_counter_value=value), [])

    def gauge(self) -> int:
        """Template of a counter's value that is value 0 of each event, as the bits of a double."""
        kind = pb.TrackEvent.TYPE_COUNTER
        return self._add(pb.TrackEvent(type=kind, double_counter_value=double_hole(0)), [])

    def interned(self, sequence: int, templates: list[int]) -> bytes:
        """What ``sequence`` must be told before it uses ``templates`` for the first time."""
        known = self._known.setdefault(sequence, set())
        new = sorted({use for t in templates for use in self._uses[t]} - known)
        if not new:
            return b""
        known.update(new)
        packet = pb.TracePacket(trusted_packet_sequence_id=sequence, sequence_flags=_NEEDED)
        for (kind, text_field), iid in new:
            text = self._text[(kind, text_field), iid]
            entry = getattr(packet.interned_data, kind).add(iid=iid)
            setattr(entry, text_field, text.encode() if text_field == "str" else text)
        return frame(packet.SerializeToString())


def preamble(recording: Recording, tracks: list[Track]) -> bytes:
    """Clocks, provenance, process, and one packet that opens each track's sequence."""
    now = recording.monotonic_ns
    clocks = pb.TracePacket(trusted_packet_sequence_id=1)
    clocks.clock_snapshot.primary_trace_clock = _MONOTONIC
    boot = recording.boottime_ns if recording.boottime_ns is not None else now
    for clock, value in ((_MONOTONIC, now), (_BOOTTIME, boot), (_REALTIME, recording.realtime_ns)):
        if value is not None:
            clocks.clock_snapshot.clocks.add(clock_id=clock, timestamp=value)

    about = pb.TracePacket(trusted_packet_sequence_id=1)
    for key, fact in recording.facts.items():
        attribute = about.trace_attributes.attribute.add(key=f"profinfer.{key}")
        if isinstance(fact, int):
            attribute.long_value = fact
        else:
            attribute.string_value = _clean(fact)

    pid = recording.pid
    process_uuid = track_uuid(pid, 0, "process")
    process = pb.TracePacket(trusted_packet_sequence_id=1)
    descriptor = process.track_descriptor
    descriptor.uuid = process_uuid
    descriptor.child_ordering = pb.TrackDescriptor.EXPLICIT
    descriptor.process.pid = pid
    descriptor.process.process_name = _clean(recording.process)
    descriptor.process.cmdline.extend(_clean(arg) for arg in recording.argv)

    packets = [clocks, about, process]
    for index, track in enumerate(tracks):
        packet = pb.TracePacket(
            trusted_packet_sequence_id=index + 1,
            sequence_flags=_CLEARED | _NEEDED,
            first_packet_on_sequence=True,
        )
        uuid = track_uuid(pid, track.tid, track.kind)
        packet.trace_packet_defaults.timestamp_clock_id = _MONOTONIC
        packet.trace_packet_defaults.track_event_defaults.track_uuid = uuid
        descriptor = packet.track_descriptor
        descriptor.uuid = uuid
        descriptor.parent_uuid = (
            process_uuid if track.parent is None else track_uuid(pid, track.tid, track.parent)
        )
        if track.kind == "thread":
            descriptor.thread.pid = pid
            descriptor.thread.tid = track.tid
            descriptor.thread.thread_name = _clean(track.name)
        else:
            descriptor.name = track.name
            descriptor.sibling_order_rank = track.rank
        if track.unit is not None:
            descriptor.counter.unit_name = track.unit
        packets.append(packet)
    return b"".join(frame(packet.SerializeToString()) for packet in packets)
