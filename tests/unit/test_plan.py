"""The plan for a whole program: the C target in its variants, and the real engine."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from conftest import LLAMA_BIN

from profinfer.elf.modules import open_program
from profinfer.errors import TargetError
from profinfer.probes.plan import Probe, ProbePlan, hit_cost, make_plan

pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None or shutil.which("make") is None, reason="needs cc and make"
)


def plan_of(program: Path, level: str = "op") -> ProbePlan:
    return make_plan(open_program(program), level)


def by_role(plan: ProbePlan) -> dict[str, list[Probe]]:
    found: dict[str, list[Probe]] = {}
    for probe in plan.probes:
        found.setdefault(probe.role, []).append(probe)
    return found


@pytest.mark.parametrize("variant", [
    {}, {"static": True}, {"cflags": "-fcf-protection=full"}, {"cflags": "-O3 -march=x86-64-v3"},
])  # fmt: skip
def test_current_engine(build_fake_ggml: Any, variant: dict[str, Any]) -> None:
    plan = plan_of(build_fake_ggml(**variant))
    assert plan.layout is not None and plan.layout.flags["compute"] == 16
    assert (plan.ops.mode, plan.ops.barrier_always) == ("site", False)
    roles = by_role(plan)
    assert [len(roles[f"op.{r}"]) for r in ("enter", "end", "leave")] == [1, 1, 1]
    assert plan.ops.cost_ns == roles["op.end"][0].cost_ns < 1000
    assert "ggml_barrier" in roles["op.end"][0].insn
    for role in ("call.batch", "sample", "split", "graph"):
        assert [p.kind for p in roles[role]] == ["uprobe", "uretprobe"]
    assert [p.kind for p in roles["leafs"]] == ["uprobe"]
    assert all(p.stack_delta == 0 for p in plan.probes if p.kind == "uretprobe")
    assert [p.id for p in plan.probes] == list(range(len(plan.probes)))


def test_old_engine(build_fake_ggml: Any) -> None:
    plan = plan_of(build_fake_ggml(defs="-DFAKE_OLD_LOOP"))
    assert (plan.ops.mode, plan.ops.barrier_always) == ("site", True)
    assert plan.layout is not None and "compute" not in plan.layout.flags
    assert [p.kind for p in by_role(plan)["op.leave"]] == ["uretprobe"]


def test_shifted_operators_are_read_from_the_binary(build_fake_ggml: Any) -> None:
    usual = plan_of(build_fake_ggml()).facts.ops
    shifted = plan_of(build_fake_ggml(defs="-DFAKE_SHIFT_OPS")).facts.ops
    assert sorted(usual) != sorted(shifted) or usual != shifted
    assert {"MUL_MAT", "RMS_NORM"} <= set(shifted)


def test_levels_include_less(build_fake_ggml: Any) -> None:
    program = build_fake_ggml()
    token, graph = plan_of(program, "token"), plan_of(program, "graph")
    assert {p.role.split(".")[0] for p in token.probes} == {"call", "sample", "warmup"}
    assert {p.role.split(".")[0] for p in graph.probes} >= {"split", "graph", "leafs", "call"}
    assert not any(p.role.startswith("op.") for p in graph.probes)
    assert graph.reads_graphs and not token.reads_graphs


def test_stripped_libraries_get_the_same_sites(build_fake_ggml: Any, tmp_path: Path) -> None:
    program = build_fake_ggml()
    for file in program.parent.iterdir():
        if file.is_file():
            subprocess.run(["strip", "-o", tmp_path / file.name, file], check=True)
    full, stripped = plan_of(program), plan_of(tmp_path / program.name)
    places = [[(p.role, p.kind, p.offset) for p in plan.probes] for plan in (full, stripped)]
    assert places[0] == places[1]
    assert full.facts == stripped.facts


def test_what_is_missing_is_said(build_fake_ggml: Any) -> None:
    skipped = {s.function: s.reason for s in plan_of(build_fake_ggml()).skipped}
    assert "no such function" in skipped["llama_process"]


def test_json_is_what_the_metadata_reads(build_fake_ggml: Any) -> None:
    from profinfer.tracefile.metadata import Engine, Plan

    plan = plan_of(build_fake_ggml())
    data = json.loads(json.dumps({"plan": plan.to_json(), "engine": plan.engine_json()}))
    read = Plan.from_json(data["plan"])
    assert read.ops.bias == plan.ops.bias and len(read.probes) == len(plan.probes)
    assert Engine.from_json(data["engine"]).ops == plan.facts.ops


NO_LOOP = """
struct p; struct t;
int ggml_cpu_extra_compute_forward(struct p *a, struct t *b) { return a && b; }
void ggml_barrier(void *p) { *(int *)p = 1; }
int ggml_graph_compute(void *g, void *c) { ggml_barrier(g); return c != 0; }
"""


def engine_without_loop(folder: Path, source: str) -> Path:
    """A library whose structs are proven but whose loop is not there."""
    from test_engine import ACCESSORS

    more = """
    struct graph { int size, n_nodes; int n_leafs; void *nodes; };
    void *ggml_graph_nodes(struct graph *g) { return g->nodes; }
    """
    (folder / "e.c").write_text(ACCESSORS + more + source)
    out = folder / "libggml.so"
    subprocess.run(["cc", "-O2", "-w", "-shared", "-fPIC", "-o", out, folder / "e.c"], check=True)
    return out


def test_pairs_where_the_loop_is_not_proven(tmp_path: Path) -> None:
    plan = plan_of(engine_without_loop(tmp_path, NO_LOOP))
    assert plan.ops.mode == "pair" and "no graph loop could be proven" in plan.ops.why
    assert {"op.begin", "op.barrier"} <= set(by_role(plan))


def test_no_pairs_where_the_barrier_is_inlined(tmp_path: Path) -> None:
    source = NO_LOOP.replace("ggml_barrier(g); return", "*(int *)g = 1; return")
    plan = plan_of(engine_without_loop(tmp_path, source))
    assert plan.ops.mode == "none" and "does not call ggml_barrier" in plan.ops.why
    assert not any(p.role.startswith("op.") for p in plan.probes)


def test_no_operators_and_why(tmp_path: Path) -> None:
    plan = plan_of(engine_without_loop(tmp_path, "int ggml_graph_compute(void *g) { return !g; }"))
    assert plan.ops.mode == "none" and "no function" in plan.ops.why
    assert any(s.role == "op.end" and s.reason == plan.ops.why for s in plan.skipped)
    assert "graph" in by_role(plan)


def test_unknown_structs_leave_the_token_level(tmp_path: Path) -> None:
    source = (
        "int llama_decode(void *c) { return !c; } int ggml_graph_compute(void *g) { return !g; }"
    )
    (tmp_path / "e.c").write_text(source)
    out = tmp_path / "libodd.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", out, tmp_path / "e.c"], check=True)
    plan = plan_of(out)
    assert plan.layout is None and plan.ops.mode == "none"
    assert set(by_role(plan)) == {"call.batch"}
    assert any(s.role == "graph" and "structs" in s.reason for s in plan.skipped)


def test_nothing_of_an_engine_is_an_error() -> None:
    with pytest.raises(TargetError, match="no ggml or llama") as caught:
        plan_of(Path("/bin/ls"))
    assert caught.value.hint


def test_a_shared_trap_is_counted_once() -> None:
    assert hit_cost("push", "uretprobe") - hit_cost("push", "uprobe") == 245
    assert hit_cost("push", "uretprobe", shared=True) == 245
    assert hit_cost(None, "uprobe") > 10 * hit_cost("call", "uprobe")


@pytest.mark.skipif(not LLAMA_BIN.is_dir(), reason="no llama.cpp build (run: make setup)")
def test_the_real_engine() -> None:
    plan = plan_of(LLAMA_BIN / "llama-completion")
    assert plan.layout is not None and plan.layout.cgraph["uid"] == 88
    assert plan.ops.mode == "site" and not plan.ops.barrier_always
    functions = {p.function for p in plan.probes}
    assert {"llama_decode", "llama_encode", "llama_process", "ggml_graph_compute"} <= functions
    stepped = [p.function for p in plan.probes if not p.emulated]
    # Both are rare: a context's warm-up, and waits for events of devices that have any.
    assert set(stepped) <= {"llama_set_warmup", "ggml_backend_event_synchronize"}


@pytest.mark.skipif(not LLAMA_BIN.is_dir(), reason="no llama.cpp build (run: make setup)")
def test_batches_are_read_at_every_level() -> None:
    """llama_process takes a struct of the engine, without which there are no tokens."""
    plan = plan_of(LLAMA_BIN / "llama-completion", "token")
    assert plan.layout is not None and {"tokens", "pos"} <= plan.layout.batch_ext.keys()
    assert not plan.reads_graphs


def test_tokens_that_cannot_be_counted_are_said(tmp_path: Path) -> None:
    (tmp_path / "e.c").write_text(
        "int llama_process(void *c, int t, void *b) { return !c; }"
        "int ggml_graph_compute(void *g) { return !g; }"
    )
    out = tmp_path / "libodd.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", out, tmp_path / "e.c"], check=True)
    skipped = {s.function: s.reason for s in plan_of(out, "token").skipped}
    assert "tokens are not counted" in skipped["struct llama_batch_ext"]
