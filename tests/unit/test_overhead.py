"""The estimate of what the probes cost, on traces whose numbers of hits are known."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import sample_run

from profinfer.analysis.overhead import estimated_share, share_by_phase
from profinfer.model.trace import Trace
from profinfer.tracefile.schema import (
    CNT_OP_PASSED,
    CNT_OP_RECORDS,
    CNT_SCHED_NS,
    Kind,
)


def trace(tmp_path: Path, counted: dict[int, int] | None = None, **ops: object) -> Trace:
    plan = {"level": "op", "ops": {"mode": "site", "bias": 1, "barrier_always": False, **ops}}
    run = sample_run(plan=plan)
    for slot, n in (counted or {}).items():
        run.builder.counters[slot] += n
    return Trace.open(run.builder.write(tmp_path / "t.pf"))


def test_hits_of_one_thread_times_the_cost(tmp_path: Path) -> None:
    t = trace(tmp_path, hit_ns=1000)
    operators = len(t.ops) / t.threads["tid"].nunique()
    hits = operators + 4 * len(t.graphs) + 2 * (len(t.splits) + len(t.calls) + len(t.samples))
    spent = hits * 1000 + t.graphs["walk_ns"].sum()
    total = (t.calls["end_ns"] - t.calls["begin_ns"]).sum()
    assert len(t.ops) > 100
    assert estimated_share(t) == pytest.approx(spent / total)


def test_no_estimate_without_a_measurement(tmp_path: Path) -> None:
    assert estimated_share(trace(tmp_path)) is None


def test_two_probes_an_operator_cost_twice(tmp_path: Path) -> None:
    one = estimated_share(trace(tmp_path, hit_ns=1000))
    two = estimated_share(trace(tmp_path, hit_ns=1000, mode="pair"))
    assert one is not None
    assert two is not None
    assert two > 1.3 * one


def test_hits_without_a_record_cost_as_much(tmp_path: Path) -> None:
    """Left out by --ops, or stopped by --every: the trap is paid, and the kernel has counted it."""
    whole = trace(tmp_path, hit_ns=1000)
    passed = 3 * len(whole.ops)
    some = trace(tmp_path, {CNT_OP_PASSED: passed}, hit_ns=1000)
    assert some.hits_passed == passed
    graphs = some.graphs
    seen = some.reader.counters[CNT_OP_RECORDS] + passed
    threads = int(graphs["n_threads"].iloc[0])
    assert (graphs["n_threads"] == threads).all()
    more = seen / threads - 2 * len(graphs) - len(whole.ops) / whole.threads["tid"].nunique()
    total = (some.calls["end_ns"] - some.calls["begin_ns"]).sum()
    one, two = estimated_share(whole), estimated_share(some)
    assert one is not None and two is not None
    assert two - one == pytest.approx(more * 1000 / total)
    assert two > 2 * one


def test_prefill_and_decode_apart(tmp_path: Path) -> None:
    t = trace(tmp_path, hit_ns=1000)
    shares = share_by_phase(t)
    assert {"prefill", "decode"} <= set(shares)
    took = (t.calls["end_ns"] - t.calls["begin_ns"]).groupby(t.calls["phase"].astype(str)).sum()
    spent = sum(share * took[phase] for phase, share in shares.items())
    assert spent / took.sum() == pytest.approx(estimated_share(t))
    one = t.graphs[t.graphs["phase"] == "decode"]
    ops = t.ops[t.ops["graph_id"].isin(one["graph_id"])]
    least = len(ops) / one["threads_seen"].iloc[0] * 1000 / took["decode"]
    assert least < shares["decode"] < 1.5 * least


def test_thread_states_cost_what_they_were_timed_to(tmp_path: Path) -> None:
    """200 records within a call, at 500 ns as some were timed to take."""
    plain = trace(tmp_path, hit_ns=1000)
    call = plain.calls.iloc[-1]
    run = sample_run(
        plan={"level": "op", "ops": dict(plain.meta.plan.ops.extra) | {"mode": "site"}}
    )
    for n in range(100):
        run.builder.sched(78, int(call["begin_ns"]) + 2 * n, "out")
        run.builder.sched(78, int(call["begin_ns"]) + 2 * n + 1, "in")
    run.builder.counters[CNT_SCHED_NS] += 200 * 500
    busy = Trace.open(run.builder.write(tmp_path / "t.pf"))
    assert len(busy.reader.fixed(Kind.SCHED).rows) == 200
    one, two = estimated_share(plain), estimated_share(busy)
    assert one is not None and two is not None
    total = (busy.calls["end_ns"] - busy.calls["begin_ns"]).sum()
    assert two - one == pytest.approx(200 * 500 / total)
