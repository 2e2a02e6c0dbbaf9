"""A Python program with a prebuilt engine inside an extension module, as pip installs it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from profinfer.model.trace import Trace

pytestmark = pytest.mark.e2e

APP = """
import json, sys
import xllamacpp
p = xllamacpp.CommonParams()
p.model.path = sys.argv[1]
p.n_ctx, p.n_parallel = 1024, 1
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 2
server = xllamacpp.Server(p)
request = {"prompt": "The quick brown fox", "max_tokens": 24, "temperature": 0, "ignore_eos": True}
print(json.dumps(server.handle_completions(request)))
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory, smollm2: Path, run_profinfer) -> tuple[Trace, dict]:
    folder = tmp_path_factory.mktemp("python")
    (folder / "app.py").write_text(APP)
    command = [sys.executable, folder / "app.py", smollm2]
    done = run_profinfer("record", "-o", folder / "t.pf", "--", *command)
    assert done.returncode == 0, done.stderr
    said = next(line for line in done.stdout.splitlines() if line.startswith("{"))
    return Trace.open(folder / "t.pf"), json.loads(said)


def test_operators_are_seen(run: tuple[Trace, dict]) -> None:
    trace, _ = run
    assert {k: v for k, v in trace.losses.items() if v and k != "unreadable"} == {}
    # Its batch cannot be read, once a call, and that is said.
    assert trace.losses["unreadable"] == len(trace.calls)
    assert trace.problems == []
    assert trace.meta.plan.ops.mode == "site"
    assert trace.graphs["complete"].all()
    assert (trace.graphs["threads_seen"] == 2).all()


def test_tokens_agree_with_the_server(run: tuple[Trace, dict]) -> None:
    """This engine is newer than any whose batch is known: tokens come from the graphs."""
    trace, said = run
    calls = trace.calls
    # The server tries its cache with a call of its own before the request.
    prefills = calls[calls["phase"] == "prefill"]["n_tokens"]
    assert prefills.iloc[-1] == said["usage"]["prompt_tokens"]
    decoded = calls[calls["phase"] == "decode"]["n_tokens"].sum()
    # The last token is sampled but need not be decoded.
    assert said["usage"]["completion_tokens"] - 1 <= decoded <= said["usage"]["completion_tokens"]


def test_names_and_shapes_are_those_of_the_model(run: tuple[Trace, dict]) -> None:
    nodes = run[0].nodes
    assert {"Qcur-0", "ffn_out-29", "result_output"} <= set(nodes["name"])
    head = nodes[nodes["name"] == "result_output"]
    assert set(head["ne0"]) == {49152}
    assert set(head["weight"]) == {"token_embd.weight"}
    assert set(nodes[nodes["op"] == "MUL_MAT"]["layer"]) >= set(range(30))
