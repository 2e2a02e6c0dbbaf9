"""A real generation past two ends of the padded KV cache: what grows, and the report of it."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from profinfer.analysis import growth
from profinfer.analysis.steps import decode_steps
from profinfer.model.trace import Trace

pytestmark = pytest.mark.e2e

TOKENS = 540
PAD = 256  # llama.cpp lengthens the cells that attention reads by so many


@pytest.fixture(scope="module")
def recorded(
    tmp_path_factory: pytest.TempPathFactory,
    llama_bin: Path,
    smollm2: Path,
    run_profinfer: Callable[..., subprocess.CompletedProcess[str]],
) -> Path:
    path = tmp_path_factory.mktemp("growth") / "kv.pf"
    command = [
        llama_bin / "llama-completion", "-m", smollm2, "-t", "1", "-n", str(TOKENS), "-p",
        "Once upon a time", "-no-cnv", "--temp", "0", "--ignore-eos",
    ]  # fmt: skip
    done = run_profinfer("record", "-o", path, "--", *command, timeout=400)
    assert done.returncode == 0, done.stderr
    return path


def test_attention_takes_most_of_the_growth(recorded: Path) -> None:
    trace = Trace.open(recorded)
    rows = growth.growth(trace, trace.select(phase="decode")).frame.set_index("part")
    attention = rows.loc["attention"]
    assert attention["certain"] == "yes" and attention["slope_ns"] > 0
    # More than doubled, where nothing else did.
    assert attention["grown_ns"] > attention["start_ns"]
    assert attention["share"] > 0.5


def test_the_staircase_is_the_engines(recorded: Path) -> None:
    trace = Trace.open(recorded)
    selection = trace.select(phase="decode")
    frame = growth.staircase(trace, selection).frame
    assert frame["cells"].tolist() == [PAD, 2 * PAD, 3 * PAD]
    assert frame["last"].tolist()[:2] == [PAD - 1, 2 * PAD - 1]
    assert (np.diff(frame["attention_ns"]) > 0).all()
    steps = decode_steps(trace, selection)
    assert (steps.time.sum(axis=1) == steps.total).all() and (steps.time >= 0).all()
    assert steps.rebuilt.sum() == 2


def test_the_page_of_it_is_small(
    recorded: Path, run_profinfer: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    out = tmp_path / "report.html"
    done = run_profinfer("report", recorded, "--html", out)
    assert done.returncode == 0, done.stderr
    assert out.stat().st_size < 5 << 20
    text = out.read_text()
    for key in ("token-times", "growth", "layers", "matmul-size", "threads-chart"):
        assert f'id="{key}"' in text
