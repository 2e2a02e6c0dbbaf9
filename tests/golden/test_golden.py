"""What the report prints, to the letter. ``make golden`` rewrites it; read the diff."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from builders import Node

from profinfer.cli import run
from profinfer.cli.diff import command as diff
from profinfer.cli.report import command

HERE = Path(__file__).resolve().parent
Golden = Callable[[str, str | bytes], None]


def _make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_make", HERE / "make.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE = _make()
REPORTS = {
    "generation.report.txt": ("generation", []),
    "generation.node.txt": ("generation", ["--by", "node", "--op", "MUL_MAT", "--top", "12"]),
    "generation.layer.txt": ("generation", ["--by", "layer", "--phase", "decode"]),
    "generation.token.txt": ("generation", ["--by", "token", "--warmup"]),
    "generation.shape.csv": (
        "generation",
        ["--by", "shape", "--phase", "decode", "--format", "csv"],
    ),
    "generation.json": ("generation", ["--by", "op", "--phase", "decode", "--format", "json"]),
    "pair.report.txt": ("pair", []),
    "lossy.report.txt": ("lossy", []),
    "evicted.report.txt": ("evicted", ["--phase", "decode"]),
    "evicted.faults.txt": ("evicted", ["--faults", "--top", "6"]),
    "evicted.layer.txt": ("evicted", ["--faults", "--by", "layer", "--phase", "decode"]),
    "evicted.tensor.csv": ("evicted", ["--faults", "--by", "tensor", "--format", "csv"]),
    "roofs.roofline.txt": ("roofs", ["--roofline"]),
    "counted.counters.txt": ("counted", ["--counters", "--phase", "decode"]),
    "counted.role.csv": (
        "counted",
        ["--counters", "--by", "role", "--phase", "decode", "--format", "csv"],
    ),
    "growing.position.txt": ("growing", ["--by", "position"]),
    "growing.position.csv": ("growing", ["--by", "position", "--format", "csv"]),
    "growing.outlier.txt": ("growing", ["--by", "outlier"]),
    "growing.matmul.txt": ("growing", ["--by", "matmul", "--phase", "decode", "--top", "8"]),
    "growing.prompt.txt": ("growing", ["--by", "prompt"]),
    "roofs.none.txt": ("pair", ["--roofline", "--by", "op", "--phase", "decode"]),
    "routed.report.txt": ("routed", ["--phase", "decode"]),
    "routed.experts.txt": ("routed", ["--experts", "--top", "6"]),
    "routed.token.txt": ("routed", ["--experts", "--by", "token", "--top", "6"]),
    "routed.expert.csv": ("routed", ["--by", "expert", "--phase", "decode", "--format", "csv"]),
    "routed.cache.json": ("routed", ["--by", "cache", "--phase", "decode", "--format", "json"]),
    "disturbed.report.txt": ("disturbed", []),
    "disturbed.thread.txt": ("disturbed", ["--by", "thread", "--phase", "decode"]),
    "disturbed.thread.csv": (
        "disturbed",
        ["--by", "thread", "--phase", "decode", "--format", "csv"],
    ),
    "disturbed.thread.json": (
        "disturbed",
        ["--by", "thread", "--phase", "decode", "--format", "json"],
    ),
}


DIFFS = {
    "changed.diff.txt": [],
    "changed.node.txt": ["--by", "node", "--phase", "decode", "--top", "5"],
    "changed.thread.txt": ["--by", "thread", "--phase", "decode"],
    "changed.diff.json": ["--by", "kind", "--phase", "decode", "--format", "json"],
    "changed.shape.csv": ["--by", "shape", "--phase", "decode", "--format", "csv"],
}


@pytest.mark.parametrize("name", MAKE.TRACES)
def test_traces_are_what_make_makes(name: str, golden: Golden) -> None:
    Node._next_addr = 0x7F00_0000_0000
    golden(f"{name}.pf", MAKE.TRACES[name]())


def compare(name: str, capsys: pytest.CaptureFixture[str], golden: Golden) -> None:
    said = capsys.readouterr()
    assert said.err == ""
    if name.endswith(".txt"):
        assert max(map(len, said.out.splitlines())) <= 80
    golden(name, said.out)


@pytest.mark.parametrize("name", REPORTS)
def test_report(
    name: str,
    golden: Golden,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trace, args = REPORTS[name]
    monkeypatch.setenv("XDG_STATE_HOME", "/nowhere")  # this machine's roofs are not the trace's
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.chdir(HERE)  # the path is part of the text
    assert run(command, [f"{trace}.pf", *args]) == 0
    compare(name, capsys, golden)


@pytest.mark.parametrize("name", DIFFS)
def test_diff(
    name: str,
    golden: Golden,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(HERE)
    assert run(diff, ["before.pf", "changed.pf", *DIFFS[name]]) == 0
    compare(name, capsys, golden)
