"""Layer 2: which known layout an engine has, checked by what its code says."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

from profinfer.engine.catalog import Layout, layouts
from profinfer.probes.engine_facts import EngineFacts

# A candidate that fewer facts speak for is a guess.
_LEAST_FACTS = 3


def choose_layout(facts: EngineFacts, functions: Container[str]) -> tuple[Layout | None, str]:
    """The layout that agrees with everything the engine's code told.

    Args:
        facts: what the code told.
        functions: names of the engine's functions, which tell whether optional fields exist.

    Returns:
        (layout, why): the layout with its evidence completed, or None and the reason.
    """
    if len(facts.offsets) < _LEAST_FACTS:
        told = len(facts.offsets)
        return None, f"the engine's own functions confirm too little of its structs ({told} facts)"
    contradictions: list[tuple[int, str]] = []
    for layout in layouts():
        wrong = []
        for key, (offset, function) in facts.offsets.items():
            known = _known(layout, key)
            if known is not None and known != offset:
                wrong.append(f"{function}() says {key} is {offset}, not {known}")
        if not wrong:
            agreed = ", ".join(f"{k}={v}" for k, (v, _f) in facts.offsets.items())
            for key, function in layout.markers.items():
                if facts.version not in layout.versions and function not in functions:
                    layout = layout.without(key)
            return replace(
                layout, evidence=f"{layout.evidence}; confirmed by the binary's code: {agreed}"
            ), ""
        contradictions.append((len(wrong), f"{layout.id}: {wrong[0]}"))
    _n, nearest = min(contradictions)
    return None, f"no known layout of the engine's structs fits ({nearest})"


def _known(layout: Layout, key: str) -> int | None:
    if key == "tensor_size":
        return layout.tensor_size
    struct, field = key.split(".")
    table: dict[str, int] = getattr(layout, struct)
    return table.get(field)
