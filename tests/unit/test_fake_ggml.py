"""The C target does what it says: its own measurements agree with its plan."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None or shutil.which("make") is None, reason="needs cc and make"
)


def truth(program: Path, *args: str) -> Any:
    done = subprocess.run([program, *args], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_node_runs_once_per_thread_and_call(fake_ggml: Path) -> None:
    (ctx,) = truth(fake_ggml, "--tokens", "6", "--vary", "--tail")["contexts"]
    calls, defs = ctx["calls"], ctx["defs"]
    assert [call["n_tokens"] for call in calls] == [2, 7, *[1] * 6]
    assert [call["pos_first"] for call in calls] == [0, 0, *range(7, 13)]
    assert len(ctx["samples"]) == 7 and ctx["ops_dropped"] == 0
    got: dict[tuple[int, int], list[int]] = {}
    covered: dict[tuple[int, int], int] = {}
    for call, idx, thread, fused, begin, end, _count in ctx["ops"]:
        got.setdefault((call, thread), []).append(idx)
        covered[call, thread] = covered.get((call, thread), 0) + fused
        node = defs[calls[call]["def"]]["nodes"][idx]
        assert not node["skipped"] and node["op"] != "RMS_NORM"
        assert end - begin >= node["planned_ns"][thread]
        assert calls[call]["begin_ns"] <= begin and end <= calls[call]["end_ns"]
    for call, record in enumerate(calls):
        nodes = defs[record["def"]]["nodes"]
        run = [node["idx"] for node in nodes if not node["skipped"]]
        for thread in (0, 1):
            assert got[call, thread] == [i for i in run if nodes[i]["op"] != "RMS_NORM"]
            assert covered[call, thread] == len(run)


def test_kv_length_grows_and_depth_varies(fake_ggml: Path) -> None:
    (ctx,) = truth(fake_ggml, "--tokens", "9", "--warmup", "none", "--no-ops")["contexts"]
    kv = []
    for call in ctx["calls"]:
        nodes = ctx["defs"][call["def"]]["nodes"]
        kv.append(next(node["ne"][0] for node in nodes if node["name"] == "kq-0"))
    assert kv == [8, 8, 12, 12, 12, 12, 16, 16, 16, 16]


def test_modes_and_variants(fake_ggml: Path, build_fake_ggml: Any) -> None:
    quick = ["--tokens", "2", "--base-us", "1"]
    run = [fake_ggml, *quick, "--mode"]
    crashed = subprocess.run([*run, "crash"], capture_output=True)
    assert crashed.returncode == -signal.SIGSEGV and not crashed.stdout
    assert subprocess.run([*run, "exit3"], capture_output=True).returncode == 3
    assert truth(fake_ggml, "--mode", "idle")["contexts"] == []
    assert len(truth(fake_ggml, *quick, "--contexts", "2", "--splits", "3")["contexts"]) == 2
    one = build_fake_ggml(static=True, defs="-DFAKE_OLD_LOOP")
    assert not list(one.parent.glob("*.so*"))
    old = truth(one, *quick)["contexts"][0]
    assert any(old["defs"][0]["nodes"][idx]["flags"] == 0 for _, idx, *_ in old["ops"])


def test_loop_ends_an_operator_with_a_real_call(fake_ggml: Path) -> None:
    """The shape that profinfer looks for: compare with n_nodes, jump, call ggml_barrier."""
    if shutil.which("objdump") is None:
        pytest.skip("needs objdump")
    listing = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", fake_ggml.parent / "libggml-cpu.so.0"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    body = listing.split("<ggml_graph_compute_thread", 1)[1].split("\n\n", 1)[0].splitlines()
    calls = [i for i, line in enumerate(body) if "call" in line and "<ggml_barrier" in line]
    assert len(calls) == 3  # inside MUL_MAT, after a node, after the loop
    loop = [i for i in calls if any("cmp" in line and "0x4(" in line for line in body[i - 4 : i])]
    assert len(loop) == 1
