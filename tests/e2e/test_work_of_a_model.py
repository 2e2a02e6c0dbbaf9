"""Work from shapes against the model's own file, and rates against the machine's roofs."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from profinfer.analysis.work import Work, executed
from profinfer.model.trace import Trace

pytestmark = pytest.mark.e2e

RunProfinfer = Callable[..., subprocess.CompletedProcess[str]]


class Recorded:
    """A recording of SmolLM2, with roofs measured just before."""

    def __init__(self, trace: Trace, roofline: dict[str, Any]) -> None:
        self.trace = trace
        self.roofline = roofline
        self.decode = trace.select(phase="decode")
        self.work: Work = executed(trace, self.decode)
        self.tokens = self.decode.n_tokens


@pytest.fixture(scope="module")
def recorded(
    tmp_path_factory: pytest.TempPathFactory,
    llama_bin: Path,
    smollm2: Path,
    run_profinfer: RunProfinfer,
) -> Recorded:
    folder = tmp_path_factory.mktemp("work")
    env = {"XDG_STATE_HOME": str(folder)}
    done = run_profinfer("calibrate", "--threads", "1,2", env=env)
    assert done.returncode == 0, done.stderr
    path = folder / "trace.pf"
    command = [str(llama_bin / "llama-completion"), "-m", str(smollm2), "-t", "2", "-n", "24"]
    command += ["-p", "Once upon a time", "-no-cnv", "--temp", "0", "--ignore-eos"]
    done = run_profinfer("record", "-o", path, "--", *command, env=env, timeout=400)
    assert done.returncode == 0, done.stderr
    shown = run_profinfer("report", path, "--roofline", "--phase", "decode", "--format", "json")
    assert shown.returncode == 0, shown.stderr
    return Recorded(Trace.open(path), json.loads(shown.stdout))


def test_weights_of_a_token_are_the_models_tensors(recorded: Recorded, smollm2: Path) -> None:
    """Every tensor is read once a token; of the embedding, which is the head too, one row more."""
    tensors = {t.name: t for t in GGUFReader(smollm2).tensors}
    every = sum(int(t.n_bytes) for t in tensors.values())
    embd = tensors["token_embd.weight"]
    row = int(embd.n_bytes) // int(embd.shape[1])
    assert recorded.work.weights.sum() / recorded.tokens == pytest.approx(every + row, rel=1e-3)


def test_operations_of_a_token_are_two_a_parameter_and_attention(
    recorded: Recorded, smollm2: Path
) -> None:
    trace = recorded.trace
    parameters = sum(int(t.n_elements) for t in GGUFReader(smollm2).tensors)
    op = trace.nodes["op"].astype(str).to_numpy()
    per_token = {
        name: recorded.work.flops[op == name].sum() / recorded.tokens for name in np.unique(op)
    }
    assert per_token["MUL_MAT"] == pytest.approx(2 * parameters, rel=0.001)
    # 30 layers, 9 heads of 64: Q K^T and V, 2 operations each, and 6 of the soft max, of every cell
    # up to the token's own. Cells have 3 heads of K and of V in 16 bits.
    calls = trace.calls[trace.calls["phase"] == "decode"]
    cells = (calls["pos_first"] + 1).mean()
    assert 1 < cells < 64
    assert per_token["FLASH_ATTN_EXT"] == pytest.approx(30 * 9 * cells * (4 * 64 + 6))
    kv = recorded.work.kv[op == "FLASH_ATTN_EXT"].sum() / recorded.tokens
    assert kv == pytest.approx(30 * cells * 2 * 3 * 64 * 2)
    rest = sum(v for k, v in per_token.items() if k not in ("MUL_MAT", "FLASH_ATTN_EXT"))
    assert 0 < rest < 0.01 * 2 * parameters


def test_the_work_of_every_operator_is_known(recorded: Recorded) -> None:
    ran = recorded.trace.sums(recorded.decode).calls > 0
    assert np.isfinite(recorded.work.flops[ran]).all()
    assert np.isfinite(recorded.work.moved[ran]).all()


def test_the_trace_carries_the_roofs_and_nothing_large_is_above_them(recorded: Recorded) -> None:
    roofs = recorded.trace.meta.calibration["roofs"]
    read = next(r["best"] for r in roofs if r["kind"] == "read" and r["threads"] == 2)
    nodes = {r["name"]: r for r in recorded.roofline["results"]}["roofline_by_node"]["rows"]
    head = next(r for r in nodes if r["name"] == "result_output")
    # 30 MB a token: what a cache keeps of it from one token to the next is little.
    assert 0.005 * read < head["bytes_per_s"] <= 1.1 * read
    assert head["roof"] == pytest.approx(head["bytes_per_s"] / read, rel=1e-3)
    assert head["of_memory"] > head["of_compute"]
    # Whatever else the machine does; but never compute.
    assert head["bound"] in ("memory", "neither", "sync", "no CPU")
