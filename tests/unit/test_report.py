from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from builders import TraceBuilder, sample_run
from fuzz_report import fuzz

from profinfer.cli import run
from profinfer.cli.report import command

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    return sample_run().builder.write(tmp_path / "t.pf")


def report(*args: object) -> int:
    return run(command, [str(a) for a in args])


def test_whole_report_fits_and_ends_with_the_self_check(
    sample: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report(sample) == 0
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert said.err == ""
    assert max(map(len, lines)) <= 80
    titles = [line.split("  ")[0] for line in lines if line and not line.startswith(" ")]
    assert titles[:7] == [
        "Run", "Phases", "Wall time", "Time by operator type", "Time by role", "Time by layer",
        "Slowest operators",
    ]  # fmt: skip
    assert "Self-check: all well." in said.out


@pytest.mark.parametrize("by", ["op", "layer", "role", "node", "shape", "thread", "token"])
@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_every_view_in_every_format(
    sample: Path, capsys: pytest.CaptureFixture[str], by: str, form: str
) -> None:
    assert report(sample, "--by", by, "--phase", "decode", "--format", form) == 0
    out = capsys.readouterr().out
    if form == "table":
        assert "decode: 3 tokens, 3 calls, 3 graphs, warm-up excluded" in out
    elif form == "json":
        (result,) = json.loads(out)["results"]
        assert result["scope"].startswith("decode: 3 tokens")
        assert result["rows"]
    else:
        header, *rows = out.splitlines()
        assert "[" in header and rows


@pytest.mark.parametrize(
    ("args", "status", "says"),
    [
        (["--op", "FOO", "--by", "op"], 2, "no operator FOO"),
        (["--format", "csv"], 2, "needs one view"),
        (["--by", "op", "--format", "csv"], 2, "would be several"),
        (["--tokens", "100:200"], 1, "select nothing"),
        (["--tokens", "x"], 2, "does not understand 'x'"),
        (["--tokens", "3:1"], 2, "does not understand '3:1'"),
        (["--tokens", "0:2", "--phase", "prefill"], 2, "decoded tokens"),
        (["--by", "token", "--op", "ADD"], 2, "whole calls"),
        (["--by", "position", "--layer", "1"], 2, "whole calls"),
        (["--by", "outlier", "--phase", "prefill"], 2, "is about decoded tokens"),
        (["--roofline", "--by", "position"], 2, "--roofline knows no --by position"),
        (["--layer", "7"], 1, "no operator"),
        (["--by", "nonsense"], 2, "nonsense"),
    ],
)
def test_wrong_questions_get_one_clear_line(
    sample: Path, capsys: pytest.CaptureFixture[str], args: list[str], status: int, says: str
) -> None:
    assert report(sample, *args) == status
    said = capsys.readouterr()
    assert says in said.err
    assert said.out == ""


def test_traces_without_inference(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report(TraceBuilder().write(tmp_path / "t.pf")) == 1
    assert "ran no inference" in capsys.readouterr().err
    assert report(tmp_path / "none.pf") == 1
    assert "no such file" in capsys.readouterr().err


def test_token_level_reports_tokens_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    builder = TraceBuilder(plan={"level": "token", "ops": {"mode": "none"}})
    for number in range(3):
        builder.call_begin(77, 10_000 * (number + 1), n_tokens=1 if number else 4)
        builder.call_end(77, 10_000 * (number + 1) + 5_000)
    path = builder.write(tmp_path / "t.pf")
    assert report(path) == 0
    out = capsys.readouterr().out
    assert "Phases" in out and "operators" not in out and "graphs" not in out
    assert report(path, "--by", "op") == 2
    assert "recorded at level token" in capsys.readouterr().err


def test_graph_level_reports_graphs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_ = sample_run(plan={"level": "graph", "ops": {"mode": "none"}})
    assert report(run_.builder.write(tmp_path / "t.pf")) == 0
    out = capsys.readouterr().out
    assert "\nGraphs  decode: 3 tokens" in out
    assert "Time by operator type" not in out


def test_warm_up_only_when_asked_for(sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report(sample, "--by", "op", "--warmup")
    assert "all phases: 10 tokens, 5 calls, 5 graphs\n" in capsys.readouterr().out
    report(sample, "--by", "op", "--phase", "warmup")
    assert "warmup: 2 tokens, 1 call, 1 graph\n" in capsys.readouterr().out


def test_losses_are_under_every_view(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample = sample_run()
    sample.builder.counters[65] = 512
    path = sample.builder.write(tmp_path / "t.pf")
    for by in ("op", "layer", "role", "node", "shape", "thread", "token"):
        report(path, "--by", by, "--phase", "decode")
        assert "Warning: while recording: 512 operator records lost" in capsys.readouterr().out


def test_an_unfinished_recording_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sample_run().builder.write(tmp_path / "t.pf", trailer=False)
    assert report(path, "--by", "op") == 0
    assert "trailer" in capsys.readouterr().out


@pytest.mark.parametrize("seed", range(4))
def test_wrong_records_are_no_crash(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """A sample of ``make fuzz``."""
    monkeypatch.setenv("PROFINFER_DEBUG", "1")
    assert sum(fuzz(6, seed).values()) == 6


@pytest.mark.parametrize("seed", range(6))
def test_a_damaged_trace_is_reported_or_refused_never_a_crash(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    """Records with flipped bytes whose checksums hold, as a bug in the recorder would write."""
    chance = random.Random(seed)
    builder = sample_run(layers=1, plan={"ops": {"mode": ("site", "pair")[seed % 2]}}).builder
    builder.flush()
    damaged = []
    for kind, payload in builder._chunks:
        raw = bytearray(payload)
        for _ in range(chance.choice((1, 20, 200))):
            raw[chance.randrange(len(raw))] = chance.randrange(256)
        damaged.append((kind, bytes(raw)))
    builder._chunks = damaged
    assert report(builder.write(tmp_path / "t.pf"), "--phase", "all") in (0, 1)
    said = capsys.readouterr()
    assert "internal error" not in said.err
    assert all(len(line) <= 80 for line in said.out.splitlines())


def test_the_plain_report_says_what_was_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(command, [str(GOLDEN / "counted.pf")]) == 0
    assert "report TRACE --counters" in " ".join(capsys.readouterr().out.split())
    assert run(command, [str(GOLDEN / "generation.pf")]) == 0
    assert "--counters" not in capsys.readouterr().out


def test_counters_that_the_machine_refused_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    builder = TraceBuilder(options={"counters": ["LLC-load-misses", "LLC-store-misses"]})
    trace = str(sample_run(builder=builder).builder.write(tmp_path / "t.pf"))
    assert run(command, [trace]) == 0
    assert "refused: LLC-load-misses, LLC-store-misses" in capsys.readouterr().out
    assert run(command, [trace, "--counters"]) == 2
    said = capsys.readouterr().err
    assert "LLC-load-misses, LLC-store-misses were asked for" in said and "--preset faults" in said
