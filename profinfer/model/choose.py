"""Layer 5: from what a view is asked for to the calls, graphs and nodes that it covers.

Must not import the analyses or above.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from profinfer.model.selection import Mask, Selection

if TYPE_CHECKING:
    from profinfer.model.trace import Trace


@dataclass(frozen=True)
class Wish:
    """What is asked for; the arguments of ``Trace.select``, which says what they mean."""

    phase: str | None
    tokens: tuple[int, int] | None
    op: str | None
    layer: tuple[int, int] | None
    warmup: bool
    unsampled: bool


def choose(trace: Trace, wish: Wish, *, sampled: Mask, joined: bool) -> Selection:
    """Apply a wish to a trace.

    Args:
        trace: the tables.
        wish: what is asked for.
        sampled: by graph, whether operators were recorded with it.
        joined: the target ran when the recording began.
    """
    calls, graphs = trace.calls, trace.graphs
    kept = np.ones(len(calls), bool)
    if trace.excerpt:
        kept &= ~calls["cut"].to_numpy()
    phases = calls["phase"].to_numpy()
    warm = phases == "warmup"
    filters: list[str] = []
    if wish.phase is not None:
        kept &= phases == wish.phase
    elif not wish.warmup:
        kept &= ~warm
    if wish.tokens is not None:
        seqs = trace.sequences
        asked = seqs[seqs["token_index"].between(*wish.tokens, inclusive="left")]
        kept &= calls["call_id"].isin(asked["call_id"]).to_numpy()
        filters.append(f"tokens {wish.tokens[0]}:{wish.tokens[1]}")
    asked_for = int(calls["n_tokens"].to_numpy()[kept].clip(min=0).sum())
    parent = graphs["call_id"].to_numpy()
    if trace.partly_sampled and not wish.unsampled:
        kept = kept.copy()
        kept[parent[~sampled & (parent >= 0)]] = False
    kept_graphs = np.r_[kept, False][parent]
    if wish.tokens is None:
        loose = parent < 0
        if wish.phase in (None, "other"):
            kept_graphs |= loose
    if trace.partly_sampled and not wish.unsampled:
        kept_graphs &= sampled
    if trace.excerpt:
        kept_graphs &= ~graphs["cut"].to_numpy()
    if joined:
        # A graph whose call began before the recording looks like one without a call.
        first = calls.groupby("tid")["begin_ns"].min().to_dict()
        until = np.array([first.get(t, -1) for t in graphs["tid"].tolist()], np.int64)
        kept_graphs &= (parent >= 0) | (graphs["begin_ns"].to_numpy() >= until)
    nodes_kept = np.ones(len(trace.nodes), bool)
    if wish.op is not None:
        nodes_kept &= trace.nodes["op"].to_numpy() == wish.op
        filters.append(f"op {wish.op}")
    if wish.layer is not None:
        low, high = wish.layer
        layers = trace.nodes["layer"].to_numpy()
        nodes_kept &= (layers >= low) & (layers < high)
        one = high == low + 1
        filters.append(f"layer {low}" if one else f"layers {low}:{high}")
    if trace.narrowed.by_node:
        filters.append(f"only {trace.narrowed.text} recorded")
    return Selection(
        phase=wish.phase,
        calls=kept,
        graphs=kept_graphs,
        nodes=nodes_kept,
        n_tokens=int(calls["n_tokens"].to_numpy()[kept].clip(min=0).sum()),
        of_tokens=asked_for,
        warmup_excluded=bool(warm.any() and not (kept & warm).any()),
        filters=tuple(filters),
        narrowed=wish.op is not None or wish.layer is not None,
    )


def without_torn(trace: Trace, selection: Selection) -> Selection:
    """The selection without calls of which graphs were lost, and without their graphs."""
    torn = selection.calls & trace.calls["torn"].to_numpy()
    if not torn.any():
        return selection
    calls = selection.calls & ~torn
    graphs = selection.graphs & ~np.r_[torn, False][trace.graphs["call_id"].to_numpy()]
    tokens = int(trace.calls["n_tokens"].to_numpy()[calls].clip(min=0).sum())
    return replace(selection, calls=calls, graphs=graphs, n_tokens=tokens)
