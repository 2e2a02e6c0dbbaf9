"""Layer 2: which known layout an engine has, checked by what its code says."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import replace

from profinfer.engine.catalog import Layout, layouts
from profinfer.probes.engine_facts import EngineFacts

# A candidate that fewer facts speak for is a guess.
_LEAST_FACTS = 3


def choose_layout(
    facts: EngineFacts, functions: Container[str], written: Layout | None = None
) -> tuple[Layout | None, str]:
    """The layout that agrees with everything the engine's code told.

    Args:
        facts: what the code told.
        functions: names of the engine's functions, which tell whether optional fields exist.
        written: the layout of the engine's debug information, if it has any.

    Returns:
        (layout, why): the layout with its evidence completed, or None and the reason.
    """
    if written is not None:
        return _from_debug(facts, written)
    if len(facts.offsets) < _LEAST_FACTS:
        told = len(facts.offsets)
        return None, f"the engine's own functions confirm too little of its structs ({told} facts)"
    contradictions: list[tuple[int, str]] = []
    for layout in layouts():
        wrong = _contradictions(facts, layout)
        if not wrong:
            for key, function in layout.markers.items():
                if facts.version not in layout.versions and function not in functions:
                    layout = layout.without(key)
            return replace(layout, evidence=f"{layout.evidence}; {_agreed(facts)}"), ""
        contradictions.append((len(wrong), f"{layout.id}: {wrong[0]}"))
    _n, nearest = min(contradictions)
    return None, f"no known layout of the engine's structs fits ({nearest})"


def _from_debug(facts: EngineFacts, written: Layout) -> tuple[Layout | None, str]:
    """Debug information that the code contradicts is another build's."""
    wrong = _contradictions(facts, written)
    if wrong:
        return None, f"the debug information is not this engine's: {wrong[0]}"
    evidence = written.evidence
    same = next((k for k in layouts() if _alike(k, written)), None)
    if same is not None:
        evidence += f"; the same as {same.id}"
        written = replace(
            written, id=same.id, batch_ext=same.batch_ext, no_operators=same.no_operators
        )
    if facts.offsets:
        evidence += f"; {_agreed(facts)}"
    return replace(written, evidence=evidence), ""


def _alike(known: Layout, written: Layout) -> bool:
    """Whether a known layout is the written one; fields that only newer engines have may lack."""
    cgraph = {k: v for k, v in known.cgraph.items() if k in written.cgraph}
    return (
        cgraph == written.cgraph
        and known.tensor == written.tensor
        and known.tensor_size == written.tensor_size
        and known.buffer == written.buffer
        and known.backend == written.backend
        and known.cplan == written.cplan
    )


def _contradictions(facts: EngineFacts, layout: Layout) -> list[str]:
    wrong = []
    for key, (offset, function) in facts.offsets.items():
        known = _known(layout, key)
        if known is not None and known != offset:
            wrong.append(f"{function}() says {key} is {offset}, not {known}")
    return wrong


def _agreed(facts: EngineFacts) -> str:
    told = ", ".join(f"{k}={v}" for k, (v, _f) in facts.offsets.items())
    return f"confirmed by the binary's code: {told}"


def _known(layout: Layout, key: str) -> int | None:
    if key == "tensor_size":
        return layout.tensor_size
    struct, field = key.split(".")
    table: dict[str, int] = getattr(layout, struct)
    return table.get(field)
