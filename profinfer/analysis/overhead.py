"""Layer 6: what the probes themselves are estimated to have cost the recorded run.

Must not import rich or anything above.
"""

from __future__ import annotations

import numpy as np

from profinfer.model.trace import Trace


def estimated_share(trace: Trace) -> float | None:
    """Part of the calls' time (or the graphs', where there are no calls) that went to probes.

    Hits of one thread times the measured cost of a hit, plus the time spent reading graphs.
    Threads pay at the same time and meet at the next barrier, so the hits of one thread, and not
    of all, lie on the path that the token waits for; graphs in which threads differ count their
    mean. A hit inside a call costs the same whether the operator is short or long.

    Returns:
        A ratio, or None if the recording machine's cost of a hit is not in the trace (older
        traces) or nothing ran.
    """
    plan = trace.meta.plan
    hit_ns = plan.ops.extra.get("hit_ns")
    graphs, calls = trace.graphs, trace.calls
    spans = calls if len(calls) else graphs
    total = int((spans["end_ns"] - spans["begin_ns"]).sum())
    if not isinstance(hit_ns, int) or not total:
        return None
    threads = graphs["threads_seen"].clip(lower=1)
    # A barrier after an empty node is a hit like any other.
    ids = np.concatenate([t["graph_id"].to_numpy() for t in (trace.ops, trace.empty_ops)])
    per_graph = np.bincount(ids, minlength=len(graphs))
    hits = float((per_graph / threads.to_numpy()).sum())
    if trace.narrowed and trace.hits_passed:
        # Those without a record are known as a sum over all threads.
        hits = (len(ids) + trace.hits_passed) / max(float(graphs["n_threads"].mean()), 1.0)
    if plan.ops.mode == "pair":
        hits *= 2
    # Entering and leaving the loop, and begin and end of graphs, splits, calls and samples.
    hits += 4 * len(graphs) + 2 * (len(trace.splits) + len(calls) + len(trace.samples))
    return (hits * hit_ns + int(graphs["walk_ns"].sum())) / total
