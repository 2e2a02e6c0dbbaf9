"""Layer 8: what is said where ``record --ops`` and ``--layers`` chose operators that never ran."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from profinfer.model.trace import Trace

_SHOWN = 12


def nothing_chosen(trace: Trace) -> str | None:
    """What was chosen and what there was; None unless that is why there are no operators."""
    chosen = trace.narrowed
    if not chosen.by_node or not len(trace.graphs) or len(trace.ops) or len(trace.empty_ops):
        return None
    text = f"{chosen.options} chose none of what the graphs compute"
    nodes = trace.nodes[~trace.nodes["empty"]]
    if not len(nodes):
        return text
    have = []
    if chosen.ops:
        ops = sorted(map(str, nodes["op"].unique()))
        have.append(", ".join(ops[:_SHOWN]) + (" ..." if len(ops) > _SHOWN else ""))
    layers = nodes["layer"][nodes["layer"] >= 0]
    if chosen.layers is not None:
        have.append(f"layers {layers.min()} to {layers.max()}" if len(layers) else "no layers")
    return f"{text}: {'; '.join(have)}"
