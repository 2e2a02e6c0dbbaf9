"""Runs of the same program and model: no pair of them may raise an alarm, on whatever machine."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from profinfer.analysis.compare.changes import Changes
from profinfer.analysis.compare.runs import compare
from profinfer.analysis.compare.structure import structure
from profinfer.analysis.compare.verdict import gate, verdict
from profinfer.analysis.compare.whole import measure
from profinfer.model.trace import Trace

pytestmark = pytest.mark.e2e

RUNS = 6  # 15 pairs; python -m tools.difftrial same makes 190
Run = Callable[..., CompletedProcess[str]]


def record(run_profinfer: Run, out: Path, llama_bin: Path, model: Path, *more: str) -> Trace:
    command = [llama_bin / "llama-completion", "-m", model, "-t", "2", "-n", "60"]
    command += ["-p", "Once upon a time", "-no-cnv", "--temp", "0", "--ignore-eos", "-lv", "0"]
    done = run_profinfer("record", "-o", out, "--", *command, *more)
    assert done.returncode == 0, done.stderr
    return Trace.open(out)


@pytest.fixture(scope="module")
def traces(
    tmp_path_factory: pytest.TempPathFactory, llama_bin: Path, smollm2: Path, run_profinfer: Run
) -> list[Trace]:
    folder = tmp_path_factory.mktemp("same")
    return [record(run_profinfer, folder / f"{i}.pf", llama_bin, smollm2) for i in range(RUNS)]


def test_no_pair_raises_an_alarm(traces: list[Trace]) -> None:
    for a, b in itertools.combinations(traces, 2):
        changes = Changes(compare([a], [b], "decode"))
        found = verdict(changes, measure(changes.of, None))
        assert not found.whole.sure, found.sentence
        for key in ("kind", "role", "op", "layer", "node", "shape"):
            rows = changes.by(key)
            assert (rows["verdict"] == "").all(), rows[rows["verdict"] != ""].to_string()
        assert gate(changes, found, 0.03, 0.05) == []
        assert (changes.of.units["by"] == "name").all()
        assert not len(structure(changes, "").frame)


def test_flash_attention_off_is_told_by_the_graph(
    traces: list[Trace], tmp_path: Path, llama_bin: Path, smollm2: Path, run_profinfer: Run
) -> None:
    b = record(run_profinfer, tmp_path / "off.pf", llama_bin, smollm2, "-fa", "off")
    changes = Changes(compare([traces[0]], [b], "decode"))
    frame = structure(changes, "").frame.set_index("op")
    layers = int(traces[0].nodes["layer"].max()) + 1
    assert frame.loc["FLASH_ATTN_EXT", ["nodes_a", "nodes_b", "only_a"]].tolist() == [
        layers, 0, layers,
    ]  # fmt: skip
    assert frame.loc["SOFT_MAX", ["nodes_a", "nodes_b", "only_b"]].tolist() == [0, layers, layers]
    assert frame.loc["MUL_MAT", "only_b"] == 2 * layers
    done = run_profinfer("diff", traces[0].path, b.path)
    assert done.returncode == 0 and "the graphs differ" in " ".join(done.stdout.split())
    assert "-fa off" in done.stdout


def test_another_quantization_pairs_with_the_same_operators(
    traces: list[Trace], tmp_path: Path, llama_bin: Path, smollm2: Path, run_profinfer: Run
) -> None:
    """Only the types of the weights differ, and each product is told with both."""
    model = tmp_path / "q8_0.gguf"
    tool = llama_bin.parents[1] / "backends" / "bin" / "llama-quantize"
    subprocess.run([tool, "--allow-requantize", smollm2, model, "Q8_0", "2"],
                   check=True, capture_output=True)  # fmt: skip
    b = record(run_profinfer, tmp_path / "q8.pf", llama_bin, model)
    changes = Changes(compare([traces[0]], [b], "decode"))
    assert (changes.of.units["by"] == "name").all()
    done = run_profinfer("diff", traces[0].path, b.path, "--phase", "decode")
    assert done.returncode == 0, done.stderr
    assert "q4_1" in done.stdout and "q8_0" in done.stdout
