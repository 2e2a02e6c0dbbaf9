"""A recording that ended before the program loaded its engine: every verb says so in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import TraceBuilder
from click.testing import CliRunner

from profinfer.cli import group, run

NONE = "the recording ended before the program loaded an engine"
HEADERS = {
    "null": {"engine": None, "plan": None},
    "empty": {"engine": {}, "plan": {"level": "op"}},
    "as written": {
        "engine": {"name": None, "layout": None, "ops": [], "images": []},
        "plan": {"level": "op", "ops": {"mode": "none", "bias": 0}, "probes": [], "skipped": []},
    },
}


@pytest.fixture(params=[(h, t) for h in HEADERS for t in (True, False)], ids=str)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    header, whole = request.param
    builder = TraceBuilder()
    builder.meta |= HEADERS[header]
    ended = builder.trailer(reason="duration over", exit_code=None)
    return builder.write(tmp_path / "t.pf", ended if whole else False)


def test_info_says_why_there_is_nothing(path: Path) -> None:
    ran = CliRunner().invoke(group, ["info", str(path)], standalone_mode=False)
    assert ran.exception is None, ran.exception
    assert ran.stdout.count(NONE) == 2  # engine and probes
    assert "llama-completion" in ran.stdout
    assert CliRunner().invoke(group, ["info", str(path), "--format", "json"]).exit_code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("report",), ("report", "--by", "op"), ("report", "--by", "token"),
        ("report", "--format", "json"), ("report", "--phase", "decode"), ("export",),
    ],
    ids=" ".join,
)  # fmt: skip
def test_the_other_verbs_are_one_clear_line(
    path: Path, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(group, [arguments[0], str(path), *arguments[1:]]) == 1
    said = capsys.readouterr()
    problem, hint = said.err.splitlines()
    assert problem.startswith("profinfer: ") and problem.endswith(NONE)
    assert hint.strip().startswith("try: ")
    assert said.out == ""
    assert not path.with_suffix(".pftrace").exists()


def test_dump_prints_what_there_is(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(group, ["dump", str(path)]) in (0, 1)
    said = capsys.readouterr()
    assert "TRAILER" in said.out or "the trailer is missing" in said.err
