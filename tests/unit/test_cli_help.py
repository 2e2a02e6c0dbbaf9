"""Every verb's --help works, and asks for nothing heavy."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from profinfer.cli import VERBS, group

ROOT = Path(__file__).parents[2]
HEAVY = ("bcc", "elftools", "capstone", "numpy", "pandas", "rich", "perfetto")


def test_the_group_lists_every_verb() -> None:
    ran = CliRunner().invoke(group, ["--help"])
    assert ran.exit_code == 0
    for verb, line in VERBS.items():
        assert verb in ran.stdout and line in " ".join(ran.stdout.split())


def test_every_verb_is_a_module() -> None:
    missing = [v for v in VERBS if importlib.util.find_spec(f"profinfer.cli.{v}") is None]
    assert missing == []


@pytest.mark.parametrize("verb", VERBS)
def test_help(verb: str) -> None:
    ran = CliRunner().invoke(group, [verb, "--help"])
    assert ran.exit_code == 0, ran.exception
    assert ran.stdout.startswith(f"Usage: group {verb}") or f" {verb} " in ran.stdout
    assert "--help" in ran.stdout
    assert all(len(line) <= 80 for line in ran.stdout.splitlines())


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\nfrom profinfer.cli import group, run\n"
        f"for verb in {list(VERBS)!r}:\n    assert run(group, [verb, '--help']) == 0\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]"


def test_an_unknown_verb_is_one_line() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "profinfer", "nonsense"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2 and "No such command 'nonsense'" in done.stderr
    assert "Traceback" not in done.stderr
