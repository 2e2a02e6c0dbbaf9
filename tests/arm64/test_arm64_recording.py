"""Recording on arm64: probes hit at the planned instructions, operators are whole and right."""

from __future__ import annotations

import pytest
from machine import Recorded
from truth import matched_ops

from profinfer.model.selfcheck import checks

RUNS = ("plain", "old", "vary", "cycles")


@pytest.mark.parametrize("name", RUNS)
def test_each_operator_once_on_every_thread(parallel: Recorded, name: str) -> None:
    trace, truth = parallel.trace(name), parallel.truth(name)
    assert {k: v for k, v in trace.losses.items() if v} == {}
    # How much of the time operators explain is a matter of how slow the emulator is.
    failed = [check.text for check in checks(trace) if not check.ok and check.name != "explained"]
    assert failed == []
    assert trace.meta.host.machine == "aarch64"
    assert (trace.meta.plan.ops.mode, trace.meta.plan.extra["attached_by"]) == (
        "site",
        "perf event",
    )
    both = matched_ops(trace, truth)
    assert len(truth.ops) > 1000
    assert (both["_merge"] == "both").all(), both[both["_merge"] != "both"].head()
    assert (both["fused"] == both["covered"]).all()


@pytest.mark.parametrize("name", RUNS)
def test_arguments_are_read_from_arm64_registers(parallel: Recorded, name: str) -> None:
    """The batch lies behind a pointer there, not on the stack."""
    trace, truth = parallel.trace(name), parallel.truth(name)
    ours, theirs = trace.calls.sort_values("begin_ns"), truth.calls.sort_values("begin_ns")
    for column in ("n_tokens", "pos_first", "pos_last", "ctx"):
        assert list(ours[column]) == list(theirs[column])
    assert list(ours["phase"] == "warmup") == list(theirs["warmup"])
    assert list(ours["phase"] == "decode") == list((theirs["n_tokens"] == 1) & ~theirs["warmup"])
    assert (ours["ret"] == 0).all()
    assert len(trace.samples) == sum(len(c["samples"]) for c in truth.raw["contexts"])


def test_nodes_are_what_they_were(parallel: Recorded) -> None:
    trace, truth = parallel.trace("plain"), parallel.truth("plain")
    nodes = dict(list(trace.nodes.sort_values("idx").groupby("def_id")))
    numbers = truth.calls["def"].to_numpy()
    checked = 0
    for call_id, def_id in zip(trace.graphs["call_id"], trace.graphs["def_id"], strict=True):
        for mine, his in zip(nodes[def_id].itertuples(), truth.defs[numbers[call_id]], strict=True):
            assert (mine.name, mine.op, mine.type) == (his["name"], his["op"], his["type"])
            assert [mine.ne0, mine.ne1, mine.ne2, mine.ne3] == his["ne"]
            assert [n for n in (mine.src0_name, mine.src1_name) if n] == his["src"][:2]
            checked += 1
    assert checked > 400


def test_durations_are_those_of_the_target(counting: Recorded) -> None:
    """On one CPU of emulated time, where nothing else disturbs the clock."""
    trace, truth = counting.trace("own"), counting.truth("own")
    both = matched_ops(trace, truth)
    assert (both["_merge"] == "both").all()
    late = (both["end_ns"] - both["their_end"]).abs()
    compute = both["end_ns"] - both["begin_ns"]
    differs = (compute - (both["their_end"] - both["their_begin"])).abs()
    assert late.median() < 10_000
    assert differs.median() < 10_000


def test_waits_belong_to_the_thread_that_waited(parallel: Recorded) -> None:
    both = matched_ops(parallel.trace("plain"), parallel.truth("plain"))
    both["wait"] = both["release_ns"] - both["end_ns"]
    last = both.groupby(["call_id", "idx"])["their_end"].transform("max")
    both["their_wait"] = last - both["their_end"]
    assert (both.groupby(["call_id", "idx"])["wait"].min() == 0).all()
    off = (both["wait"] - both["their_wait"]).abs()
    assert (off < 50_000 + 0.1 * both["their_wait"]).mean() > 0.9


def test_thread_states_and_faults_are_there(parallel: Recorded) -> None:
    """BTF offsets and the fault's address: both differ from those of x86-64."""
    trace = parallel.trace("plain")
    threads = set(trace.ops["tid"])
    assert set(trace.sched["tid"]) >= threads
    assert {"running"} < set(trace.sched["state"].astype(str))
    assert len(trace.faults) > 10
    assert (trace.faults["address"] > 0x1000).all()


def test_doctor_tells_of_the_pmu(counting: Recorded) -> None:
    said = (counting.folder / "doctor.out").read_text()
    rows = {line.split()[1]: line.split()[0] for line in said.splitlines() if line[:2].isalpha()}
    assert "This machine can record." in said
    assert rows["PMU"] == "ok" and rows["uprobes"] == "ok" and rows["BTF"] == "ok"
