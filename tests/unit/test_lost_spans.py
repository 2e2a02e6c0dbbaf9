"""Begins and ends that were lost: what is left is never taken for something else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from builders import TraceBuilder, sample_run
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from profinfer.analysis import latency, lifeledger, overview, steps
from profinfer.analysis.findings import findings
from profinfer.cli import group
from profinfer.model import holes
from profinfer.model.selfcheck import checks
from profinfer.model.spans import pair
from profinfer.model.trace import Trace
from profinfer.tracefile.schema import HDR, NUMBER_SHIFT, NUMBERS, Kind

TOKENS = 40
US = 1000


def recorded(
    tmp_path: Path, refuses: Callable[[int, int], bool] | None, *, numbers: bool = True
) -> Trace:
    builder = TraceBuilder()
    builder.numbers = numbers
    if refuses:
        builder.refuses = refuses
    sample_run(decode_tokens=TOKENS, builder=builder)
    return Trace.open(builder.write(tmp_path / f"{numbers}.pf"))


@pytest.fixture
def sound(tmp_path: Path) -> Trace:
    (tmp_path / "sound").mkdir()
    return recorded(tmp_path / "sound", None)


def stopped(sound: Trace, first: int, last: int) -> Callable[[int, int], bool]:
    """The recorder stands still from the middle of one graph to the middle of another."""
    graphs = sound.graphs
    middle = (graphs["begin_ns"] + graphs["end_ns"]).to_numpy() // 2
    return lambda kind, ts: bool(middle[first] <= ts < middle[last]) and kind <= Kind.GRAPH_END


def test_two_calls_are_not_glued_into_one(tmp_path: Path, sound: Trace) -> None:
    trace = recorded(tmp_path, stopped(sound, 12, 30))
    truth = {(b, e) for b, e in sound.calls[["begin_ns", "end_ns"]].to_numpy().tolist()}
    graphs = {(b, e) for b, e in sound.graphs[["begin_ns", "end_ns"]].to_numpy().tolist()}
    assert {(b, e) for b, e in trace.calls[["begin_ns", "end_ns"]].to_numpy().tolist()} < truth
    assert {(b, e) for b, e in trace.graphs[["begin_ns", "end_ns"]].to_numpy().tolist()} < graphs
    assert len(trace.calls) == len(sound.calls) - 19  # 18 lost, of which two by half
    assert trace.losses["unmatched_calls"] == trace.losses["unmatched_graphs"] == 2
    assert not trace.calls["cut"].any()
    # No step is longer than the longest that happened.
    longest = latency.time_per_output_token(sound).max()
    assert latency.time_per_output_token(trace).max() <= longest
    assert trace.calls["lost_before"].sum() == 1
    # Steps are numbered as if nothing was lost: positions tell.
    index = sound.calls.set_index("begin_ns")["token_index"]
    assert (index[trace.calls["begin_ns"]].to_numpy() == trace.calls["token_index"]).all()


def test_time_that_was_lost_is_in_a_row_of_its_own(tmp_path: Path, sound: Trace) -> None:
    trace = recorded(tmp_path, stopped(sound, 12, 30))
    hole = int(sound.calls["begin_ns"].iloc[31] - sound.calls["end_ns"].iloc[11])
    told = lifeledger.ledger(trace).frame.set_index("part")["time_ns"]
    assert 0.9 * hole < told["lost"] <= hole
    wall = overview.ledger(trace, trace.select(phase="decode")).frame.set_index("part")["time_ns"]
    usual = overview.ledger(sound, sound.select(phase="decode")).frame.set_index("part")["time_ns"]
    assert wall["between"] <= usual["between"]
    assert wall["sampling"] <= usual["sampling"]


def of_graphs(kind: int, ts: int) -> bool:
    return kind in (Kind.GRAPH_BEGIN, Kind.GRAPH_END)


def test_graphs_that_were_lost_are_not_building(tmp_path: Path, sound: Trace) -> None:
    begin, end = sound.calls["begin_ns"].iloc[10], sound.calls["end_ns"].iloc[30]
    trace = recorded(tmp_path, lambda kind, ts: of_graphs(kind, ts) and begin <= ts < end)
    assert len(trace.calls) == len(sound.calls)
    # The calls around see the hole's edges: they may have had a graph more.
    assert np.flatnonzero(trace.calls["torn"]).tolist() == list(range(9, 32))
    wall = overview.ledger(trace, trace.select(phase="decode")).frame.set_index("part")["time_ns"]
    usual = overview.ledger(sound, sound.select(phase="decode")).frame.set_index("part")["time_ns"]
    assert wall["build"] <= usual["build"]
    assert wall["unseen"] > 10 * wall["build"]
    assert wall.sum() == usual.sum()
    told = steps.decode_steps(trace, trace.select(phase="decode"))
    assert (told.time.sum(axis=1) == told.total).all()
    lost = told.time[:, told.parts.index(steps.LOST)]
    assert (lost > 0).tolist() == trace.calls["torn"].to_numpy()[told.call].tolist()
    assert "graph_build" not in {f.name for f in findings(trace, trace.select())}
    run = lifeledger.ledger(trace).frame.set_index("part")["time_ns"]
    assert run["torn"] > 10 * run["decode.build"]


@pytest.mark.parametrize("numbers", [True, False])
def test_every_graph_of_some_steps_lost(tmp_path: Path, sound: Trace, numbers: bool) -> None:
    """Also of an older recorder, which numbered nothing."""
    begin, end = sound.calls["begin_ns"].iloc[10], sound.calls["end_ns"].iloc[20]
    trace = recorded(
        tmp_path, lambda kind, ts: of_graphs(kind, ts) and begin <= ts < end, numbers=numbers
    )
    assert trace.calls["torn"].iloc[10:21].all()
    for options in (["--by", "outlier"], ["--by", "position"], ["--html", f"{tmp_path}/x.html"]):
        result = CliRunner().invoke(group, ["report", str(trace.path), *options])
        assert result.exit_code == 0, result.exception


def test_older_traces_say_that_spans_may_be_glued(tmp_path: Path, sound: Trace) -> None:
    trace = recorded(tmp_path, stopped(sound, 12, 30), numbers=False)
    assert [c.severity for c in checks(trace) if c.name == "glued"] == ["error"]
    assert "glued" not in {c.name for c in checks(recorded(tmp_path, None, numbers=False))}
    assert "glued" not in {c.name for c in checks(recorded(tmp_path, stopped(sound, 12, 30)))}


# --- numbers ----------------------------------------------------------------------------------


def rows(records: list[tuple[int, int, int]]) -> np.ndarray:
    """(tid, ts, number)."""
    out = np.zeros(len(records), HDR)
    for at, (tid, ts, number) in enumerate(records):
        out[at] = (0, number << NUMBER_SHIFT, tid, ts)
    return out


def test_a_jump_is_a_hole_and_the_turn_of_the_numbers_is_none() -> None:
    begins = rows([(1, 10, NUMBERS - 1), (1, 30, 1), (1, 50, 5), (2, 10, 7)])
    ends = rows([(1, 20, NUMBERS), (1, 40, 2), (1, 60, 6), (2, 20, 8)])
    found, (of_begins, of_ends) = holes.find(begins, ends)
    assert (found.tid.tolist(), found.begin.tolist(), found.end.tolist()) == ([1], [40], [50])
    assert of_begins.tolist() == [-1, -1, 0, 0] == of_ends.tolist()
    i64 = lambda *v: np.array(v, np.int64)  # noqa: E731
    touched = found.touches(i64(1, 1, 1, 2), i64(0, 39, 50, 39), i64(40, 45, 60, 45))
    assert touched.tolist() == [False, True, False, False]


def test_without_numbers_nothing_is_a_hole() -> None:
    found, (parts,) = holes.find(rows([(1, 10, 0), (1, 20, 0)]))
    assert not found.numbered and not len(found.tid) and parts.tolist() == [0, 0]


@given(st.lists(st.booleans(), min_size=2, max_size=60), st.integers(0, 3 * NUMBERS))
def test_no_pair_that_was_none(lost: list[bool], start: int) -> None:
    """Spans (10 k, 10 k + 5) of one thread; whatever is lost, only those are found."""
    kept = [(1, 5 * k, (start + k) % NUMBERS + 1, k % 2) for k, gone in enumerate(lost) if not gone]
    begins = rows([r[:3] for r in kept if not r[3]])
    ends = rows([r[:3] for r in kept if r[3]])
    _, parts = holes.find(begins, ends)
    b, e = (r["ts"].astype(np.int64) for r in (begins, ends))
    found = pair(b, np.ones(len(b), np.int64), e, np.ones(len(e), np.int64), *parts)
    closed = found.end >= 0
    got = set(zip(b[found.begin[closed]].tolist(), e[found.end[closed]].tolist(), strict=True))
    truth = {
        (5 * k, 5 * k + 5) for k in range(0, len(lost) - 1, 2) if not lost[k] and not lost[k + 1]
    }
    assert got == truth
    # What has no end was still open when the recording stopped: its last record.
    assert all(b[at] == kept[-1][1] for at in found.begin[~closed].tolist())
