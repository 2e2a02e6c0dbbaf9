"""Layer 6: how many tokens were computed at once.

Must not import rich or above.
"""

from __future__ import annotations

import numpy as np

from profinfer.analysis.backends import has_others
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace


def per_piece(trace: Trace, selection: Selection) -> float:
    """Tokens of one pass over the model (llama.cpp's ubatch), mean over the selected calls."""
    return selection.n_tokens / max(pieces(trace, selection), 1)


def pieces(trace: Trace, selection: Selection) -> int:
    """Passes over the model that the selected calls made.

    On the CPU alone each is one graph. Other backends cut it into several, some of which the CPU
    computes: a pass then begins with each graph that begins as the first of its call does. Where
    nodes were not recorded, each call counts as one pass, the least that it can be.
    """
    graphs, nodes = trace.graphs, trace.nodes
    mine = graphs[selection.graphs & (graphs["call_id"] >= 0).to_numpy()]
    if not has_others(trace):
        return len(mine)
    first = nodes.drop_duplicates("def_id").set_index("def_id")[["op", "name"]].astype(str)
    head = first["op"].str.cat(first["name"], " ").reindex(mine["def_id"]).to_numpy(object)
    call = mine["call_id"].to_numpy(np.int64)
    _, at = np.unique(call, return_index=True)
    opening = np.full(len(trace.calls), None, object)
    opening[call[at]] = head[at]
    begun = np.bincount(call[head == opening[call]], minlength=len(trace.calls))
    return int(np.maximum(begun, 1)[selection.calls].sum())
