"""Recordings that begin or end in the middle: the edges are forgiven, the middle is not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from builders import OpEvent, TraceBuilder, llama_graph, sample_run

from profinfer.analysis import overview
from profinfer.model.selfcheck import Check, checks
from profinfer.model.trace import Trace
from profinfer.tracefile.schema import Kind

FOREVER = 1 << 62
SPANS = {
    Kind.CALL_BEGIN, Kind.CALL_END, Kind.SAMPLE_BEGIN, Kind.SAMPLE_END,
    Kind.SPLIT_BEGIN, Kind.SPLIT_END, Kind.GRAPH_BEGIN, Kind.GRAPH_END,
}  # fmt: skip
WHAT = {"CALL": "calls", "SAMPLE": "samples", "SPLIT": "splits", "GRAPH": "graphs"}


class Window(TraceBuilder):
    """Records what happens from ``since`` to ``until``, as the recorder of a running process does.

    ``armed``: the probes were in place before, so that the end of what began before is seen.
    ``drop``: number among the kept records of spans of one that gets lost without a trace.
    """

    def __init__(
        self, since: int = 0, until: int = FOREVER, *, armed: bool = True, drop: int = -1,
        **changes: Any,
    ) -> None:  # fmt: skip
        if since:
            changes["options"] = {"attached": True, "attached_ns": since}
        super().__init__(**changes)
        self.since, self.until, self.armed, self.drop = since, until, armed, drop
        self.open: dict[tuple[int, str], int] = {}  # begun before, by thread and kind
        self.kept: list[tuple[Kind, int, int]] = []  # (kind, tid, ts) of spans

    def record(self, kind: int, tid: int, ts: int, body: bytes, flags: int = 0) -> None:
        if kind in SPANS:
            what, _, side = Kind(kind).name.partition("_")
            unseen = self.open.get((tid, what), 0)
            if not self.since <= ts < self.until:
                self.open[tid, what] = unseen + (1 if side == "BEGIN" else -1)
                return
            if side == "END" and unseen > 0:
                self.open[tid, what] = unseen - 1
                if not self.armed:
                    return
            self.kept.append((Kind(kind), tid, ts))
            if len(self.kept) - 1 == self.drop:
                return
        super().record(kind, tid, ts, body, flags)

    def ops(self, tid: int, events: Sequence[OpEvent], **more: Any) -> None:
        # A batch that is open at the end stays behind in the kernel.
        inside = [event for event in events if event[0] >= self.since]
        if inside and events[-1][0] < self.until:
            super().ops(tid, inside, **more)

    def finish(self, path: Path, reason: str | None = None) -> Trace:
        ended = reason or ("target exited" if self.until == FOREVER else "detached")
        return Trace.open(self.write(path, self.trailer(reason=ended)))


def played(window: Window) -> Window:
    """Prompt and decodes as always; two threads, a prompt of 20,000 ns, tokens of 60,000."""
    sample_run(builder=window, decode_tokens=4, compute=lambda node, thread: 1000 + 100 * thread)
    return window


def faults(trace: Trace) -> list[Check]:
    return [c for c in checks(trace) if not c.ok]


def moments(step: int) -> list[int]:
    """Times over the whole run, one at each record of a span and between them."""
    kept = sorted(ts for _, _, ts in played(Window()).kept)
    ends = [*kept, *(ts + 1 for ts in kept)]
    ends += list(range(kept[0], kept[-1], (kept[-1] - kept[0]) // 60))
    return sorted(set(ends))[3::step]


@pytest.mark.parametrize("armed", [True, False])
@pytest.mark.parametrize("since", moments(4))
def test_wherever_it_begins_nothing_is_wrong(tmp_path: Path, since: int, armed: bool) -> None:
    trace = played(Window(since, armed=armed)).finish(tmp_path / "t.pf")
    assert trace.excerpt
    assert [c.text for c in faults(trace)] == []
    assert trace.missing == {}


@pytest.mark.parametrize("until", moments(3))
def test_wherever_it_ends_nothing_is_wrong(tmp_path: Path, until: int) -> None:
    trace = played(Window(0, until)).finish(tmp_path / "t.pf")
    assert [c.text for c in faults(trace)] == []
    assert trace.missing == {}


@pytest.mark.parametrize("since", moments(19))
def test_with_both_ends(tmp_path: Path, since: int) -> None:
    for until in moments(17):
        if until > since + 1:
            trace = played(Window(since, until)).finish(tmp_path / "t.pf")
            assert [c.text for c in faults(trace)] == []
            assert trace.missing == {}


def middle() -> list[tuple[int, Kind]]:
    """Records of spans from the second token to the last but one, by their number."""
    window = played(Window(*edges()))
    calls = [ts for kind, _, ts in window.kept if kind == Kind.CALL_BEGIN]
    return [
        (number, kind)
        for number, (kind, _, ts) in enumerate(window.kept)
        if calls[1] <= ts < calls[-1]
    ]


def edges() -> tuple[int, int]:
    """From within the graph of the prompt to within the graph of the last token."""
    begins = [ts for kind, _, ts in played(Window()).kept if kind == Kind.GRAPH_BEGIN]
    return begins[1] + 5000, begins[-1] + 5000


@pytest.mark.parametrize(("number", "kind"), middle())
def test_one_record_missing_in_the_middle_is_reported(
    tmp_path: Path, number: int, kind: Kind
) -> None:
    trace = played(Window(*edges(), drop=number)).finish(tmp_path / "t.pf")
    found = {c.name: c.text for c in faults(trace)}
    what = WHAT[kind.name.split("_")[0]]
    assert f"1 {what} without their begin or end, not at an edge of the excerpt" in found["pairs"]
    assert trace.missing[f"unmatched_{what}"] == 1
    if kind == Kind.GRAPH_BEGIN:
        assert "operator records without a graph" in found["definitions"]
        said = int(found["definitions"].split()[0].replace(",", ""))
        assert said == trace.missing["orphan_ops"]
        assert said < trace.losses["orphan_ops"]  # those of the prompt's graph are forgiven
    shown = " ".join(n.text for n in overview.self_check(trace).notes)
    assert found["pairs"] in shown


def test_more_threads_do_not_hide_a_loss(tmp_path: Path) -> None:
    """Each of two threads may have been in a call when it began: one may not lack two."""
    window = Window(1000, 900_000)
    for tid in (77, 88):
        window.call_end(tid, 1500)
        window.call_begin(tid, 2000)
        window.call_end(tid, 3000)
    assert faults(window.finish(tmp_path / "t.pf")) == []
    window.call_end(77, 4000)
    (fault,) = faults(window.finish(tmp_path / "t.pf"))
    assert fault.text == "1 calls without their begin or end, not at an edge of the excerpt"


@pytest.mark.parametrize(
    ("play", "good"),
    [
        # a call that wraps another: both were under way
        (lambda w: (w.call_end(7, 10, probe=8), w.call_end(7, 12)), True),
        # its inner one came and went meanwhile
        (lambda w: (w.call_begin(7, 9), w.call_end(7, 10), w.call_end(7, 12, probe=8)), True),
        # llama_encode is no wrapper of llama_decode
        (lambda w: (w.call_begin(7, 9), w.call_end(7, 10), w.call_end(7, 12, probe=9)), False),
        # a split holds graphs, a graph no split
        (lambda w: (w.graph_end(7, 10), w.split_end(7, 12), w.call_end(7, 14)), True),
        (lambda w: (w.split_end(7, 10), w.graph_end(7, 12)), False),
        # sampling lies outside of calls
        (lambda w: (w.sample_begin(7, 9), w.sample_end(7, 10), w.call_end(7, 12)), False),
        (lambda w: (w.call_begin(7, 9), w.call_end(7, 10), w.sample_end(7, 12)), False),
        # a chain of samplers calls the same function for each of its own
        (lambda w: (w.sample_begin(7, 9, probe=10), w.sample_end(7, 10, probe=10),
                    w.sample_end(7, 12, probe=10)), True),
        (lambda w: (w.sample_begin(7, 9), w.sample_end(7, 10), w.sample_end(7, 12)), False),
    ],
)  # fmt: skip
def test_what_can_have_been_under_way(
    tmp_path: Path, play: Callable[[Window], object], good: bool
) -> None:
    window = Window(5, 1000)
    probes = window.meta["plan"]["probes"]
    for number, name in ((8, "llama_process"), (9, "llama_encode"), (10, "llama_sampler_apply")):
        probes.append({**probes[0], "id": number, "function": name})
    play(window)
    assert (faults(window.finish(tmp_path / "t.pf")) == []) == good
    # The same without the excuse of having begun in the middle.
    window.meta["options"] = {}
    assert faults(window.finish(tmp_path / "v.pf"))


def test_the_targets_own_end_is_no_edge(tmp_path: Path) -> None:
    """The recording began in the middle, but the target died in a call."""
    window = Window(5)
    window.call_begin(7, 10)
    (fault,) = faults(window.finish(tmp_path / "t.pf"))
    assert fault.name == "pairs"
    window.until = 1000
    assert faults(window.finish(tmp_path / "t.pf")) == []


@pytest.mark.parametrize("entered", [False, True])
@pytest.mark.parametrize("seen_end", [True, False])
@pytest.mark.parametrize("begun", [False, True])
def test_operators_of_a_graph_that_began_before(
    tmp_path: Path, entered: bool, seen_end: bool, begun: bool
) -> None:
    """Its threads may have come to it later, but not after its caller began anything."""
    window = Window(5, 10**9)
    if begun:
        window.call_begin(77, 50)
        window.call_end(77, 70)
    for tid in (77, 78):
        enter = [(90, 4, 0)] if entered else []
        window.ops(tid, [*enter, (100 + tid, 1, 1), (200, 1, 2), (210, 5, 0)], cgraph=0x60)
    if seen_end:
        window.graph_end(77, 300)
    window.run_graph(llama_graph(layers=1), begin=1000, tids=(77, 78))
    trace = window.finish(tmp_path / "t.pf")
    assert trace.losses["orphan_ops"] == 4
    expected = ["pairs"] * (seen_end and begun) + ["definitions"] * (entered and begun)
    assert [c.name for c in faults(trace)] == expected


def test_a_graph_longer_than_the_recording(tmp_path: Path) -> None:
    window = Window(5, 10**9)
    for tid in (77, 78):
        window.ops(tid, [(100 + tid, 1, 1), (200, 1, 2)], cgraph=0x60, last=False)
    other = llama_graph(layers=1)
    other.cgraph = 0x7000_0000
    window.run_graph(other, begin=1000, tids=(87, 88))  # of another context
    trace = window.finish(tmp_path / "t.pf")
    assert trace.losses["orphan_ops"] == 4 and faults(trace) == []


def test_a_graph_whose_nodes_were_being_read_began_before(tmp_path: Path) -> None:
    builder = TraceBuilder(options={"attached": True, "attached_ns": 995})
    builder.run_graph(llama_graph(layers=1), begin=1000)  # read since 950
    builder.run_graph(llama_graph(layers=1), begin=100_000)
    trace = Trace.open(builder.write(tmp_path / "t.pf", builder.trailer(reason="detached")))
    assert trace.graphs["begin_ns"].tolist() == [100_000]
    assert faults(trace) == []


@pytest.mark.parametrize("armed", [True, False])
def test_views_leave_out_graphs_of_a_call_that_began_before_and_no_others(
    tmp_path: Path, armed: bool
) -> None:
    window = Window(5, 10**9)
    graph = llama_graph(layers=1)
    window.run_graph(graph, begin=1000)
    if armed:
        window.call_end(77, 100_000)
    window.call_begin(77, 200_000, n_tokens=1, pos_first=4)
    window.run_graph(graph, begin=201_000)
    window.call_end(77, 300_000)
    window.run_graph(graph, begin=400_000)  # computed outside of any call
    trace = window.finish(tmp_path / "t.pf")
    assert trace.select().graphs.tolist() == [False, True, True]
    assert faults(trace) == []
