"""Layer 2: whether an engine lets us read which experts its tokens are routed to, and why not.

Owns what is known of it: ``ggml_mul_mat_id`` (ggml/src/ggml.c) takes the ids as its third source,
an I32 tensor {experts used, tokens}. Must not know of BPF.
"""

from __future__ import annotations

from profinfer.probes.engine_facts import EngineFacts
from profinfer.probes.parts import ProbePlan

EXPERTS_OP = "MUL_MAT_ID"
IDS_SOURCE = 2
_IDS_TYPE = "i32"
_FIELDS = ("type", "ne", "nb", "op", "flags", "src", "data")


def ids_type(facts: EngineFacts) -> int | None:
    """Number of the type that ids have, None if the engine's table does not name it."""
    for number, known in enumerate(facts.types):
        if known is not None and known["name"] == _IDS_TYPE:
            return number
    return None


def no_experts(plan: ProbePlan) -> str | None:
    """Why expert ids cannot be read under a plan, None if they can."""
    if plan.layout is None:
        return "the layout of the engine's structs is not known"
    if plan.ops.mode == "none":
        return f"operators are not seen: {plan.ops.why}"
    if not any(probe.role == "graph" for probe in plan.probes):
        return "graphs are not seen"
    if EXPERTS_OP not in plan.facts.ops:
        return f"the engine has no operator {EXPERTS_OP}"
    if ids_type(plan.facts) is None:
        return f"the engine's types name no {_IDS_TYPE}"
    if missing := [name for name in _FIELDS if name not in plan.layout.tensor]:
        return f"the layout lacks {', '.join(missing)}"
    return None
