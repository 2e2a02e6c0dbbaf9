"""The graph of real models: the engine's own nodes, no cycle, drawn, compared, flows of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from engine_dump import assert_same_graph, dumped_nodes
from perfetto_check import check

from profinfer.analysis.layerpattern import groups
from profinfer.analysis.opgraph import OpGraph, definitions, op_graph
from profinfer.model.trace import Trace
from profinfer.render.svg import layer_svg

pytestmark = pytest.mark.e2e

PROMPT = ["-p", "hello world", "-t", "2"]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def traces(tmp_path_factory, llama_bin: Path, smollm2: Path, tiny_models, run_profinfer):
    folder, out = tmp_path_factory.mktemp("graphs"), {}
    models = {
        "smollm2": smollm2,
        "dense": tiny_models["tiny-dense"],
        "moe": tiny_models["tiny-moe"],
    }
    for name, model in models.items():
        path = folder / f"{name}.pf"
        program = [llama_bin / "llama-completion", "-m", model, *PROMPT, "-n", "12"]
        more = ["-no-cnv", "--ignore-eos", "--temp", "0"]
        counters = ["--counters", "task-clock,page-faults"] if name == "smollm2" else []
        done = run_profinfer("record", *counters, "-o", path, "--", *program, *more, timeout=400)
        assert done.returncode == 0, done.stderr
        out[name] = Trace.open(path)
    return out


def decode_graph(trace: Trace) -> OpGraph:
    selection = trace.select(phase="decode")
    return op_graph(trace, int(definitions(trace, selection)["def_id"].iloc[0]), selection)


def test_the_graph_is_the_engines(traces: dict[str, Trace], llama_bin: Path, smollm2: Path) -> None:
    trace = traces["smollm2"]
    dumped = dumped_nodes(
        [str(llama_bin / "llama-eval-callback"), "-m", str(smollm2), *PROMPT, "-n", "1"]
    )
    selection = trace.select(phase="prefill")
    graph = op_graph(trace, int(definitions(trace, selection)["def_id"].iloc[0]), selection)
    assert_same_graph(graph.nodes, dumped, at_least=0.9)
    engine = trace.graphs[trace.graphs["def_id"] == graph.def_id]
    assert set(engine["n_nodes"]) == {len(graph)}


@pytest.mark.parametrize("name", ["smollm2", "dense", "moe"])
def test_it_is_acyclic_and_runs_in_the_order_of_its_edges(
    traces: dict[str, Trace], name: str
) -> None:
    graph = decode_graph(traces[name])
    assert graph.whole.acyclic and graph.dag.acyclic
    assert (graph.every.src < graph.every.dst).all()
    assert 0 < graph.paths.length <= graph.total_ns
    # The last operator is what everything was for.
    assert graph.critical[graph.works.nonzero()[0][-1]]
    # Each layer's attention comes after both of its caches were written.
    ops, names = graph.texts("op"), graph.texts("name")
    writes = {n: i for i, (o, n) in enumerate(zip(ops, names, strict=True)) if o == "SET_ROWS"}
    layers = graph.nodes["layer"].max() + 1
    assert len(writes) == 2 * layers
    memory = set(zip(graph.folded.src[graph.folded.memory].tolist(),
                     graph.folded.dst[graph.folded.memory].tolist(), strict=True))  # fmt: skip
    assert {src for src, _ in memory} == set(writes.values())


def test_layers_of_smollm2_are_alike(traces: dict[str, Trace]) -> None:
    found = groups(decode_graph(traces["smollm2"]))
    assert len(found[0].layers) >= 28
    assert sum(len(g.layers) for g in found) == 30


def test_a_layer_is_drawn(traces: dict[str, Trace]) -> None:
    graph = decode_graph(traces["smollm2"])
    text = layer_svg(graph, 3)
    assert text.startswith("<svg")
    root = ET.fromstring(text)
    drawn = {g.get("id", "") for g in root.iter(f"{SVG}g") if g.get("class") == "node"}
    layer = graph.nodes["layer"].to_numpy()
    wanted = {f"node{i}" for i in ((layer == 3) & graph.works).nonzero()[0]}
    assert wanted <= drawn
    tips = " ".join(v for a in root.iter(f"{SVG}a") for k, v in a.attrib.items() if "title" in k)
    assert "critical path" in tips and "B/s" in tips


def test_the_command_draws_and_tells(traces: dict[str, Trace], tmp_path, run_profinfer) -> None:
    path = traces["smollm2"].path
    done = run_profinfer("graph", path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"layers 0-\d+ have the same \d+ operators", done.stdout)
    assert max(map(len, done.stdout.splitlines())) <= 80
    for suffix, magic in ((".svg", b"<?xml"), (".png", b"\x89PNG"), (".pdf", b"%PDF")):
        out = tmp_path / f"graph{suffix}"
        assert run_profinfer("graph", path, "-o", out).returncode == 0
        assert out.read_bytes().startswith(magic)


def test_dense_and_moe_compared(traces: dict[str, Trace], run_profinfer) -> None:
    done = run_profinfer("graph", traces["dense"].path, traces["moe"].path, "--format", "json")
    assert done.returncode == 0, done.stderr
    tables: dict[str, Any] = {t["name"]: t for t in json.loads(done.stdout)["results"]}
    rows = tables["graph_changes"]["rows"]
    added = {r["operator"].split()[0] for r in rows if r["change"] == "added"}
    assert {"MUL_MAT_ID", "ARGSORT", "SOFT_MAX"} <= added
    assert all(r["where"] == "layers" for r in rows if r["change"] == "added")
    same = run_profinfer("graph", traces["dense"].path, traces["dense"].path)
    assert "no operator is missing, and none differs" in same.stdout


def test_flows_of_a_token_are_the_edges_of_its_graph(
    traces: dict[str, Trace], tmp_path, run_profinfer
) -> None:
    trace, out = traces["smollm2"], tmp_path / "t.pftrace"
    done = run_profinfer("export", trace.path, "-o", out, "--tokens", "3", "--flows")
    assert done.returncode == 0, done.stderr
    report = check(out.read_bytes())
    assert report.problems == []
    graph = decode_graph(trace)
    into = graph.nodes["into"].to_numpy()
    edges = {
        (int(into[a]), int(into[b]))
        for a, b in zip(graph.folded.src, graph.folded.dst, strict=True)
        if into[a] != into[b]
    }
    found = {(f.source.args["node"], f.target.args["node"]) for f in report.flows}
    assert found == edges
    ops = [s for s in report.slices if "op" in s.args]
    counted = [s.args["task-clock"] for s in ops if "task-clock" in s.args]
    assert len(counted) > 0.9 * len(ops)
    names = {d.name for d in report.tracks.values() if d.HasField("counter")}
    assert {"on CPU (task-clock)", "page-faults"} <= names


def test_products_with_experts_name_them(traces: dict[str, Trace], tmp_path, run_profinfer) -> None:
    trace, out = traces["moe"], tmp_path / "moe.pftrace"
    done = run_profinfer("export", trace.path, "-o", out, "--phase", "decode")
    assert done.returncode == 0, done.stderr
    report = check(out.read_bytes())
    assert report.problems == []
    products = [s for s in report.slices if str(s.args.get("op", "")) == "MUL_MAT_ID"]
    chosen = trace.experts["slot"].max() + 1  # a decode step has one token
    assert products
    assert all(len(s.args["experts"].split(", ")) == chosen for s in products)


def test_view_serves_the_timeline_once(traces: dict[str, Trace]) -> None:
    command = [sys.executable, "-m", "profinfer", "view", str(traces["dense"].path), "--no-browser"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    said = ""
    try:
        for line in server.stderr:
            said += line
            if "Waiting" in line:
                break
        url = re.search(r"url=(\S+)", said)
        assert url, said
        request = urllib.request.Request(url[1], headers={"Origin": "https://ui.perfetto.dev"})
        data = urllib.request.urlopen(request, timeout=20).read()
        assert server.wait(20) == 0
    finally:
        server.kill()
        server.stderr.close()
    assert check(data).problems == []
