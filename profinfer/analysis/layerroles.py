"""Layer 6: time per token of each role in each layer, for a picture of them side by side.

Must not import rich or anything above.
"""

from __future__ import annotations

from profinfer.analysis import notes
from profinfer.analysis.operators import in_layer_order
from profinfer.analysis.result import Column, Result
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace

COLUMNS = (
    Column("layer", "layer", "text", "Layer; none for what belongs to no layer."),
    Column("role", "role", "text", "Part that the operators play in the transformer."),
    Column("per_token_ns", "per token", "ns", "Time per token."),
)


def layer_roles(trace: Trace, selection: Selection) -> Result:
    """One row per layer and role, in order of the layers."""
    sums = trace.sums(selection)
    frame = trace.nodes[["layer", "role"]].assign(per_token_ns=sums.wall)[sums.calls > 0]
    out = frame.groupby(["layer", "role"], observed=True, sort=True)["per_token_ns"].sum()
    table = out.reset_index().astype({"role": str})
    table["per_token_ns"] = table["per_token_ns"] / max(selection.n_tokens, 1)
    return Result(
        "layer_roles",
        "Roles by layer",
        selection.description,
        COLUMNS,
        in_layer_order(table)[[c.name for c in COLUMNS]],
        notes.of(trace, selection),
    )
