"""Sums that go block by block, and only over what was disturbed, against plain loops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from profinfer.analysis import scheduling
from profinfer.model import latecomers, operators, sums
from profinfer.model.ahead import ahead
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace

GOLDEN = Path(__file__).parents[1] / "golden"
TRACES = ("disturbed", "lossy", "pair", "growing", "roofs")


def selections(trace: Trace) -> list[Selection]:
    return [
        trace.select(),
        trace.select(phase="decode"),
        trace.select(layer=(0, 1)),
        trace.select(phase="other", op="NO_SUCH_OP"),
    ]


@pytest.fixture(params=TRACES)
def trace(request: pytest.FixtureRequest) -> Iterator[Trace]:
    with Trace.open(GOLDEN / f"{request.param}.pf").reader as reader:
        yield Trace(reader)


@pytest.fixture
def short_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "_BLOCK", 7)
    monkeypatch.setattr(latecomers, "_BLOCK", 7)
    monkeypatch.setattr(operators, "BLOCK", 50)


def test_short_blocks_change_no_table(trace: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "BLOCK", 50)
    split = Trace.open(trace.path)
    for name in ("ops", "op_walls", "empty_ops", "empty_walls", "graphs", "threads"):
        pd.testing.assert_frame_equal(getattr(split, name), getattr(trace, name))


@pytest.mark.usefixtures("short_blocks")
def test_sums_of_nodes_and_threads(trace: Trace) -> None:
    ops, walls = trace.ops, trace.op_walls
    for chosen in selections(trace):
        mine = ops[chosen.mask(ops)]
        length = mine["release_ns"] - mine["begin_ns"]
        compute = mine["end_ns"] - mine["begin_ns"]
        sound = mine["complete"]
        node = trace.sums(chosen)
        for values, told in ((length, node.thread_time), (compute, node.thread_compute)):
            wanted = values[sound].groupby(mine["node_id"]).sum()
            assert told.sum() == wanted.sum()
            assert told[wanted.index].tolist() == wanted.tolist()
        of = walls[chosen.mask(walls)]
        took = of["release_ns"] - of["begin_ns"]
        assert node.calls.sum() == len(of)
        assert node.wall.sum() == took.sum()
        assert node.slowest.max(initial=0) == (took.max() if len(of) else 0)
        whole = of[of["complete"]]
        assert node.whole_wall == took[of["complete"]].sum()
        assert node.compute.sum() == (whole["compute_sum"] // whole["threads"]).sum()
        assert node.most_threads == (whole["threads"].max() if len(whole) else 0)
        assert node.covered.sum() == (of["fused"] - 1).clip(lower=0).sum()

        thread = trace.thread_sums(chosen)
        of_thread = mine["tid"]
        assert thread.tids.tolist() == sorted(set(of_thread))
        assert thread.ops.tolist() == of_thread.value_counts().sort_index().tolist()
        assert thread.spent.tolist() == length.groupby(of_thread).sum().tolist()
        known = compute.where(sound, 0).groupby(of_thread).sum()
        assert thread.compute.tolist() == known.tolist()


def test_states_of_nodes_and_threads() -> None:
    trace = Trace.open(GOLDEN / "disturbed.pf")
    both = trace.ops.join(trace.op_sched)
    assert 0 < len(trace.disturbed.at) < len(both)
    for chosen in selections(trace):
        mine = both[chosen.mask(both) & both["complete"].to_numpy()]
        mine = mine.assign(op_ns=mine["release_ns"] - mine["begin_ns"])
        columns = ["op_ns", *scheduling.SUMMED]
        for told, key in (
            (scheduling.per_node(trace, chosen), "node_id"),
            (scheduling.per_thread(trace, chosen), "tid"),
        ):
            wanted = mine.groupby(key)[columns].sum()
            assert told.loc[wanted.index, columns].to_numpy().tolist() == wanted.to_numpy().tolist()
            assert told[columns].sum().tolist() == wanted.sum().tolist()


@pytest.mark.usefixtures("short_blocks")
def test_who_came_last(trace: Trace) -> None:
    ops = trace.ops
    for chosen in selections(trace):
        wanted: Counter[int] = Counter()
        mine = ops[chosen.mask(ops) & ops["complete"].to_numpy()]
        for _, rows in mine.groupby(["graph_id", "node_id"]):
            late = rows.iloc[int(rows["end_ns"].to_numpy().argmax())]
            wanted[int(late["tid"])] += int((rows["release_ns"] - rows["end_ns"]).sum())
        told = latecomers.waited_for(trace.op_health, chosen)
        by_tid = dict(zip(trace.op_health.tids.tolist(), told.tolist(), strict=True))
        assert {t: n for t, n in by_tid.items() if n} == {t: n for t, n in wanted.items() if n}


@pytest.mark.parametrize("cpus", [1, 3])
def test_blocks_ahead_come_in_order(cpus: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cpus)))
    blocks = iter(range(100))
    for nth, square in enumerate(ahead(lambda n: n * n, blocks)):
        assert square == nth * nth
        if nth == 50:
            break
    assert next(blocks) <= 51 + cpus  # no further ahead than there are threads


def test_a_block_that_fails_says_so_at_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    values = ahead(lambda n: 10 // (3 - n), range(9))
    assert [next(values) for _ in range(3)] == [3, 5, 10]
    with pytest.raises(ZeroDivisionError):
        next(values)


def test_reduced_is_reduceat() -> None:
    values = np.array([3, 1, 2, 9, 5, 5])
    starts = np.array([0, 2, 4])
    for how in (np.maximum, np.minimum, np.add):
        assert operators._reduced(how, values, starts, True).tolist() == (
            how.reduceat(values, starts).tolist()
        )
        assert operators._reduced(how, values, np.array([0, 1]), False).tolist() == (
            how.reduceat(values, [0, 1]).tolist()
        )
