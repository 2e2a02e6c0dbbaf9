"""What ``report --format json`` prints keeps to the schema that is shipped, and to the docs."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest

from profinfer.analysis.explanations import EXPLANATIONS
from profinfer.analysis.result import Unit
from profinfer.cli import group
from profinfer.cli import run as run_cli
from profinfer.cli.report import command
from profinfer.render.machine import MINOR, SCHEMA

GOLDEN = Path(__file__).parents[1] / "golden"
DOCS = Path(__file__).parents[2] / "docs" / "json.md"
REPORTS = [
    ("generation", []),
    ("generation", ["--by", "op", "--phase", "decode"]),
    ("generation", ["--by", "token"]),
    ("generation", ["--by", "generation"]),
    ("generation", ["--ledger"]),
    ("generation", ["--explain"]),
    ("disturbed", []),
    ("disturbed", ["--explain"]),
    ("disturbed", ["--by", "thread"]),
    ("evicted", []),
    ("evicted", ["--faults"]),
    ("evicted", ["--explain", "evicted"]),
    ("roofs", ["--roofline"]),
    ("counted", ["--counters"]),
    ("lossy", []),
    ("pair", []),
]


def schema() -> Any:
    text = resources.files("profinfer.render").joinpath("report.schema.json").read_text()
    return json.loads(text)


def report(trace: str, args: list[str], capsys: pytest.CaptureFixture[str]) -> Any:
    assert run_cli(command, [str(GOLDEN / f"{trace}.pf"), *args, "--format", "json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    assert schema()["properties"]["schema"]["const"] == SCHEMA


@pytest.mark.parametrize(("trace", "args"), REPORTS, ids=lambda v: " ".join(v) if v else "-")
def test_reports_keep_to_it(
    trace: str, args: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    told = report(trace, args, capsys)
    jsonschema.Draft202012Validator(schema()).validate(told)
    assert told["minor"] == MINOR
    for result in told["results"]:
        names = {c["name"] for c in result["columns"]}
        assert all(set(row) == names for row in result["rows"]), result["name"]
        assert set(result["total"] or ()) <= names


OTHERS = [
    ["graph", "generation"],
    ["graph", "generation", "--nodes", "0:9"],
    ["graph", "generation", "pair"],
    ["scaling", "generation", "disturbed"],
    ["scaling", "generation", "--phase", "prefill"],
]


@pytest.mark.parametrize("args", OTHERS, ids=" ".join)
def test_other_documents_keep_to_it(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    paths = {p.stem: str(p) for p in GOLDEN.glob("*.pf")}
    assert run_cli(group, [*(paths.get(arg, arg) for arg in args), "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator(schema()).validate(told)
    given = [paths[arg] for arg in args if arg in paths]
    assert told["trace"]["path"] == given[0]
    assert [t["path"] for t in told.get("traces", [told["trace"]])] == given
    assert {r["phase"] for r in told["results"]} <= {"decode", "prefill"}


def test_results_of_phases_are_told_apart(capsys: pytest.CaptureFixture[str]) -> None:
    told = report("generation", [], capsys)["results"]
    keys = [(r["name"], r["phase"]) for r in told]
    assert len(set(keys)) == len(keys)
    assert [phase for name, phase in keys if name == "ledger"] == ["decode", "prefill"]
    for args in (["--counters"], ["--roofline"], ["--by", "backend"], ["--by", "token"]):
        for result in report("counted", args, capsys)["results"]:
            scope = result["scope"].split(":")[0]
            assert result["phase"] == (scope if scope in ("decode", "prefill") else None), args


def test_a_report_that_breaks_it_is_caught(capsys: pytest.CaptureFixture[str]) -> None:
    validator = jsonschema.Draft202012Validator(schema())
    told = report("disturbed", ["--explain"], capsys)
    told["findings"][0]["prize"] = {"total_ns": -1}
    assert not validator.is_valid(told)
    told = report("disturbed", ["--explain"], capsys)
    del told["results"][0]["scope"]
    assert not validator.is_valid(told)


def test_findings_are_ranked(capsys: pytest.CaptureFixture[str]) -> None:
    told = report("disturbed", [], capsys)["findings"]
    prizes = [f["prize"]["total_ns"] if f["prize"] else 0 for f in told]
    assert len(told) >= 3 and prizes == sorted(prizes, reverse=True)


def test_the_page_names_all_units_and_findings() -> None:
    page = DOCS.read_text()
    for unit in get_args(Unit):
        assert f"`{unit}`" in page, unit
    for name in EXPLANATIONS:
        assert f"`{name}`" in page, name
    assert f"`{SCHEMA}`" in page or f'"{SCHEMA}"' in page
