"""The byte layout of bulk packets, and the checker that the other tests rely on."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as pb
from perfetto_check import check, main, packets

from profinfer.render.events import Spans, events_of
from profinfer.render.trackevent import MAX_BODY, TemplatePool, frame, padded_varint, varint_width


@given(value=st.integers(0, 2**63 - 1), more=st.integers(0, 2))
def test_padded_varints_are_varints(value: int, more: int) -> None:
    width = min(10, varint_width(value) + more)
    encoded = padded_varint(value, width)
    assert len(encoded) == width
    packet = pb.TracePacket.FromString(b"\x40" + encoded)
    assert packet.timestamp == value


@pytest.mark.parametrize(("value", "width"), [(0, 1), (127, 1), (128, 2), (2**49 - 1, 7)])
def test_varint_width(value: int, width: int) -> None:
    assert varint_width(value) == width
    with pytest.raises(ValueError, match="does not fit"):
        padded_varint(1 << (7 * width), width)


def test_blocks_hold_templates_in_the_order_asked_for() -> None:
    pool = TemplatePool(ts_width=7)
    names = ["a", "b" * 300, ""]
    for name in names:
        pool.add(pb.TracePacket(track_event=pb.TrackEvent(name=name)).SerializeToString())
    template = np.array([1, 0, 2, 0, 1])
    ts = np.array([0, 1, 127, 128, 2**49 - 1])
    sequence = np.array([1, 127, 128, 300, 16383])
    data = pool.encode(template, ts, sequence).tobytes()
    trace = pb.Trace.FromString(data)
    assert [p.track_event.name for p in trace.packet] == [names[t] for t in template]
    assert [p.timestamp for p in trace.packet] == ts.tolist()
    assert [p.trusted_packet_sequence_id for p in trace.packet] == sequence.tolist()
    assert {p.sequence_flags for p in trace.packet} == {pb.TracePacket.SEQ_NEEDS_INCREMENTAL_STATE}


def test_the_pool_grows() -> None:
    pool = TemplatePool(ts_width=9)
    body = pb.TracePacket(track_event=pb.TrackEvent(name="x" * 5000)).SerializeToString()
    ids = [pool.add(body) for _ in range(50)]
    assert ids == list(range(len(pool)))
    one = np.ones(50, np.int64)
    trace = pb.Trace.FromString(pool.encode(np.arange(50), one, one).tobytes())
    assert {p.track_event.name for p in trace.packet} == {"x" * 5000}
    assert len(pool.encode(one[:0], one[:0], one[:0])) == 0
    with pytest.raises(ValueError, match="template"):
        pool.add(bytes(MAX_BODY + 1))


def order_of(rows: list[tuple[int, int, int, bool]]) -> str:
    """Order in the file of slices (begin, end, level, late): "+0" begins row 0, "-" ends one."""
    b, e, level, late = (np.array(c) for c in zip(*rows, strict=True))
    n = len(rows)
    spans = Spans(b, e, np.zeros(n, np.int64), level, np.arange(n), late.astype(bool))
    events = events_of(spans, n, 0).ordered()
    return " ".join("-" if t == n else f"+{t}" for t in events.template.tolist())


def test_order_at_one_moment() -> None:
    # parent and child begin and end together
    assert order_of([(0, 9, 0, True), (0, 9, 1, False)]) == "+0 +1 - -"
    # one graph ends where the next begins
    assert order_of([(0, 5, 0, True), (1, 5, 1, True), (5, 9, 0, True), (5, 9, 1, False)]) == (
        "+0 +1 - - +2 +3 - -"
    )
    # a slice of no duration at the end of its parent, where the next parent begins
    assert order_of([(0, 5, 0, True), (5, 5, 1, True), (5, 9, 0, True)]) == "+0 +1 - - +2 -"
    # and one at the beginning of its parent
    assert order_of([(0, 5, 0, True), (5, 9, 0, True), (5, 5, 1, False)]) == "+0 - +1 +2 - -"
    # several of no duration, between siblings
    assert order_of(
        [(0, 9, 0, True), (1, 5, 1, True), (5, 5, 1, True), (5, 5, 1, True), (5, 8, 1, True)]
    ) == ("+0 +1 - +2 - +3 - +4 - -")


def bad_trace(*changes: str) -> bytes:
    """A small sound trace, but for the named changes."""
    first = pb.TracePacket(trusted_packet_sequence_id=1, sequence_flags=3)
    first.trace_packet_defaults.timestamp_clock_id = 3
    first.trace_packet_defaults.track_event_defaults.track_uuid = 5
    first.track_descriptor.uuid = 6 if "unknown track" in changes else 5
    if "cleared" in changes:
        first.sequence_flags = 2
    clock = pb.TracePacket(trusted_packet_sequence_id=1)
    clock.clock_snapshot.clocks.add(clock_id=6 if "clock" in changes else 3, timestamp=1)
    names = pb.TracePacket(trusted_packet_sequence_id=1, sequence_flags=2)
    names.interned_data.event_names.add(iid=2 if "interned" in changes else 1, name="op")

    def event(ts: int, kind: int) -> pb.TracePacket:
        packet = pb.TracePacket(timestamp=ts, trusted_packet_sequence_id=1, sequence_flags=2)
        packet.track_event.type = kind
        if kind == 1:
            packet.track_event.name_iid = 1
        if kind == 1 and "flow" in changes:
            packet.track_event.flow_ids.append(7)
        if kind == 1 and "no flow" in changes:
            packet.track_event.terminating_flow_ids.append(7)
        if kind == 4:
            packet.track_event.counter_value = 1
        return packet

    events = [event(10, 1), event(9 if "monotonic" in changes else 20, 2)]
    if "end" in changes:
        events.append(event(30, 2))
    if "open" in changes:
        events.append(event(30, 1))
    if "counter" in changes:
        events.append(event(30, 4))
    return b"".join(frame(p.SerializeToString()) for p in (clock, first, names, *events))


def test_the_checker_accepts_a_sound_trace() -> None:
    report = check(bad_trace())
    assert report.problems == []
    assert [(s.name, s.dur) for s in report.slices] == [("op", 10)]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("unknown track", "unknown track"),
        ("cleared", "before it was cleared"),
        ("clock", "clock without a snapshot"),
        ("interned", "undefined interned id"),
        ("monotonic", "not monotonic"),
        ("end", "an end without a begin"),
        ("open", "left open"),
        ("counter", "is no counter"),
        ("flow", "flows without an end"),
        ("no flow", "flow ends that did not begin"),
    ],
)
def test_the_checker_sees(change: str, says: str) -> None:
    problems = check(bad_trace(change)).problems
    assert any(says in p for p in problems), problems


def test_the_checker_as_a_script(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad, cut = (tmp_path / n for n in ("good", "bad", "cut"))
    good.write_bytes(bad_trace())
    bad.write_bytes(bad_trace("end"))
    cut.write_bytes(bad_trace()[:-1])
    assert main([str(good)]) == 0
    assert main([str(bad)]) == 1
    assert main([str(cut)]) == 1
    assert "cut short" in capsys.readouterr().out
    with pytest.raises(ValueError, match="not a packet"):
        list(packets(b"\x00"))
