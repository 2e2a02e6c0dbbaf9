"""Hardware counters of a PMU: whose they are, and that they are right.

The emulated PMU counts exactly. What a thread counts of itself, with an event of its own that the
kernel switches with it, is the truth that the counts from BPF are compared with.
"""

from __future__ import annotations

import pandas as pd
import pytest
from machine import IPC, Recorded
from truth import Truth, matched_ops

from profinfer.model.trace import Trace

# Between its own reading and ours a thread reads the clock and leaves the operator, each time the
# same way. Instructions of the kernel and of our probes are not counted by either.
APART = 16


def beside_their_own(trace: Trace, truth: Truth) -> pd.DataFrame:
    """Operators with what the target counted itself, as growth since the operator before."""
    keys = ["graph_id", "node_id", "tid"]
    counted = pd.concat([trace.ops[keys], trace.counters], axis=1)
    rows = matched_ops(trace, truth).merge(counted, on=keys)
    rows = rows.sort_values(["tid", "end_ns"])
    rows["own"] = rows.groupby("tid")["count"].diff()
    # The first operator of a graph is counted from the moment that its thread entered.
    first = rows.groupby(["tid", "graph_id"]).cumcount() == 0
    return rows[~first & rows["own"].notna()]


@pytest.mark.parametrize("name", ["own", "busy"])
def test_instructions_are_the_threads_own(counting: Recorded, name: str) -> None:
    trace, truth = counting.trace(name), counting.truth(name)
    assert {k: v for k, v in trace.losses.items() if v} == {}
    assert trace.counters.notna().to_numpy().all()
    rows = beside_their_own(trace, truth)
    assert len(rows) > 1000
    off = (rows["instructions"] - rows["own"]).abs()
    assert (off < APART).mean() > 0.98, rows[off >= APART].head(20)
    assert rows["instructions"].sum() == pytest.approx(rows["own"].sum(), rel=0.02)


@pytest.mark.parametrize("name", ["own", "busy"])
def test_two_cycles_an_instruction(counting: Recorded, name: str) -> None:
    """Both counters saw the same: that is how this machine is emulated."""
    counted = counting.trace(name).counters
    off = counted["instructions"] - IPC * counted["cycles"]
    assert off.abs().max() < 5


def test_a_busy_process_is_left_out(counting: Recorded) -> None:
    """It had half of the CPU: time passed, instructions of the target did not."""
    trace = counting.trace("busy")
    passed = (trace.ops["end_ns"] - trace.counted.since_ns).sum()
    assert trace.counters["cycles"].sum() < 0.6 * passed
    alone = counting.trace("own")
    both = [t.counters["instructions"].sum() / len(t.calls) for t in (trace, alone)]
    assert both[0] < 1.5 * both[1]


def test_stalls_preset(counting: Recorded) -> None:
    trace = counting.trace("stalls")
    names = ["cycles", "instructions", "stalled-cycles-backend", "task-clock"]
    assert list(trace.counters.columns) == names
    assert [counter.hardware for counter in trace.meta.plan.counters] == [True, True, True, False]
    assert trace.counters.notna().to_numpy().all()
    assert (trace.counted.running == 1).all()
    assert (trace.counters["stalled-cycles-backend"] == 0).all()  # the emulator never stalls
    # User and kernel together, so never less than what is counted of the user alone.
    assert (trace.counters["task-clock"] + 2_000 >= trace.counters["cycles"]).mean() > 0.99


def test_counters_that_take_turns_are_recognised_and_scaled(counting: Recorded) -> None:
    trace, truth = counting.trace("crowd"), counting.truth("crowd")
    assert ((trace.counted.running > 0.1) & (trace.counted.running < 0.95)).any()
    seen = trace.counters["instructions"].dropna()
    # One thread that spins all the time: an instruction every two ns of what it computes.
    computed = sum(o[5] - o[4] for c in truth.raw["contexts"] for o in c["ops"])
    mean = seen.sum() / len(seen) * len(trace.ops)
    assert mean == pytest.approx(IPC * computed, rel=0.35)


def test_an_event_that_the_cpu_lacks_is_said_and_left_out(parallel: Recorded) -> None:
    said = " ".join(parallel.said("refused").split())
    assert list(parallel.trace("refused").counters.columns) == ["cycles"]
    assert "this CPU does not count instructions" in said and "recorded without" in said


def test_cycles_on_two_cpus(parallel: Recorded) -> None:
    """Threads that change their CPU inside operators: a cycle is a ns of time on a CPU."""
    trace = parallel.trace("cycles")
    assert list(trace.counters.columns) == ["cycles", "task-clock"]
    assert trace.counters.notna().to_numpy().all()
    assert (trace.counters["cycles"] <= 1.05 * trace.counters["task-clock"] + 20_000).mean() > 0.98
    assert trace.counters["cycles"].sum() > 0.05 * trace.counters["task-clock"].sum()
