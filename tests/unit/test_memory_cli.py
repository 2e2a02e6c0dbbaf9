"""``report --faults``: what it refuses, and memory on the timeline."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from perfetto_check import check

from profinfer.cli import run
from profinfer.cli.report import command
from profinfer.model.trace import Trace
from profinfer.render.perfetto import write
from profinfer.render.timeline import Timeline

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
EVICTED = str(GOLDEN / "evicted.pf")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--faults", "--roofline"], "two views"),
        (["--faults", "--op", "MUL_MAT"], "whole phases"),
        (["--faults", "--tokens", "0:2"], "whole phases"),
        (["--faults", "--by", "thread"], "knows no --by thread"),
        (["--by", "tensor"], "--faults --by tensor"),
        (["--faults", "--format", "csv"], "needs one view"),
    ],
)
def test_options_that_contradict_each_other(
    args: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command, [EVICTED, *args]) != 0
    told = capsys.readouterr()
    assert said in told.err and "Traceback" not in told.err and told.out == ""


def test_a_trace_without_faults_says_how_to_record_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, [str(GOLDEN / "pair.pf"), "--faults"]) != 0
    assert "profinfer record --faults" in capsys.readouterr().err


def test_json_has_every_view(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, [EVICTED, "--faults", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [r["name"] for r in told["results"]] == [
        "faults", "faults_when", "faults_by_role", "faults_by_tensor", "faults_by_op", "residence",
    ]  # fmt: skip
    whole = told["results"][0]["rows"][0]
    for view in told["results"][1:5]:
        assert sum(r["faults"] for r in view["rows"]) == whole["faults"]
        assert sum(r["held_ns"] for r in view["rows"]) == whole["held_ns"]
        assert sum(r["read"] for r in view["rows"]) == whole["read"]


def test_sizes_and_major_faults_on_the_timeline() -> None:
    trace = Trace.open(EVICTED)
    out = io.BytesIO()
    write(Timeline.of_trace(trace), out)
    report = check(out.getvalue())
    assert report.problems == []
    assert report.counters[report.track("RSS")][0][1] == 3 << 20
    track = report.track("major page faults")
    drawn = [i for i in report.instants if i.track == track]
    majors = trace.faults[trace.faults["major"]]
    assert sorted(i.name for i in drawn) == sorted(majors["tensor"])
    assert {i.args["held_us"] for i in drawn} == {12.0}


def test_info_says_what_was_recorded_and_lists_no_readings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from profinfer.cli.info import command as info

    assert run(info, [EVICTED]) == 0
    said = capsys.readouterr().out
    assert "4 readings of /proc" in said and "/sys/fs/cgroup/tiny/memory.max" in said
    assert '"what": "memory"' not in said
