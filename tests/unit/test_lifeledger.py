"""The whole run's ledger: each nanosecond in one row, and the rows are what was played."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from builders import SampleRun, sample_run

from profinfer.analysis.lifeledger import ledger
from profinfer.cli import run as run_cli
from profinfer.cli.report import command
from profinfer.model.trace import Trace

MS = 1_000_000
START = 1_000_000_000


def written(run: SampleRun, path: Path, exec_ns: int, exit_ns: int) -> Trace:
    for what, ts in (("exec", exec_ns), ("exit", exit_ns)):
        run.builder.json_chunk(4, {"ts": ts, "what": what})
    return Trace.open(run.builder.write(path / "t.pf"))


def rows(trace: Trace) -> dict[str, int]:
    result = ledger(trace)
    out = dict(zip(result.frame["part"], map(int, result.frame["time_ns"]), strict=True))
    assert sum(out.values()) == result.total["time_ns"] == trace.life.end_ns - trace.life.begin_ns
    return out


def test_every_nanosecond_is_in_one_row(tmp_path: Path) -> None:
    run = sample_run(compute=lambda n, t: 1000 + 500 * t, start_ns=START)
    last = run.call_ns[-1][1] + 600
    trace = written(run, tmp_path, START - 50 * MS, last + 20 * MS)
    told = rows(trace)
    assert trace.life.whole and trace.life.doubt == ""
    assert told["load.work"] == run.call_ns[0][0] - (START - 50 * MS)
    assert told["after.work"] == 20 * MS
    # A sample of 500 ns after the prompt and each of three steps.
    assert told["sampling"] == 4 * 500
    assert told["walk"] == 5 * 50
    for phase, ids in (("warmup", [0]), ("prefill", [1]), ("decode", [2, 3, 4])):
        inside = sum(run.graphs[i].end_ns - run.graphs[i].begin_ns for i in ids)
        calls = sum(run.call_ns[i][1] - run.call_ns[i][0] for i in ids)
        ops = [op for i in ids for op in run.graphs[i].ops]
        compute = sum(op.end_ns - op.begin_ns for op in ops) // 2
        got = [told[f"{phase}.{part}"] for part in ("compute", "wait", "gaps")]
        assert sum(got) == inside
        assert got[0] == pytest.approx(compute, abs=len(ops))
        assert told[f"{phase}.build"] == calls - inside - 50 * len(ids)


def test_what_the_thread_does_outside_of_calls(tmp_path: Path) -> None:
    run = sample_run(start_ns=START)
    b, first, last = run.builder, run.call_ns[0][0], run.call_ns[-1][1] + 600
    b.sched(77, START - 40 * MS, "out", state=2)  # D: 10 ms for a disk
    b.sched(77, START - 30 * MS, "wake")
    b.sched(77, START - 30 * MS, "in", other=(77, 77, "llama"))
    b.sched(77, START - 20 * MS, "out", state=1)  # S: asleep, then no CPU for 2 ms
    b.sched(77, START - 15 * MS, "wake")
    b.sched(77, START - 13 * MS, "in", other=(77, 77, "llama"))
    told = rows(written(run, tmp_path, START - 50 * MS, last + MS))
    assert told["load.disk"] == 10 * MS
    assert told["load.asleep"] == 5 * MS
    assert told["load.runnable"] == 2 * MS
    assert told["load.work"] == first - (START - 50 * MS) - 17 * MS


def test_time_that_the_recorder_held_the_program(tmp_path: Path) -> None:
    run = sample_run(start_ns=START)
    run.builder.json_chunk(4, {"ts": START - 5 * MS, "what": "held", "since": START - 45 * MS})
    told = rows(written(run, tmp_path, START - 50 * MS, run.call_ns[-1][1] + MS))
    assert told["load.held"] == 40 * MS


def test_graphs_at_the_same_time_share_it(tmp_path: Path) -> None:
    """Two contexts on two threads: the wall time is not counted twice."""
    run = sample_run(start_ns=START)
    again = sample_run(start_ns=START + 7_000, tids=(87, 88), builder=run.builder, compute=1500)
    last = max(run.call_ns[-1][1], again.call_ns[-1][1]) + 600
    told = rows(written(run, tmp_path, START - MS, last + MS))
    assert told["decode.compute"] > 0


def test_a_run_whose_ends_were_not_noted(tmp_path: Path) -> None:
    run = sample_run(start_ns=2 * START)
    trace = Trace.open(run.builder.write(tmp_path / "t.pf"))
    told = ledger(trace)
    assert not trace.life.whole
    assert told.notes[0].text.startswith("begin and end of the run were not noted")
    assert int(told.frame["time_ns"].sum()) == told.total["time_ns"]


def test_an_excerpt_has_no_loading(tmp_path: Path) -> None:
    run = sample_run(start_ns=START, options={"attached": True, "attached_ns": START - MS})
    trailer = run.builder.trailer(reason="duration over")
    trace = Trace.open(run.builder.write(tmp_path / "t.pf", trailer))
    told = ledger(trace)
    assert told.scope.startswith("the stretch that was recorded")
    assert told.frame["label"][0].startswith("before the first call")
    assert trace.life.doubt == ""


def test_tokens_alone(tmp_path: Path) -> None:
    """A trace without operators or graphs still has all its time."""
    from builders import TraceBuilder

    b = TraceBuilder(plan={"level": "token", "ops": {"mode": "none"}})
    b.thread(77, START, "llama")
    for n in range(3):
        b.call_begin(77, START + n * 3 * MS, n_tokens=4 if n == 0 else 1, pos_first=n and n + 3)
        b.call_end(77, START + n * 3 * MS + MS)
    b.json_chunk(4, {"ts": START - MS, "what": "exec"})
    b.json_chunk(4, {"ts": START + 10 * MS, "what": "exit"})
    told = rows(Trace.open(b.write(tmp_path / "t.pf")))
    assert told == {
        "load.work": MS, "prefill.build": MS, "decode.build": 2 * MS, "between.work": 4 * MS,
        "after.work": 3 * MS,
    }  # fmt: skip


def test_the_view(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = sample_run(start_ns=START)
    trace = written(run, tmp_path, START - MS, run.call_ns[-1][1] + MS)
    assert run_cli(command, [str(trace.path), "--ledger"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Whole run  from exec to exit") and "total" in out
    assert max(map(len, out.splitlines())) <= 80
    assert run_cli(command, [str(trace.path), "--ledger", "--by", "op"]) != 0
    assert "--ledger covers the whole run" in capsys.readouterr().err
    assert run_cli(command, [str(trace.path), "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (found,) = [r for r in told["results"] if r["name"] == "run_ledger"]
    assert sum(row["time_ns"] for row in found["rows"]) == found["total"]["time_ns"]
