"""What ``profinfer graph`` prints, to the letter, on the traces of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from profinfer.cli import run
from profinfer.cli.graph import command

HERE = Path(__file__).resolve().parent
GRAPHS = {
    "generation.graph.txt": ["generation.pf"],
    "pair.graph.dot": ["pair.pf", "--dot", "--layer", "1"],
    "pair.graphs.txt": ["pair.pf", "generation.pf"],
}


@pytest.mark.parametrize("name", GRAPHS)
def test_graph(
    name: str,
    golden: Callable[[str, str | bytes], None],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(HERE)
    assert run(command, GRAPHS[name]) == 0
    golden(name, capsys.readouterr().out)
