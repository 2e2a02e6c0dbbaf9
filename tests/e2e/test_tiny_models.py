"""Generated models of a few MB: a dense one and a mixture of experts, as the engine runs them."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine_dump import assert_same_graph, dumped_nodes

from profinfer.model.trace import Trace

pytestmark = pytest.mark.e2e

MODELS = ["tiny-dense", "tiny-dense-q4_0", "tiny-moe", "tiny-moe-q4_0"]
COMMON = ["-t", "2", "-p", "hello world"]


@pytest.fixture(scope="module")
def traces(tmp_path_factory, llama_bin: Path, tiny_models, run_profinfer) -> dict[str, Trace]:
    folder, out = tmp_path_factory.mktemp("tiny"), {}
    for name in MODELS:
        path = folder / f"{name}.pf"
        program = [llama_bin / "llama-completion", "-m", tiny_models[name], *COMMON]
        more = ["-n", "24", "-no-cnv", "--ignore-eos", "--temp", "0"]
        done = run_profinfer("record", "-o", path, "--", *program, *more)
        assert done.returncode == 0, done.stderr
        out[name] = Trace.open(path)
    return out


@pytest.mark.parametrize("name", MODELS)
def test_everything_is_seen(traces: dict[str, Trace], name: str) -> None:
    trace = traces[name]
    assert {k: v for k, v in trace.losses.items() if v} == {}
    assert trace.problems == []
    assert trace.graphs["complete"].all()
    assert (trace.calls["phase"] == "decode").sum() == 23
    assert (trace.graphs["threads_seen"] == 2).all()


@pytest.mark.parametrize("name", MODELS)
def test_graph_agrees_with_the_engine(
    traces: dict[str, Trace], name: str, llama_bin: Path, tiny_models
) -> None:
    command = [str(llama_bin / "llama-eval-callback"), "-m", str(tiny_models[name]), *COMMON]
    theirs = dumped_nodes([*command, "-n", "1"])
    t = traces[name]
    prefill = t.graphs[t.graphs["phase"] == "prefill"].iloc[0]
    ours = t.nodes[t.nodes["def_id"] == prefill["def_id"]].sort_values("idx")
    assert_same_graph(ours, theirs, at_least=0.5)


def test_experts_and_router_have_their_roles(traces: dict[str, Trace]) -> None:
    nodes = traces["tiny-moe"].nodes
    experts = nodes[nodes["op"] == "MUL_MAT_ID"]
    assert len(experts) > 0
    assert set(experts["role"]) == {"moe experts"}
    assert set(experts["layer"]) == {0, 1, 2}
    routers = nodes[nodes["weight"].str.contains("ffn_gate_inp.weight")]
    assert set(routers["role"]) == {"moe router"}
    shared = nodes[nodes["weight"].str.contains("shexp")]
    assert len(shared) > 0
    assert set(shared["role"]) == {"shared expert"}


def test_dense_model_has_no_experts(traces: dict[str, Trace]) -> None:
    assert not traces["tiny-dense"].nodes["role"].str.contains("moe").any()


def test_report_and_export_of_each(traces: dict[str, Trace], tmp_path: Path, run_profinfer) -> None:
    for name, trace in traces.items():
        report = run_profinfer("report", trace.path)
        assert report.returncode == 0, report.stderr
        assert "MUL_MAT" in report.stdout
        assert max(map(len, report.stdout.splitlines())) <= 80
        out = tmp_path / f"{name}.pftrace"
        assert run_profinfer("export", trace.path, "-o", out).returncode == 0
        assert out.stat().st_size > 10_000
