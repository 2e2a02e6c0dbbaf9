"""Layer 2: from the images of a program to the probes it gets, and those it does not, and why.

Knows nothing of BPF: a probe names a role, and the capture layer has a handler for each.
"""

from __future__ import annotations

from collections import ChainMap

from profinfer.elf.modules import Program
from profinfer.errors import TargetError
from profinfer.probes.backend_catalog import BACKEND_SPECS, backends_apart
from profinfer.probes.catalog import SAMPLER_FALLBACK, SPECS
from profinfer.probes.cost import hit_cost
from profinfer.probes.debug_layout import debug_layout
from profinfer.probes.draft import Draft
from profinfer.probes.engine_facts import read_facts
from profinfer.probes.layout import choose_layout
from profinfer.probes.operator_site import Location
from profinfer.probes.parts import OpsPlan, Probe, ProbePlan, Skipped
from profinfer.probes.spec import Level

__all__ = ["Location", "OpsPlan", "Probe", "ProbePlan", "Skipped", "hit_cost", "make_plan"]


def make_plan(program: Program, level: str = "op") -> ProbePlan:
    """Decide what to probe in a program.

    Args:
        program: from ``elf.modules.open_program``.
        level: ``token``, ``graph`` or ``op``.

    Raises:
        TargetError: there is nothing of an engine to probe.
    """
    wanted = Level[level]
    facts = read_facts(program.images)
    functions = ChainMap(*(i.elf.functions for i in program.images))
    layout, why_not = choose_layout(facts, functions, debug_layout(program.images))
    draft = Draft(program.images)
    played = {role for image in program.images for role in image.roles}
    apart = backends_apart(functions)
    for spec in (*SPECS, *BACKEND_SPECS):
        if spec.level > wanted or (spec.within and spec.within not in played):
            continue
        if spec.apart and not apart:
            if not spec.optional:
                draft.skip(spec.names[0], spec.role, "no backend here has a memory of its own")
            continue
        if spec.level >= Level.graph and layout is None:
            if spec.optional:
                continue
            draft.skip(spec.names[0], spec.role, why_not)
        else:
            draft.add_spec(spec)
    if layout is None and any(p.role == "call.process" for p in draft.probes):
        draft.skip("struct llama_batch_ext", "call.process", f"tokens are not counted: {why_not}")
    if not any(p.role == "sample" for p in draft.probes):
        draft.add_spec(SAMPLER_FALLBACK)
    if not any(p.role.startswith("call.") or p.role == "graph" for p in draft.probes):
        _nothing_to_probe(program)
    ops = OpsPlan("none", why=f"level {level}")
    if wanted >= Level.op:
        ops = OpsPlan("none", why=why_not) if layout is None else draft.add_operators(layout)
        if layout is not None and not draft.skips_unflagged and ops.mode == "site":
            layout = layout.without("flags.compute")
        if ops.mode == "none":
            draft.skip("ggml_graph_compute_thread", "op.end", ops.why)
    return ProbePlan(
        level=level,
        probes=tuple(draft.probes),
        skipped=tuple(draft.skipped),
        ops=ops,
        layout=layout,
        facts=facts,
        images=program.images,
    )


def _nothing_to_probe(program: Program) -> None:
    hint = "give a program built with llama.cpp or ggml, such as ./llama-completion"
    if program.missing:
        hint = f"libraries were not found: {', '.join(program.missing)}; set LD_LIBRARY_PATH"
    raise TargetError(f"{program.path}: no ggml or llama.cpp function inside", hint)
