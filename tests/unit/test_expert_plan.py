"""Whether an engine lets us read expert ids, and what it says if not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from profinfer.capture.source import build_source
from profinfer.elf.modules import open_program
from profinfer.probes.experts import ids_type, no_experts
from profinfer.probes.parts import OpsPlan
from profinfer.probes.plan import ProbePlan, make_plan


@pytest.fixture(scope="module")
def plan(fake_ggml: Path) -> ProbePlan:
    return make_plan(open_program(str(fake_ggml)))


def test_it_can_be_read(plan: ProbePlan) -> None:
    assert no_experts(plan) is None and ids_type(plan.facts) == 26
    source = build_source(plan)
    assert source.tail_calls["expert_steps"] == "pf_expert_step"
    said = dict(flag[2:].split("=") for flag in source.cflags)
    assert said["PF_MUL_MAT_ID"] == str(plan.facts.ops.index("MUL_MAT_ID"))
    assert said["PF_TENSOR_IDS"] == str(152 + 16) and said["PF_FLAG_COMPUTE"] == "16"


def test_nothing_of_it_is_compiled_otherwise(plan: ProbePlan) -> None:
    without = build_source(plan, experts=False)
    assert "PF_MUL_MAT_ID" not in " ".join(without.cflags)
    assert "pf_expert_step" not in without.text
    assert set(without.tail_calls) == {"batch_steps", "steps"}


def test_why_not(plan: ProbePlan, fake_ggml: Path) -> None:
    graph = make_plan(open_program(str(fake_ggml)), level="graph")
    assert no_experts(graph) == "operators are not seen: level graph"
    cases = {
        "the layout": {"layout": None},
        "operators are not seen: no such loop": {"ops": OpsPlan("none", why="no such loop")},
        "graphs are not seen": {
            "probes": tuple(p for p in plan.probes if p.role != "graph")
        },
        "no operator MUL_MAT_ID": {"facts": replace(plan.facts, ops=("NONE", "MUL_MAT"))},
        "types name no i32": {"facts": replace(plan.facts, types=())},
    }  # fmt: skip
    for said, change in cases.items():
        other = replace(plan, **change)  # type: ignore[arg-type]
        assert said in (no_experts(other) or "")
        if other.layout is not None:
            assert "pf_expert_step" not in build_source(other).text
