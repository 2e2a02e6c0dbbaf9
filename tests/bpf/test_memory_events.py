"""A target that reads a known number of pages of a file: each fault and each read is seen."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from profinfer.analysis.memoryfindings import findings
from profinfer.model.memory import read_by_tensor
from profinfer.model.trace import Trace

pytestmark = pytest.mark.bpf

LAYERS, PAGE = 2, os.sysconf("SC_PAGE_SIZE")
# What a MUL_MAT of the fake engine reads: every page of its weights. Bytes of each, see build().
_LAYER = {"attn_q": 4352, "attn_k": 2176, "attn_output": 4352}
_LAYER |= {"ffn_gate": 8704, "ffn_up": 8704, "ffn_down": 8704}
SIZES = {f"blk.{il}.{name}.weight": n for il in range(LAYERS) for name, n in _LAYER.items()}
SIZES["output.weight"] = 40960
PAGES = {name: -(-size // PAGE) for name, size in SIZES.items()}


def drop_from_cache(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with room for the weights, on a disk (a temporary folder may be in memory)."""
    path = tmp_path_factory.mktemp("weights") / "weights.bin"
    path.write_bytes(b"\1" * (64 << 20))
    return path


def record(run_profinfer, fake_ggml: Path, weights: Path, path: Path, *options: str) -> Trace:
    command = [fake_ggml, "--layers", str(LAYERS), "--weights", weights]
    out = path.with_suffix(".json")
    done = run_profinfer("record", *options, "-o", path, "--", *command, "--out", out)
    assert done.returncode == 0, done.stderr
    trace = Trace.open(path)
    assert {k: v for k, v in trace.losses.items() if v} == {} and trace.problems == []
    return trace


def on_weights(trace: Trace) -> pd.DataFrame:
    faults = trace.faults
    return faults[(faults["kind"] == "weight").to_numpy()]


@pytest.mark.skipif(PAGE != 4096, reason="sizes are for pages of 4 KiB")
def test_each_page_of_a_cold_file_is_a_major_fault(
    run_profinfer, fake_ggml: Path, weights: Path, tmp_path: Path
) -> None:
    drop_from_cache(weights)
    trace = record(run_profinfer, fake_ggml, weights, tmp_path / "cold.pf")
    hit = on_weights(trace)
    assert hit["major"].all() and (hit["faults"] == 1).all()
    assert hit["tensor"].value_counts().to_dict() == PAGES
    # In the first graph, on the operator that reads the tensor, on the thread whose turn it is.
    assert (hit["graph_id"] == 0).all()
    node = trace.nodes.set_index("node_id").loc[hit["node_id"]]
    assert (node["weight"].astype(str).to_numpy() == hit["tensor"].to_numpy()).all()
    ops = trace.ops[trace.ops["graph_id"] == 0].set_index(["node_id", "tid"])
    op = ops.loc[pd.MultiIndex.from_frame(hit[["node_id", "tid"]])]
    assert (op["begin_ns"].to_numpy() <= hit["ts_ns"].to_numpy()).all()
    assert (hit["end_ns"].to_numpy() <= op["end_ns"].to_numpy()).all()
    assert (hit["held_ns"] == hit["end_ns"] - hit["ts_ns"]).all() and (hit["held_ns"] > 0).all()
    # Nothing before, behind or beside the pages is touched.
    begin = trace.residents.tensors.set_index("name")["address"]
    into = hit["address"].to_numpy() - begin[hit["tensor"]].to_numpy()
    assert (into % PAGE == 0).all()


@pytest.mark.skipif(PAGE != 4096, reason="sizes are for pages of 4 KiB")
def test_each_page_of_a_cold_file_is_a_read(
    run_profinfer, fake_ggml: Path, weights: Path, tmp_path: Path
) -> None:
    drop_from_cache(weights)
    trace = record(run_profinfer, fake_ggml, weights, tmp_path / "cold.pf")
    why = trace.meta.memory["reads"].get("why")
    mine = trace.reads[(trace.reads["file"] == str(weights)).to_numpy()]
    if why is not None or (not len(mine) and trace.residence["read"].max() == 0):
        pytest.skip(f"no disk below {weights}, or {why}")
    assert (mine["bytes"] == PAGE).all()
    assert mine["tensor"].value_counts().to_dict() == PAGES
    faults = on_weights(trace)
    assert set(mine["file_offset"]) == set(faults["file_offset"] // PAGE * PAGE)
    assert (mine["node_id"].to_numpy() == faults["node_id"].to_numpy()).all()
    parts = read_by_tensor(trace.reads, trace.residents)
    assert parts.groupby("tensor")["bytes"].sum().max() == SIZES["output.weight"]
    assert "cold_weights" in {f.name for f in findings(trace)}


def test_a_warm_file_gives_minor_faults_only(
    run_profinfer, fake_ggml: Path, weights: Path, tmp_path: Path
) -> None:
    assert weights.read_bytes()
    trace = record(run_profinfer, fake_ggml, weights, tmp_path / "warm.pf")
    hit = on_weights(trace)
    assert len(hit) and not hit["major"].any()
    assert (hit["graph_id"] == 0).all()
    assert np.isin(hit["tensor"], list(PAGES)).all()
    assert not (trace.reads["file"] == str(weights)).any()
    assert findings(trace) == []


def test_anonymous_memory_is_counted_whole(
    run_profinfer, fake_ggml: Path, weights: Path, tmp_path: Path
) -> None:
    """Runs of minor faults that are still open when the target ends are in the trace too."""
    trace = record(run_profinfer, fake_ggml, weights, tmp_path / "t.pf")
    at_end = trace.residence.iloc[-1]
    seen = trace.faults[trace.faults["ts_ns"] <= at_end["ts_ns"]]
    # /proc counts the faults of system calls, and those before exec, as well.
    assert 50 < seen["faults"].sum() <= at_end["minor"] + at_end["major"]
    assert (trace.faults["end_ns"] >= trace.faults["ts_ns"]).all()


def test_faults_can_be_left_out(
    run_profinfer, fake_ggml: Path, weights: Path, tmp_path: Path
) -> None:
    trace = record(run_profinfer, fake_ggml, weights, tmp_path / "t.pf", "--no-faults")
    assert not trace.has_faults and not len(trace.faults) and not len(trace.reads)
    assert trace.meta.memory["why"] == "--no-faults"
    done = run_profinfer("report", tmp_path / "t.pf", "--faults")
    assert done.returncode != 0 and "--no-faults" in done.stderr and "Traceback" not in done.stderr


def test_a_running_process_is_joined_on_all_its_threads(
    run_profinfer, fake_ggml: Path, weights: Path, tmp_path: Path
) -> None:
    import subprocess
    import time

    drop_from_cache(weights)
    command = [fake_ggml, "--seconds", "6", "--no-ops", "--vary", "--weights", weights]
    with subprocess.Popen([*map(str, command), "--out", str(tmp_path / "o.json")]) as target:
        time.sleep(0.5)
        path = tmp_path / "t.pf"
        done = run_profinfer("record", "--pid", str(target.pid), "--duration", "1s", "-o", path)
        target.terminate()
    assert done.returncode == 0, done.stderr
    trace = Trace.open(path)
    assert trace.has_faults and len(trace.residence)
    assert trace.residents.tensors["file"].eq(str(weights)).any()
