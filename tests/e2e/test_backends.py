"""Other backends for real: BLAS of two makes on a prompt, RPC on loopback, two models at once.

The engine of the other tests loads them as plug-ins (tools/setup.sh backends).
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import LLAMA_BIN, REPO, TERMINAL
from llama_server import free_port

from profinfer.analysis.backendwork import operators
from profinfer.analysis.contexts import checks
from profinfer.analysis.hosttime import host_time
from profinfer.model.trace import Trace

pytestmark = pytest.mark.e2e

PLUGINS = LLAMA_BIN.parents[1] / "backends"
PROMPT_TOKENS = 96


@pytest.fixture(scope="module")
def plugins() -> Path:
    if not (PLUGINS / "bin" / "rpc-server").is_file():
        pytest.skip(f"needs {PLUGINS} (run: make setup)")
    return PLUGINS


@pytest.fixture(scope="module")
def blas(tmp_path_factory, plugins: Path, llama_bin: Path, smollm2: Path, run_profinfer):
    """make -> trace of a prompt of 96 tokens and 2 more: OpenBLAS, BLIS, none."""
    folder, out = tmp_path_factory.mktemp("blas"), {}
    for make in ("openblas", "blis", "none"):
        path = folder / f"{make}.pf"
        load = {"GGML_BACKEND_PATH": str(plugins / make / "libggml-blas.so")}
        bench = [llama_bin / "llama-bench", "-m", smollm2, "-t", "2", "-p", str(PROMPT_TOKENS)]
        done = run_profinfer(
            "record", "-o", path, "--", *bench, "-n", "2", "-r", "1",
            env=load if make != "none" else {}, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        out[make] = Trace.open(path)
    return out


@pytest.mark.parametrize("make", ["openblas", "blis", "none"])
def test_nothing_is_lost(blas: dict[str, Trace], make: str) -> None:
    trace = blas[make]
    assert {k: v for k, v in trace.losses.items() if v} == {}
    assert trace.problems == []
    assert trace.graphs["complete"].all()


@pytest.mark.parametrize("make", ["openblas", "blis"])
def test_blas_computes_the_products_of_the_prompt_and_nothing_else(
    blas: dict[str, Trace], make: str
) -> None:
    trace = blas[make]
    splits, nodes = trace.splits, trace.nodes
    mine = splits[splits["backend"] == "BLAS"]
    assert len(mine) and (splits["backend"].isin(["BLAS", "CPU"])).all()
    calls = trace.calls
    assert set(calls["n_tokens"].to_numpy()[mine["call_id"].unique()]) == {PROMPT_TOKENS}
    ran = nodes[nodes["def_id"].isin(mine["def_id"])]
    assert set(ran["op"][~ran["empty"]]) == {"MUL_MAT"}
    assert (mine["def_id"] >= 0).all()
    # Its nodes were read when each split began: their number is the split's own.
    count = nodes.groupby("def_id").size()
    assert (count.reindex(mine["def_id"]).to_numpy() == mine["n_nodes"].to_numpy()).all()


@pytest.mark.parametrize("make", ["openblas", "blis"])
def test_every_gemm_is_found_in_its_operator(blas: dict[str, Trace], make: str) -> None:
    trace = blas[make]
    work = trace.backend_work
    gemm = work[work["kind"] == "gemm"]
    ops = trace.backend_ops.merge(trace.nodes, on="node_id")
    assert len(ops) == len(gemm) > 100  # one gemm an operator: no heads in these products
    # m, n, k of the call are the operator's: tokens, rows of the weight, length.
    order = gemm.sort_values("begin_ns")
    assert (order["m"].to_numpy() == ops["ne1"].to_numpy()).all()
    assert (order["n"].to_numpy() == ops["ne0"].to_numpy()).all()
    k = ops["src0_ne"].astype(str).str.split("x").str[0].astype(int)
    assert (order["k"].to_numpy() == k.to_numpy()).all()
    assert (ops["library_ns"] > 0).all()
    assert (ops["library_ns"] <= ops["end_ns"] - ops["begin_ns"]).all()
    # Weights are quantised: making them float takes a part of the operator, outside the library.
    spent = (ops["end_ns"] - ops["begin_ns"]).sum()
    assert 0.05 < ops["library_ns"].sum() / spent < 0.999
    split = trace.splits.iloc[ops["split_id"].to_numpy()]
    assert (ops["begin_ns"].to_numpy() >= split["begin_ns"].to_numpy()).all()
    assert (ops["end_ns"].to_numpy() <= split["end_ns"].to_numpy()).all()
    # Of two threads on two CPUs: somebody computed, and never more than there are.
    busy = operators(trace, trace.select()).frame["threads"]
    assert len(busy) and busy.between(0.3, 2.05).all()


def test_cpu_and_blas_together_run_the_whole_graph(blas: dict[str, Trace]) -> None:
    with_blas, without = blas["openblas"], blas["none"]
    assert set(without.splits["backend"]) == {"CPU"}

    def ran(trace: Trace) -> int:
        calls = trace.calls
        last = calls[(calls["n_tokens"] == PROMPT_TOKENS).to_numpy()]["call_id"].max()
        mine = trace.splits[(trace.splits["call_id"] == last).to_numpy()]
        return int(mine["n_nodes"].sum())

    assert ran(with_blas) == ran(without)


def test_report_by_backend_and_against(blas: dict[str, Trace], run_profinfer) -> None:
    here, there = (str(blas[k].path) for k in ("openblas", "none"))
    done = run_profinfer("report", here, "--by", "backend", "--phase", "prefill")
    assert done.returncode == 0, done.stderr
    assert re.search(r"^  BLAS +\d+", done.stdout, re.M) and "threads" in done.stdout
    assert "CPU" in done.stdout and "MUL_MAT" in done.stdout
    done = run_profinfer(
        "report", here, "--by", "backend", "--phase", "prefill", "--against", there
    )
    assert done.returncode == 0, done.stderr
    assert "BLAS/CPU" in done.stdout
    assert re.search(r"on BLAS .* (won|lost) ", done.stdout)
    assert re.search(r"a call is .*(shorter|longer)", done.stdout)
    done = run_profinfer("report", here, "--against", there)
    assert done.returncode != 0 and "--by backend" in done.stderr


# --- RPC ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rpc(tmp_path_factory, plugins: Path, llama_bin: Path, smollm2: Path, run_profinfer):
    """(client's, server's trace): half of the layers offloaded over loopback."""
    folder = tmp_path_factory.mktemp("rpc")
    port = free_port()
    load = {"GGML_BACKEND_PATH": str(plugins / "rpc" / "libggml-rpc.so")}
    command = [sys.executable, "-m", "profinfer", "record", "-o", str(folder / "server.pf"), "--"]
    server = [str(plugins / "bin" / "rpc-server"), "-H", "127.0.0.1", "-p", str(port), "-t", "1"]
    with subprocess.Popen(
        [*command, *server],
        env=os.environ | load | TERMINAL | {"PYTHONPATH": str(REPO)},
        cwd=folder, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        try:
            _wait_for(port, process)
            bench = [llama_bin / "llama-bench", "-m", smollm2, "-t", "1", "-p", "32", "-n", "4"]
            done = run_profinfer(
                "record", "-o", folder / "client.pf", "--",
                *bench, "-r", "1", "-ngl", "15", "-rpc", f"127.0.0.1:{port}",
                env=load, timeout=300,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            (folder / "bench.txt").write_text(done.stdout)
        finally:
            process.send_signal(signal.SIGINT)
            said = process.stderr.read()
            process.wait(timeout=60)
    assert (folder / "server.pf").is_file(), said
    return Trace.open(folder / "client.pf"), Trace.open(folder / "server.pf")


def _wait_for(port: int, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert process.poll() is None, "the server ended"
        with socket.socket() as attempt:
            if attempt.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise AssertionError("the server did not come up")


def test_rpc_client(rpc: tuple[Trace, Trace]) -> None:
    client, _ = rpc
    assert {k: v for k, v in client.losses.items() if v} == {}
    splits = client.splits
    away = splits[splits["backend"] == "RPC"]
    assert len(away) == len(client.calls)
    assert (away["done_ns"] > away["end_ns"]).all()  # it is waited for, after it was handed over
    layers = client.nodes[client.nodes["def_id"].isin(away["def_id"])]["layer"]
    assert layers[layers >= 0].min() >= 15
    copies = client.copies
    sent = copies[(copies["target"] == "RPC") & copies["outermost"] & (copies["call_id"] >= 0)]
    assert (sent["source"] == "CPU").all() and sent["crosses"].all()
    assert sent["tensor"].str.contains("inp_pos").any()
    back = copies[(copies["source"] == "RPC").to_numpy() & copies["outermost"].to_numpy()]
    assert set(back["tensor"]) == {"result_output"}
    assert (back["bytes"] == 49152 * 4).all()
    host = host_time(client)
    inside = (client.calls["end_ns"] - client.calls["begin_ns"]).to_numpy()
    assert (host.work + host.copies + host.waits <= inside).all()


def test_rpc_speeds_are_those_that_the_bench_prints(rpc: tuple[Trace, Trace]) -> None:
    """It stops its clock when llama_synchronize has returned, long after llama_decode has."""
    client, _ = rpc
    text = (client.path.parent / "bench.txt").read_text()
    said = re.findall(r"(pp|tg)(\d+) \|\s*([\d.]+) ±", text)
    assert [(kind, int(n)) for kind, n, _ in said] == [("pp", 32), ("tg", 4)]
    calls = client.calls
    assert (calls["done_ns"] > calls["end_ns"]).all()
    took = (calls["done_ns"] - calls["begin_ns"]).to_numpy()
    prompt = took[(calls["n_tokens"] == 32).to_numpy()][-1]
    tokens = took[-4:]
    assert (calls["n_tokens"].iloc[-4:] == 1).all()
    assert 32e9 / prompt == pytest.approx(float(said[0][2]), rel=0.05)
    assert 4e9 / tokens.sum() == pytest.approx(float(said[1][2]), rel=0.05)


def test_rpc_bytes_agree_on_both_sides(rpc: tuple[Trace, Trace]) -> None:
    client, server = rpc

    def commands(trace: Trace, kind: str) -> dict[str, int]:
        work = trace.backend_work
        mine = work[(work["kind"] == kind).to_numpy() & (work["command"] != "").to_numpy()]
        return mine["command"].astype(str).value_counts().to_dict()

    asked, served = commands(client, "send"), commands(server, "serve")
    for command in ("GRAPH_COMPUTE", "GRAPH_RECOMPUTE", "GET_TENSOR"):
        # The recording of the client begins with its first context: no graph ran before.
        assert asked[command] == served[command] > 0
    assert asked["SET_TENSOR"] <= served["SET_TENSOR"]  # the weights came before
    # Both graphs of a call on one clock: the server computes while the client has given it work.
    away = client.splits[client.splits["backend"] == "RPC"]
    graphs = server.graphs
    assert len(graphs) == len(away)
    begin, end = graphs["begin_ns"].to_numpy(), graphs["end_ns"].to_numpy()
    assert (begin > away["begin_ns"].to_numpy()).all()
    assert (end < away["done_ns"].to_numpy()).all()


def test_rpc_reports(rpc: tuple[Trace, Trace], run_profinfer) -> None:
    client, server = rpc
    done = run_profinfer("report", client.path, "--by", "backend", "--phase", "decode")
    assert done.returncode == 0, done.stderr
    for word in ("RPC", "Copies between backends", "On the wire", "GET_TENSOR", "inp_pos"):
        assert word in done.stdout
    done = run_profinfer("report", server.path, "--by", "backend")
    assert done.returncode == 0, done.stderr
    assert "GRAPH_COMPUTE" in done.stdout
    ledger = run_profinfer("report", client.path).stdout
    assert "waiting for other backends" in ledger
    assert not re.search(r"between calls +-", ledger)


# --- several models ------------------------------------------------------------------------


def test_drafts_are_told_from_their_target(
    tmp_path: Path, plugins: Path, tiny_models: dict[str, Path], run_profinfer
) -> None:
    target, draft = tiny_models["tiny-dense-q8_0"], tiny_models["tiny-dense-q4_0"]
    program = [plugins / "bin" / "llama-speculative-simple", "-m", target, "-md", draft]
    more = ["--spec-type", "draft-simple", "--spec-draft-n-max", "4", "-t", "2", "-n", "40"]
    # On a busy machine the engine ends before its log thread has written what it counted.
    for _ in range(8):
        done = run_profinfer(
            "record", "--force", "-o", tmp_path / "t.pf", "--",
            *program, *more, "-p", "hello and the", "--temp", "0", timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        said = {k: int(v) for k, v in re.findall(r"n_(drafted|accept) +=\s*(\d+)", done.stderr)}
        if len(said) == 2:
            break
    trace = Trace.open(tmp_path / "t.pf")
    found = checks(trace)
    assert found["ctx"].nunique() == 1
    assert found["drafted"].sum() == said["drafted"]
    unknown = found["accepted"].isna()
    assert unknown.sum() <= 1  # of the last one nothing tells
    missing = said["accept"] - int(found["accepted"].sum())
    assert 0 <= missing <= found["drafted"][unknown].sum()
    # Only the two prompts are prefills: what was not accepted is no new one.
    real = trace.calls[trace.calls["phase"] != "warmup"]
    assert (real["phase"] == "prefill").sum() <= 4
    assert real["generation"].max() <= 1
    report = run_profinfer("report", tmp_path / "t.pf", "--by", "context")
    assert re.search(r"0 target +4 ", report.stdout) and re.search(r"1 draft +4 ", report.stdout)
    assert "drafted tokens were accepted" in report.stdout


def test_embeddings(tmp_path: Path, plugins: Path, smollm2: Path, run_profinfer) -> None:
    program = [plugins / "bin" / "llama-embedding", "-m", smollm2, "-t", "2", "-p", "hello there"]
    done = run_profinfer("record", "-o", tmp_path / "t.pf", "--", *program, "--pooling", "mean")
    assert done.returncode == 0, done.stderr
    trace = Trace.open(tmp_path / "t.pf")
    assert {k: v for k, v in trace.losses.items() if v} == {}
    real = trace.calls[trace.calls["phase"] != "warmup"]
    assert len(real) == 1 and "verify" not in set(real["phase"])
    graph = trace.graphs[trace.graphs["call_id"] == int(real["call_id"].iloc[0])]
    names = trace.nodes[trace.nodes["def_id"] == int(graph["def_id"].iloc[0])]["name"]
    assert (names == "result_embd_pooled").any()
    assert not np.any(trace.copies["crosses"])
