"""Layer 6: what a router does to a run, as sentences with numbers, and what to try.

Each says nothing of a model without experts, or of a router that spreads its choices over experts
which are in memory. Must not import rich or anything above.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from profinfer.analysis.expertcosts import passes, sizes
from profinfer.analysis.expertreuse import cache_for, correlation
from profinfer.analysis.expertuse import spread
from profinfer.analysis.finding import Finding
from profinfer.model.memory import read_by_tensor
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace
from profinfer.units import format_bytes, format_ns, format_percent

# A layer is skewed if this part of its experts gets half of the choices, and chance does not do it.
SKEWED = 1 / 8
CHANCE = 6.0
# Passes whose experts were away are worth a line from here on.
SLOWER = 1.5
CORRELATED = 0.3
LEAST_PASSES = 20
KEPT = 0.9
# Bytes of experts that disks read / bytes of experts needed.
OVER = 2.0


def findings(trace: Trace, selection: Selection) -> list[Finding]:
    """Everything that is worth a line."""
    if not len(trace.experts):
        return []
    decode = trace.select(phase="decode")
    done = passes(trace, decode)
    found = (
        _skewed(trace, selection), _reloaded(trace, done), _too_much_read(trace, decode, done)
    )  # fmt: skip
    return [f for f in found if f is not None]


def _skewed(trace: Trace, selection: Selection) -> Finding | None:
    """A few experts do most of the work."""
    size = sizes(trace)
    table = trace.experts[selection.graphs[trace.experts["graph_id"].to_numpy()]]
    found = []
    for layer, mine in table.groupby("layer")["expert"]:
        n = size.experts[int(str(layer))]
        s = spread(np.bincount(mine.to_numpy(), minlength=n))
        if s.half <= SKEWED * n and s.excess > CHANCE:
            found.append((s.half / n, str(layer), s, n))
    if not found:
        return None
    _part, layer, s, n = min(found, key=lambda row: row[0])
    text = (
        f"the router prefers few experts in {len(found)} of {len(size.experts)} layers: in layer "
        f"{layer} {s.half} of {n} get half of the choices and {s.most} get 90 %, the busiest "
        f"{s.busiest:.1f} times the mean; where memory does not hold all experts, keep these"
    )
    return Finding("router_skew", None, text)


def _reloaded(trace: Trace, done: pd.DataFrame) -> Finding | None:
    """Passes take longer, the longer their experts were not needed."""
    done = done.dropna(subset=["op_ns"])
    near = done[(done["gap"] <= 2) & (done["first"] == 0)]
    far = done[(done["gap"] > 2) & (done["first"] == 0)]
    found = correlation(done)
    if found is None or found[0] < CORRELATED or min(len(near), len(far)) < LEAST_PASSES:
        return None
    # The middle ones: a thread that lost its CPU says nothing of experts.
    fast, slow = float(near["op_ns"].median()), float(far["op_ns"].median())
    if slow < SLOWER * fast:
        return None
    text = (
        f"experts that were not needed for long are slow: {format_ns(slow)} a layer where they "
        f"were last needed more than 2 passes ago, {format_ns(fast)} otherwise (rank correlation "
        f"{found[0]:.2f})"
    )
    majors, held = int(done["majors"].sum()), int(done["held_ns"].sum())
    if majors:
        whole = int(done["op_ns"].sum()) * max(int(trace.graphs["threads_seen"].max()), 1)
        text += f"; {majors:,} major faults on their weights held threads up for {format_ns(held)}"
        text += f" ({format_percent(held / whole)} of their time)" if whole else ""
    keep = cache_for(trace, KEPT)
    if keep is not None:
        size = sizes(trace)
        memory = keep * sum(size.size.get(layer, 0) for layer in size.experts)
        text += (
            f"; {format_bytes(memory)} would hold the {keep} experts of each layer that serve "
            f"{KEPT:.0%} of repeated uses"
        )
    return Finding("experts_reloaded", None, text)


def _too_much_read(trace: Trace, selection: Selection, done: pd.DataFrame) -> Finding | None:
    """Reading ahead brings experts that nobody wants, and pushes out those that will be."""
    reads, weights = trace.reads, trace.expert_weights
    if not len(reads) or not selection.n_tokens:
        return None
    parts = read_by_tensor(reads, trace.residents)
    graph = reads["graph_id"].to_numpy()[parts["read"].to_numpy()]
    mine = (graph >= 0) & np.r_[selection.graphs, False][graph]
    mine &= parts["tensor"].isin(weights["tensor"].unique()).to_numpy()
    read = int(parts["bytes"].to_numpy()[mine].sum())
    needed = int((sizes(trace).bytes_of(done["layer"].to_numpy()) * done["experts"]).sum())
    if not needed or read < OVER * needed:
        return None
    tokens = selection.n_tokens
    text = (
        f"disks read {read / needed:.1f} times the experts that were needed: "
        f"{format_bytes(read / tokens)} a token for {format_bytes(needed / tokens)}, although some "
        "were in memory: reading ahead brings neighbours that nobody wants and pushes out others; "
        "try a smaller read_ahead_kb of the disk, or more memory"
    )
    return Finding("experts_overread", None, text)
