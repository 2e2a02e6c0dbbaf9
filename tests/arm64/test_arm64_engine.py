"""The real llama.cpp on arm64, where the compiler inlines the barrier: whole graphs, no loss."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from machine import RUN, Recorded

from profinfer.model.selfcheck import checks
from profinfer.model.trace import Trace

Profinfer = Callable[..., subprocess.CompletedProcess[str]]
MODELS = ("tiny-dense", "tiny-moe")


@pytest.mark.parametrize("model", MODELS)
def test_every_node_of_every_graph(engine: Recorded, model: str) -> None:
    trace = engine.trace(model)
    assert {k: v for k, v in trace.losses.items() if v} == {}
    # How much of the time operators explain is a matter of how slow the emulator is.
    failed = [check.text for check in checks(trace) if not check.ok and check.name != "explained"]
    assert failed == []
    assert trace.graphs["complete"].all() and (trace.graphs["threads_seen"] == 2).all()
    phases = trace.calls["phase"].astype(str).value_counts()
    assert (phases["prefill"], phases["decode"]) == (1, 5)


@pytest.mark.parametrize("model", MODELS)
def test_counters_of_a_real_engine(engine: Recorded, model: str) -> None:
    trace = engine.trace(model)
    assert trace.counters.notna().to_numpy().all()
    assert trace.counters["cycles"].sum() > 0


@pytest.mark.parametrize("model", MODELS)
def test_the_same_graphs_as_on_x86(
    engine: Recorded, model: str, llama_bin: Path, run_profinfer: Profinfer, tmp_path: Path
) -> None:
    """The same engine and model recorded here: the same nodes and operators, one for one."""
    command = [llama_bin / "llama-completion", "-m", engine.folder / "models" / f"{model}.gguf"]
    done = run_profinfer("record", "-o", tmp_path / "x.pf", "--", *command, *RUN.split(), input="")
    assert done.returncode == 0, done.stderr
    there, here = engine.trace(model), Trace.open(tmp_path / "x.pf")
    assert here.meta.host.machine != there.meta.host.machine
    assert list(there.calls["n_tokens"]) == list(here.calls["n_tokens"])
    assert len(there.ops) == len(here.ops) > 500
    names = ["idx", "op", "name", "type", "shape", "role", "layer"]
    nodes = [
        t.nodes.merge(t.graphs[["graph_id", "def_id"]], on="def_id").merge(
            t.op_walls[["graph_id", "node_id", "fused"]], on=["graph_id", "node_id"]
        )
        for t in (there, here)
    ]
    rows = [n.sort_values(["graph_id", "idx"])[[*names, "fused"]].astype(str) for n in nodes]
    assert len(rows[0]) == len(there.op_walls)
    assert rows[0].to_numpy().tolist() == rows[1].to_numpy().tolist()
