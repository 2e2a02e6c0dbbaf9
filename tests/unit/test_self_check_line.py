"""The self-check below every report: one line when all is well, what recording it cost in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import TraceBuilder, sample_run

from profinfer.analysis.overhead import estimated_share
from profinfer.analysis.overview import DEAR, self_check
from profinfer.cli import group, run
from profinfer.model.trace import Trace
from profinfer.tracefile.schema import Kind
from profinfer.units import format_percent


def recorded(tmp_path: Path, hit_ns: int, builder: TraceBuilder | None = None) -> Trace:
    ops = {"mode": "site", "bias": 1, "barrier_always": False, "hit_ns": hit_ns}
    builder = builder or TraceBuilder()
    builder.meta["plan"] |= {"level": "op", "ops": ops}
    sample_run(builder=builder, decode_tokens=12, compute=20_000)
    return Trace.open(builder.write(tmp_path / f"{hit_ns}.pf"))


def printed(trace: Trace, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert run(group, ["report", str(trace.path), *options]) == 0
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("options", [(), ("--by", "op"), ("--by", "token"), ("--ledger",)])
def test_one_line_with_the_cost_when_all_is_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    trace = recorded(tmp_path, 100)
    share = estimated_share(trace)
    assert share is not None and 0 < share < DEAR
    said = printed(trace, capsys, *options)
    assert said.count("Self-check: all well.") == 1
    assert f"robes cost about {format_percent(share)} of the calls' time" in said


def test_dear_probes_are_not_well(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = recorded(tmp_path, 9000)
    share = estimated_share(trace)
    assert share is not None and share > DEAR
    told = self_check(trace).frame.set_index("check").loc["overhead"]
    assert told["ok"] == "no"
    assert "Warning: probes cost about" in printed(trace, capsys, "--by", "op")


def test_losses_are_said_once_below_a_view(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    builder = TraceBuilder()
    builder.refuses = lambda kind, ts: kind == Kind.THREAD
    said = printed(recorded(tmp_path, 100, builder), capsys, "--by", "op")
    assert said.count("2 thread records lost") == 1
    assert said.endswith("Self-check: not everything was recorded, see above")


def test_documents_for_programs_have_what_they_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = recorded(tmp_path, 100)
    assert "Self-check" not in printed(
        trace, capsys, "--by", "op", "--phase", "decode", "--format", "csv"
    )
    assert "self_check" not in printed(trace, capsys, "--by", "op", "--format", "json")
