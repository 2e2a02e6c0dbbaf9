"""Layer 6: what a decode step spends on other things than weights, as findings.

Sampling, building graphs, the output head, attention over a long context, barriers of short
operators, a slow first step. Each says nothing in a run where that is small; the limits are below.
Must not import rich or above.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.analysis import latency, scopes
from profinfer.analysis.calltime import building
from profinfer.analysis.finding import Finding, Number, Prize
from profinfer.analysis.scopes import Scope
from profinfer.model.trace import Trace
from profinfer.units import format_ns, format_percent

# Below these parts of the decode time it is not worth a line.
SAMPLING_MIN = 0.05
BUILD_MIN = 0.08
HEAD_MIN = 0.25  # of the operators' time
ATTENTION_MIN = 0.25  # of the operators' time
BARRIER_MIN = 0.15  # of the operators' time: waiting in short operators
SHORT_NS = 20_000  # mean time of an operator that is short
FIRST_MIN = 2.0  # first decode step over the median
LONG_CONTEXT = 512  # positions attended to, from which on a context is called long
# A weight of more bits than this can be quantised further without much harm.
BITS_SMALL = 5.0
_WALK_NS = 50  # a node: graphs whose definition was read take longer than this to walk


def findings(trace: Trace) -> list[Finding]:
    """What is found of decoding."""
    scope = scopes.of_phase(trace, "decode")
    if scope is None:
        return []
    found = [look(scope) for look in _CALLS]
    if len(trace.ops):
        found += [look(scope) for look in _OPS]
    return [f for f in found if f is not None]


# --- calls ------------------------------------------------------------------------------------


def _sampling(scope: Scope) -> Finding | None:
    mine = int(latency.sampling_per_call(scope.trace)[scope.selection.calls].sum())
    share = mine / scope.span_ns if scope.span_ns else 0.0
    if share < SAMPLING_MIN:
        return None
    text = (
        f"sampling is expensive: {format_ns(mine / scope.tokens)} a token, "
        f"{format_percent(share)} of the time from token to token"
    )
    evidence = {
        "sampling_ns": Number(mine, "ns", "Time in samplers after the decode calls."),
        "share": Number(share, "ratio", "Of the time from call to call."),
        "tokens": Number(scope.tokens, "count", "Tokens decoded."),
    }
    tries = "fewer samplers, those that shorten the list first: --samplers 'top_k;temperature'"
    prize = scope.prize(mine, "all time in samplers; what is left of them costs something too")
    return Finding("sampling", None, text, tries, scope.name, evidence, prize)


def _graph_build(scope: Scope) -> Finding | None:
    trace, chosen = scope.trace, scope.selection.calls
    graphs = trace.graphs[np.r_[chosen, False][trace.graphs["call_id"].to_numpy()]]
    if not len(graphs):
        return None
    walk = graphs["walk_ns"].to_numpy()
    build = int(building(trace)[chosen].sum())
    share = build / scope.span_ns if scope.span_ns else 0.0
    if share < BUILD_MIN:
        return None
    fresh = int((walk > _WALK_NS * graphs["n_nodes"].to_numpy()).sum())
    layout = trace.meta.engine.layout
    told = layout is not None and "uid" in layout.cgraph
    why = f"; {fresh:,} of {len(graphs):,} graphs were new ones" if told else ""
    text = (
        f"calls spend {format_ns(build / scope.tokens)} a token, {format_percent(share)} of the "
        f"time, on building and scheduling graphs{why}"
    )
    evidence = {
        "build_ns": Number(build, "ns", "Time of the calls outside of graphs."),
        "share": Number(share, "ratio", "Of the time from call to call."),
        "graphs": Number(len(graphs), "count", "Graphs computed."),
    }
    if told:
        evidence["new_graphs"] = Number(fresh, "count", "Graphs whose number was a new one.")
    tries = "an engine that reuses graphs, without LLAMA_GRAPH_REUSE_DISABLE in the environment"
    if told and not fresh:
        tries = "longer batches: several sequences or tokens in a call share this time"
    prize = scope.prize(build, "all time of calls outside of graphs, setting inputs included")
    return Finding("graph_build", None, text, tries, scope.name, evidence, prize)


def _first_token(scope: Scope) -> Finding | None:
    """The first decode step of the recording took much longer than the others."""
    trace = scope.trace
    calls = trace.calls[scope.selection.calls]
    if trace.excerpt or (trace.calls["phase"] == "warmup").any() or (calls["n_seqs"] > 1).any():
        return None
    if (trace.calls["lost_before"] | trace.calls["torn"]).any():
        return None  # who knows which was the first
    spent = latency.call_times(trace)[scope.selection.calls]
    first, usual = int(spent[0]), float(np.median(spent[1:]))
    if first < FIRST_MIN * usual:
        return None
    text = (
        f"the first token is a cold one: its step took {format_ns(first)}, the others "
        f"{format_ns(usual)}, and nothing was computed to warm up"
    )
    evidence = {
        "first_ns": Number(first, "ns", "Call of the first decode step."),
        "median_ns": Number(usual, "ns", "Median of the others."),
    }
    tries = "a warm-up run: llama.cpp makes one unless --no-warmup"
    prize = Prize(int(first - usual), 0, 0, "first decode step less the median of the others")
    return Finding("first_token", None, text, tries, scope.name, evidence, prize)


# --- operators --------------------------------------------------------------------------------


def _of_role(scope: Scope, role: str) -> tuple[pd.DataFrame, npt.NDArray[np.int64], float]:
    """Nodes of a role that ran, their time, and its part of all operators' time."""
    wall = scope.trace.sums(scope.selection).wall
    nodes = scope.trace.nodes
    mine = (nodes["role"] == role).to_numpy() & (wall > 0)
    return nodes[mine], wall[mine], float(wall[mine].sum()) / max(scope.wall_ns, 1)


def _output_head(scope: Scope) -> Finding | None:
    nodes, wall, share = _of_role(scope, "output head")
    if share < HEAD_MIN:
        return None
    largest = nodes.iloc[int(wall.argmax())]
    kind, vocab = str(largest["src0_type"]), int(largest["ne0"])
    bits = _bits(scope.trace, kind)
    text = (
        f"the output head dominates: {format_percent(share)} of the operators' time computes the "
        f"logits of {vocab:,} tokens from {kind} weights"
    )
    evidence = {
        "share": Number(share, "ratio", "Of the operators' time."),
        "time_ns": Number(int(wall.sum()), "ns", "Of the output head's operators."),
        "vocabulary": Number(vocab, "count", "Logits that are computed."),
        "type": Number(kind, "text", "Type of its weights."),
    }
    prize, tries = None, "a model with a smaller vocabulary; its weights are small already"
    if bits is not None and bits > BITS_SMALL:
        evidence["bits"] = Number(bits, "count", "Bits of a weight.")
        tries = "llama-quantize --output-tensor-type q4_0, after a look at the quality"
        how = "its time x (1 - 4.5 bits / bits of its weights now), as if it were memory-bound"
        prize = scope.prize(int(wall.sum()) * (1 - 4.5 / bits), how)
    return Finding("output_head", None, text, tries, scope.name, evidence, prize)


def _attention(scope: Scope) -> Finding | None:
    """Attention over a long context takes most of the time, and could be cheaper."""
    nodes, wall, share = _of_role(scope, "attention")
    positions = scope.trace.calls["pos_last"].to_numpy()[scope.selection.calls]
    context = float(np.mean(positions[positions >= 0])) if (positions >= 0).any() else 0.0
    if share < ATTENTION_MIN or context < LONG_CONTEXT:
        return None
    ops = nodes["op"].astype(str).to_numpy()
    flash = bool((ops == "FLASH_ATTN_EXT").any())
    cache = _cache_type(nodes)
    bits = _bits(scope.trace, cache)
    text = (
        f"attention takes {format_percent(share)} of the operators' time at a context of "
        f"{context:,.0f} tokens, with flash attention {'on' if flash else 'off'} and a "
        f"{cache or 'unknown'} KV cache"
    )
    evidence = {
        "share": Number(share, "ratio", "Of the operators' time."),
        "time_ns": Number(int(wall.sum()), "ns", "Of the attention's operators."),
        "context": Number(context, "count", "Mean position of the decoded tokens."),
        "flash_attention": Number("on" if flash else "off", "text", "FLASH_ATTN_EXT ran."),
        "cache_type": Number(cache, "text", "Type of the keys and values read."),
    }
    prize, tries = None, "a shorter context (-c), or a model with fewer KV heads"
    if not flash:
        tries = "-fa on"
        between = int(wall[np.isin(ops, ("SOFT_MAX", "CONT", "CPY", "DUP", "SCALE"))].sum())
        prize = scope.prize(between, "operators between the two products: flash attention has none")
    elif bits is not None and bits >= 16:
        tries = "-ctk q8_0 -ctv q8_0: half the bytes to read"
        how = "its time x (1 - 8.5 / bits of the cache), as if it were memory-bound"
        prize = scope.prize(int(wall.sum()) * (1 - 8.5 / bits), how)
    return Finding("attention", None, text, tries, scope.name, evidence, prize)


def _cache_type(nodes: pd.DataFrame) -> str:
    """Type of the keys that attention reads; empty if it is not seen."""
    for at in (0, 1):
        mine = nodes[f"src{at}_name"].astype(str).str.startswith("cache_")
        if mine.any():
            return str(nodes.loc[mine, f"src{at}_type"].iloc[-1])
    return ""


def _bits(trace: Trace, kind: str) -> float | None:
    """Bits of an element of a type, None if the engine's table does not have it."""
    known = (t for t in trace.meta.engine.types if t is not None and t.name == kind)
    found = next(known, None)
    return 8 * found.size / found.block if found is not None and found.block else None


def _barriers(scope: Scope) -> Finding | None:
    """Many operators that are too short to be shared out."""
    trace = scope.trace
    if scope.threads < 2 or scope.threads > scopes.cpus(trace):
        return None  # too many threads have a finding of their own
    sums = trace.sums(scope.selection)
    mean = sums.wall / np.maximum(sums.calls, 1)
    short = (sums.calls > 0) & (mean < SHORT_NS)
    waited = int(sums.wait[short].sum())
    share = waited / max(scope.wall_ns, 1)
    if share < BARRIER_MIN:
        return None
    count = int(sums.calls[short].sum())
    text = (
        f"barriers of short operators: {count / scope.tokens:,.0f} operators a token are shorter "
        f"than {format_ns(SHORT_NS)}, and {format_percent(share)} of the operators' time goes to "
        "waiting in them"
    )
    evidence = {
        "operators": Number(count / scope.tokens, "count", "Short operators a token."),
        "waited_ns": Number(waited, "ns", "Waiting in them, mean over the threads."),
        "share": Number(share, "ratio", "Of the operators' time."),
        "threads": Number(scope.threads, "count", "Threads that computed together."),
    }
    tries = f"-t {max(1, scope.threads // 2)}, or an engine that fuses them"
    prize = scope.prize(waited, "waiting in short operators, mean over the threads")
    return Finding("short_operators", None, text, tries, scope.name, evidence, prize)


_CALLS: tuple[Callable[[Scope], Finding | None], ...] = (_sampling, _graph_build, _first_token)
_OPS: tuple[Callable[[Scope], Finding | None], ...] = (_output_head, _attention, _barriers)
