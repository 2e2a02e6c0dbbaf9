"""Calls of backends that compute asynchronously: they take until their results are there."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import perfetto_check
import pytest
from builders import Node, llama_graph
from test_backend_model import CPU_BASE, RPC_BASE, TID, Builder, opened, products
from test_diff import judged

from profinfer.analysis import (
    backendfindings,
    contexts,
    firsttoken,
    generations,
    latency,
    lifeledger,
    outliers,
    overview,
    prompts,
    stepfindings,
    throughput,
    tokens,
)
from profinfer.analysis.live import live
from profinfer.analysis.memoryevents import when
from profinfer.analysis.steps import decode_steps
from profinfer.model.trace import Trace
from profinfer.render.backendtracks import backend_events
from profinfer.render.perfetto import write
from profinfer.render.timeline import Timeline
from profinfer.tracefile import schema

US = 1_000
START = 1_000_000
VULKAN = 0xB2
PROMPT = 10
# Of a call: when it returns, when the sampler begins and waits, when the device is done, when the
# sampler ends, and when the next call begins.
RETURN, SAMPLE, DONE, SAMPLED, NEXT = 100 * US, 110 * US, 1000 * US, 1050 * US, 1100 * US
COMPUTE = 300 * US  # a call that computes before it returns


@dataclass(frozen=True)
class Call:
    """What is not usual about one."""

    done: int = DONE
    synced: bool = True


def run(
    path: Path, backend: str = "Vulkan", steps: Sequence[Call] = (Call(),) * 20, **more: bool
) -> Trace:
    """A prompt of ten tokens, then decode steps; each is sampled. Other times follow from done."""
    path.mkdir(exist_ok=True)
    Node._next_addr = 0x7F00_0000_0000
    b = Builder()
    b.thread(TID, START - 10, "llama")
    now, pos = START, 0
    for number, call in enumerate((Call(), *steps)):
        n = PROMPT if number == 0 else 1
        b.call_begin(TID, now, n_tokens=n, pos_first=pos, pos_last=pos + n - 1, seq=0)
        b.split(now + 10 * US, now + 20 * US, products(), backend, VULKAN)
        late = call.done - DONE
        if backend == "BLAS":  # computes before it returns, and nobody waits
            late += COMPUTE - RETURN - (DONE - SAMPLE)
            b.call_end(TID, now + COMPUTE)
            b.sample_begin(TID, now + COMPUTE + SAMPLE - RETURN)
        else:
            b.call_end(TID, now + RETURN)
            b.sample_begin(TID, now + SAMPLE)
            if call.synced:
                b.sync(now + SAMPLE, now + call.done, VULKAN, backend)
        b.sample_end(TID, now + SAMPLED + late)
        now, pos = now + NEXT + late, pos + n
    if more.get("exit"):
        for what, ts in (("exec", START - 500 * US), ("exit", now)):
            b.json_chunk(4, {"ts": ts, "what": what})
    return opened(b, path)


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    return run(tmp_path, exit=True)


# --- the model --------------------------------------------------------------------------------


def test_a_call_is_done_when_its_backend_was_waited_for(trace: Trace) -> None:
    calls = trace.calls
    assert ((calls["done_ns"] - calls["begin_ns"]) == DONE).all()
    assert ((calls["end_ns"] - calls["begin_ns"]) == RETURN).all()
    assert not calls["cut"].any()
    mine = trace.tokens[trace.tokens["phase"] == "decode"]
    assert (mine["done_ns"] - mine["begin_ns"] == DONE).all()
    assert (mine["step_ns"].iloc[1:] == NEXT).all() and mine["step_ns"].iloc[0] == -1


def test_a_synchronous_call_is_done_at_its_end(tmp_path: Path) -> None:
    trace = run(tmp_path, "BLAS")
    assert (trace.calls["done_ns"] == trace.calls["end_ns"]).all()
    (speed,) = [s for s in latency.speeds(trace) if s.phase == "decode"]
    assert speed.time_ns == 20 * COMPUTE and speed.sampling_ns == 20 * (SAMPLED - DONE)
    parts = decode_steps(trace, trace.select(phase="decode")).parts
    assert not {"waiting for backends", "giving work to backends"} & set(parts)
    ran = set(lifeledger.ledger(trace).frame["part"])
    assert not {"decode.waits", "decode.backends", "decode.copies"} & ran


def test_without_a_wait_a_call_is_done_at_its_end(tmp_path: Path) -> None:
    trace = run(tmp_path, steps=[Call(), Call(synced=False)])
    late = (trace.calls["done_ns"] - trace.calls["end_ns"]).tolist()
    assert late == [DONE - RETURN, DONE - RETURN, 0]


def test_the_next_call_ends_the_time_of_the_one_before(tmp_path: Path) -> None:
    """Prompts in several batches: the second call waits itself for what the first began."""
    b = Builder()
    for number in range(2):
        ts = 1000 * (number + 1)
        b.call_begin(TID, ts, n_tokens=8, pos_first=8 * number, pos_last=8 * number + 7, seq=0)
        b.split(ts + 10, ts + 20, products(), "Vulkan", VULKAN)
        b.call_end(TID, ts + 100)
    b.sync(2200, 5000, VULKAN, "Vulkan")
    trace = opened(b, tmp_path)
    assert trace.splits["done_ns"].tolist() == [5000, 5000]
    assert trace.calls["done_ns"].tolist() == [2000, 5000]
    (speed,) = latency.speeds(trace)
    assert (speed.tokens, speed.time_ns) == (16, 4000)  # of 1000 to 5000


def test_the_next_call_of_the_context_ends_it_too(tmp_path: Path) -> None:
    b = Builder()
    b.call_begin(TID, 1000, n_tokens=8, pos_first=0, ctx=0xC0)
    b.split(1010, 1020, products(), "Vulkan", VULKAN)
    b.call_end(TID, 1100)
    b.call_begin(90, 3000, n_tokens=1, pos_first=8, ctx=0xC0)
    b.call_end(90, 3100)
    b.call_begin(91, 2000, n_tokens=1, pos_first=0, ctx=0xC1)  # has nothing to do with it
    b.call_end(91, 2100)
    b.sync(2200, 5000, VULKAN, "Vulkan")
    trace = opened(b, tmp_path)
    assert trace.calls.set_index("tid")["done_ns"].to_dict() == {TID: 3000, 90: 3100, 91: 2100}


def test_a_mixed_call_waits_for_the_device_alone(tmp_path: Path) -> None:
    """A graph of the CPU, a part on the device, copies between: what each part took."""
    b = Builder()
    x = Node("x", op="NONE", ne=(64,))
    for number in range(4):
        now = 1_000_000 * (number + 1)
        b.call_begin(TID, now, n_tokens=1, pos_first=number, pos_last=number, seq=0)
        truth = b.run_graph(llama_graph(layers=1), begin=now + 1000, tids=(TID,), compute=1000)
        b.sync(now + 200_000, now + 203_000, VULKAN, "RPC")  # inside of the call
        b.copy(now + 210_000, x, CPU_BASE, RPC_BASE, schema.COPY_TENSOR, 21, schema.COPY_WHOLE)
        b.sync(now + 211_000, now + 212_000, VULKAN, "RPC")  # and of a copy: it is the copy's
        b.end(now + 217_000, 21)
        b.split(now + 300_000, now + 311_000, products(), "RPC", VULKAN)
        b.call_end(TID, now + 400_000)
        b.sample_begin(TID, now + 420_000)
        b.sync(now + 430_000, now + 500_000, VULKAN, "RPC")
        b.sample_end(TID, now + 520_000)
    trace = opened(b, tmp_path)
    assert (trace.calls["done_ns"] - trace.calls["begin_ns"]).tolist() == [500_000] * 4
    steps = decode_steps(trace, trace.select(phase="decode"))
    assert steps.total.tolist() == [1_000_000, 1_000_000]
    found = dict(zip(steps.parts, steps.time[0].tolist(), strict=True))
    assert found["giving work to backends"] == 11_000
    assert found["copies between backends"] == 7_000
    assert found["waiting for backends"] == 3_000 + 100_000
    assert found["sampling"] == 20_000 and found["between calls"] == 480_000
    graph = truth.end_ns - truth.begin_ns
    assert found["building graphs"] == 400_000 - graph - 50 - 11_000 - 7_000 - 3_000
    assert steps.time.sum(axis=1).tolist() == steps.total.tolist()
    ledger = lifeledger.ledger(trace)
    rows = ledger.frame.set_index("part")["time_ns"]
    assert ledger.total is not None and rows.sum() == ledger.total["time_ns"]
    # What the host did between a call's return and the wait is no waiting: 430 to 500.
    assert rows["decode.waits"] == 3 * (3_000 + 70_000)  # the first one is another phase
    assert (rows["decode.copies"], rows["decode.backends"]) == (3 * 7_000, 3 * 11_000)
    assert rows["sampling"] == 4 * (100_000 - 70_000)


@pytest.mark.parametrize("lost", ["call", "graph"])
def test_where_records_were_lost_a_call_is_done_at_its_end(tmp_path: Path, lost: str) -> None:
    b = Builder()
    kind = schema.Kind.CALL_BEGIN if lost == "call" else schema.Kind.GRAPH_BEGIN
    b.refuses = lambda k, ts: ts == (3000 if lost == "call" else 1050) and k == kind
    b.call_begin(TID, 1000, n_tokens=1, pos_first=0)
    b.split(1010, 1020, products(), "Vulkan", VULKAN)
    graph = {"cgraph": 0x99, "gen": 1, "n_nodes": 1, "n_threads": 1}
    b.graph_begin(TID, 1050, **graph)
    b.graph_end(TID, 1060)
    b.call_end(TID, 1100)
    b.call_begin(TID, 3000, n_tokens=1, pos_first=1)
    b.call_end(TID, 3100)
    b.sync(4000, 5000, VULKAN, "Vulkan")
    b.call_begin(TID, 6000, n_tokens=1, pos_first=2)
    b.call_end(TID, 6100)
    trace = opened(b, tmp_path)
    first = trace.calls.iloc[0]
    assert (first["end_ns"], first["done_ns"]) == (1100, 1100)
    assert bool(first["torn"]) == (lost == "graph")


def test_a_wait_that_the_recording_cuts_off_cuts_the_call(tmp_path: Path) -> None:
    b = Builder()
    for number in range(2):
        ts = 10_000 * (number + 1)
        b.call_begin(TID, ts, n_tokens=1, pos_first=number, pos_last=number, seq=0)
        b.split(ts + 10, ts + 20, products(), "Vulkan", VULKAN)
        b.call_end(TID, ts + 100)
        b.sync(ts + 200, ts + 5000, VULKAN, "Vulkan")
    b._ring = b._ring[: b._ring.rindex(b._ring[-32:])]  # without the end of the last wait
    b.thread(90, 23_000, "last")
    trace = opened(b, tmp_path)
    assert trace.calls["cut"].tolist() == [False, True]
    assert trace.calls["done_ns"].tolist() == [15_000, 23_000]  # the recording's end
    assert [s.calls for s in latency.speeds(trace)] == [1]
    view = live(trace, 9_000, 23_000)
    assert (view.state, view.idle_ns) == ("decode", 0)


# --- what is said of it -------------------------------------------------------------------------


def test_speeds_and_sampling(trace: Trace) -> None:
    speeds = {s.phase: s for s in latency.speeds(trace)}
    assert speeds["decode"].per_s == pytest.approx(1000.0)
    assert speeds["prefill"].per_s == pytest.approx(10_000.0)
    assert speeds["decode"].sampling_ns == 20 * (SAMPLED - DONE)
    row = overview.overview(trace).frame.iloc[0]
    assert row["decode_per_s"] == pytest.approx(1000.0)
    assert row["run_ns"] == 20 * NEXT + DONE
    assert row["ttft_ns"] == SAMPLED and row["tpot_p50_ns"] == NEXT
    frame = overview.phases(trace).frame.set_index("phase")
    assert frame.loc["decode", "time_ns"] == 20 * DONE
    assert contexts.contexts(trace).frame["decode_per_s"].tolist() == [pytest.approx(1000.0)]
    assert prompts.prompts([trace]).frame["per_s"].tolist() == [pytest.approx(10_000.0)]
    shown = tokens.tokens(trace, trace.select(phase="decode")).frame
    assert set(shown["call_ns"]) == {DONE} and set(shown["sampling_ns"]) == {SAMPLED - DONE}
    rate = throughput.throughput(trace, trace.select()).frame
    assert rate.groupby("phase")["tokens"].sum().to_dict() == pytest.approx(
        {"decode": 20, "prefill": 10}
    )


def test_a_prompt_that_nobody_samples_has_its_first_token_when_it_is_done(tmp_path: Path) -> None:
    b = Builder()
    b.call_begin(TID, 1000, n_tokens=8, pos_first=0)
    b.split(1010, 1020, products(), "Vulkan", VULKAN)
    b.call_end(TID, 1100)
    b.sync(1200, 5000, VULKAN, "Vulkan")
    trace = opened(b, tmp_path)
    assert latency.time_to_first_token(trace).tolist() == [4000]


def test_the_first_token_is_made_of_the_prompts_call(trace: Trace) -> None:
    table = latency.generations(trace)
    told = firsttoken.parts(trace, table).iloc[0]
    assert table["ttft_ns"].tolist() == [SAMPLED]
    assert (told["own_ns"], told["others_ns"], told["rest_ns"]) == (DONE, 0, SAMPLED - DONE)
    row = generations.generations(trace).frame.iloc[0]
    assert row["end_ns"] == 20 * NEXT + DONE and row["tpot_p50_ns"] == NEXT


def test_steps_are_taken_apart(trace: Trace) -> None:
    steps = decode_steps(trace, trace.select(phase="decode"))
    assert set(steps.total) == {NEXT} and len(steps.call) == 19
    parts = dict(zip(steps.parts, steps.time.T.tolist(), strict=True))
    assert set(parts["waiting for backends"]) == {DONE - RETURN}
    assert set(parts["giving work to backends"]) == {10 * US}
    assert set(parts["building graphs"]) == {RETURN - 10 * US}
    assert set(parts["sampling"]) == {SAMPLED - DONE}
    assert set(parts["between calls"]) == {NEXT - SAMPLED}


def test_the_ledgers_have_rows_for_the_wait(trace: Trace) -> None:
    whole = lifeledger.ledger(trace)
    rows = whole.frame.set_index("part")["time_ns"].to_dict()
    assert whole.total is not None and sum(rows.values()) == whole.total["time_ns"]
    assert rows["decode.waits"] == 20 * (DONE - SAMPLE)
    assert rows["prefill.waits"] == DONE - SAMPLE
    assert rows["decode.backends"] == 20 * 10 * US
    assert rows["decode.build"] == 20 * (RETURN - 10 * US)
    assert rows["sampling"] == 21 * (SAMPLED - DONE)
    ledger = overview.ledger(trace, trace.select(phase="decode"))
    part = ledger.frame.set_index("part")["time_ns"]
    assert ledger.total is not None and part.sum() == ledger.total["time_ns"]
    assert part["sampling"] == 20 * (SAMPLED - DONE)


def test_an_outlier_is_the_devices(tmp_path: Path) -> None:
    steps = [Call(done=DONE + 700 * US) if n == 12 else Call() for n in range(30)]
    trace = run(tmp_path, steps=steps)
    frame = outliers.outliers(trace, trace.select(phase="decode")).frame
    assert frame["position"].tolist() == [PROMPT + 12]
    assert frame["excess_ns"].tolist() == [700 * US]
    assert frame["reason"].tolist() == ["Vulkan was waited for 700 µs longer"]


def test_waiting_is_a_finding_and_sampling_and_building_are_none(trace: Trace) -> None:
    (found,) = backendfindings.findings(trace, trace.select(phase="decode"))
    assert found.name == "waiting" and found.prize is not None
    assert "90.0 % of the calls' time is waiting for Vulkan: 900 µs a token" in found.text
    assert found.prize.per_token_ns == DONE - RETURN
    names = {f.name for f in stepfindings.findings(trace)}
    assert not names & {"sampling", "first_token"}


def test_a_device_that_is_slower_is_not_said_to_be_faster(tmp_path: Path) -> None:
    """The calls of the slow run return sooner than those of the fast one."""
    fast = run(tmp_path / "a", "BLAS", [Call()] * 40)
    slow = run(tmp_path / "b", "Vulkan", [Call()] * 40)
    changes, found = judged([fast], [slow])
    assert (changes.total_a, changes.total_b) == (COMPUTE, DONE)
    assert "b needs 3.3x the time per decoded token" in found.sentence


def test_the_live_view_counts_what_is_done(trace: Trace) -> None:
    calls = trace.calls
    now = int(calls["done_ns"].max())
    since = now - 10 * NEXT
    view = live(trace, since, now)
    assert view.tps == pytest.approx(10 * 1e9 / (10 * NEXT), rel=0.05)
    assert view.state == "decode"


def test_what_happens_while_a_call_is_waited_for_is_its_own(trace: Trace) -> None:
    begin = int(trace.calls["begin_ns"].iloc[3])
    found = when(trace, np.array([begin + 500 * US, begin + DONE + 10 * US]))
    assert found.tolist() == ["decode", "between calls"]


def test_tokens_are_marked_when_they_are_done(trace: Trace) -> None:
    out = io.BytesIO()
    write(replace(Timeline.of_trace(trace), backends=backend_events(trace, None, None)), out)
    report = perfetto_check.check(out.getvalue())
    assert report.problems == []
    calls = trace.calls[trace.calls["phase"] == "decode"]
    generation = [s for s in report.on("generation") if s.name in ("TTFT", "decoding")]
    assert [(s.begin, s.begin + s.dur) for s in generation] == [
        (START, START + SAMPLED),
        (START + SAMPLED, int(calls["done_ns"].max())),
    ]
    main = [s for s in report.slices if s.category == "call"]
    assert {s.dur for s in main} == {RETURN}  # on the thread: as long as it was inside
