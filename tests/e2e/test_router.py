"""Expert ids against the engine's own: every one, in prefill and decode, by its own callback."""

from __future__ import annotations

import io
import subprocess
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from profinfer.model.trace import Trace

pytestmark = pytest.mark.e2e

HERE = Path(__file__).parent
PROMPT, UBATCH, DECODE, LAYERS, USED = 600, 256, 12, 3, 2
SIZES = list(map(str, (PROMPT, UBATCH, DECODE)))
KEYS = ["call", "layer", "token", "slot"]


@pytest.fixture(scope="module")
def router_truth(tmp_path_factory: pytest.TempPathFactory, llama_bin: Path) -> Path:
    """The program that tells what each router chose."""
    source = llama_bin.parents[1] / "src"
    out = tmp_path_factory.mktemp("router") / "router_truth"
    command = ["g++", "-O1", "-I", source / "include", "-I", source / "ggml" / "include"]
    command += [HERE / "router_truth.cpp", "-o", out, "-L", llama_bin, f"-Wl,-rpath,{llama_bin}"]
    command += ["-lllama", "-lggml", "-lggml-base"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def both(
    tmp_path_factory: pytest.TempPathFactory, router_truth: Path, tiny_models, run_profinfer
) -> Callable[..., tuple[Trace, pd.DataFrame]]:
    """A recording, and what the engine says of the same tokens."""

    def run(model: str, threads: int, *, told_inside: bool) -> tuple[Trace, pd.DataFrame]:
        path = tmp_path_factory.mktemp("trace") / "t.pf"
        program = [str(router_truth), str(tiny_models[model]), str(threads), *SIZES]
        more = ["--tell"] if told_inside else []
        done = run_profinfer("record", "-o", path, "--", *program, *more)
        assert done.returncode == 0, done.stderr
        said = done.stdout
        if not told_inside:
            said = subprocess.run(
                [*program, "--tell"], capture_output=True, text=True, check=True, timeout=120
            ).stdout
        truth = pd.read_csv(io.StringIO(said), sep=" ", names=[*KEYS, "expert"])
        return Trace.open(path), truth

    return run


def compare(trace: Trace, truth: pd.DataFrame) -> None:
    assert len(truth) == USED * ((PROMPT + DECODE) * (LAYERS - 1) + 1 + DECODE)
    assert {k: v for k, v in trace.losses.items() if v} == {}
    table = trace.experts
    table = table.assign(call=trace.graphs["call_id"].to_numpy()[table["graph_id"]])
    # Of a prompt the last layer computes one token, whose place in the batch is not known.
    whole = table["layer"] < LAYERS - 1
    assert (table["token"][whole] >= 0).all()
    table["token"] = table["token"].where(whole, table["row"])
    ours, theirs = (
        t[[*KEYS, "expert"]].sort_values(KEYS).to_numpy().tolist() for t in (table, truth)
    )
    assert ours == theirs


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("model", ["tiny-moe", "tiny-moe-q4_0"])
def test_every_id_is_the_engines(both, model: str, threads: int) -> None:
    trace, truth = both(model, threads, told_inside=False)
    compare(trace, truth)
    assert (trace.experts["seq"].isin([0, -1])).all()


def test_in_graphs_cut_by_a_callback_too(both) -> None:
    """The engine then computes views of the graph that have no number of their own."""
    trace, truth = both("tiny-moe", 2, told_inside=True)
    assert (trace.graphs.groupby("call_id").size() > 1).all()
    compare(trace, truth)


def test_weights_of_experts_lie_where_the_tensors_do(both) -> None:
    trace, _ = both("tiny-moe", 1, told_inside=False)
    table = trace.expert_weights
    assert len(table) == LAYERS * 3 * 8
    tensors = trace.residents.tensors.set_index("name")
    ends = table.groupby("tensor").agg(begin=("address", "min"), size=("bytes", "sum"))
    assert (ends["begin"] == tensors["address"].reindex(ends.index)).all()
    assert (ends["size"] == tensors["size"].reindex(ends.index)).all()
