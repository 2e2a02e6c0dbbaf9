"""Layer 6: what keeps work that is bound by arithmetic from being fast, as findings.

Prompts in small pieces, fewer threads than CPUs, matrix products far below the machine's peak.
Must not import rich or above.
"""

from __future__ import annotations

import numpy as np

from profinfer.analysis import latency, scopes
from profinfer.analysis.finding import Finding, Number
from profinfer.analysis.pieces import per_piece, pieces
from profinfer.analysis.roofline import roofline
from profinfer.analysis.roofs import of_trace
from profinfer.analysis.scheduling import per_thread
from profinfer.analysis.scopes import Scope
from profinfer.model.trace import Trace
from profinfer.units import format_ns, format_percent, format_things

LONG_PROMPT = 128  # tokens, from which on a prompt could have been computed in larger pieces
SMALL_PIECE = 32  # tokens a graph
FULL_PIECE = 512  # llama.cpp's default: nothing is won beyond
WORTH = 0.10  # of the prefill's time: a smaller prize is not worth a line
COMPUTE_TOKENS = 16  # a graph: from here on, weights are read once for many tokens
BUSY_MIN = 0.85  # of the operators' time spent computing: the threads are what bounds
SLOW_ROOF = 0.15  # of the compute roof
PLAIN_MIN = 0.8  # of the products' time: weights that are not quantised
RUNNING_MIN = 0.9  # of computing on a CPU: else something else keeps it from being fast
NEAR_ROOF = 0.50  # what matrix products of a good library reach


def findings(trace: Trace) -> list[Finding]:
    """What is found of prompts."""
    scope = scopes.of_phase(trace, "prefill", COMPUTE_TOKENS)
    if scope is None or not len(trace.graphs):
        return []
    found = [_small_pieces(scope)]
    if len(trace.ops):
        found += [_few_threads(scope), _slow_products(scope)]
    return [f for f in found if f is not None]


def _piece(scope: Scope) -> float:
    """Tokens of one pass over the model."""
    return per_piece(scope.trace, scope.selection)


def _small_pieces(scope: Scope) -> Finding | None:
    trace = scope.trace
    piece = _piece(scope)
    prompts = trace.sequences[(trace.sequences["phase"] == "prefill").to_numpy()]
    ctx = trace.calls["ctx"].to_numpy()[prompts["call_id"].to_numpy()]
    longest = int(prompts.groupby([ctx, "seq", "generation"])["n_tokens"].sum().max())
    step = scopes.of_phase(trace, "decode", 1)
    if longest < LONG_PROMPT or piece > SMALL_PIECE or step is None:
        return None
    length = latency.call_times(trace)
    one = float(np.median(length[step.selection.calls]))  # a graph of one token
    many = int(length[scope.selection.calls].sum()) / max(pieces(trace, scope.selection), 1)
    # A graph of n tokens takes a + b n: two points give both.
    fixed = one - max((many - one) / (piece - 1), 0.0) if piece > 1 else one
    saved = scope.tokens * max(fixed, 0.0) * (1 / piece - 1 / min(longest, FULL_PIECE))
    if saved < WORTH * scope.span_ns:
        return None
    text = (
        f"prompts are computed in small pieces: {piece:,.0f} tokens a graph, of prompts of up to "
        f"{longest:,}; each piece reads all weights again, about {format_ns(fixed)}"
    )
    evidence = {
        "tokens_per_graph": Number(piece, "count", "Prompt tokens a graph."),
        "longest_prompt": Number(longest, "count", "Tokens of the longest prompt."),
        "graph_ns": Number(many, "ns", "Mean time of calls a graph."),
        "decode_ns": Number(one, "ns", "Median call of a decode step: a graph of one token."),
        "fixed_ns": Number(fixed, "ns", "Of it, not by token: from these two points."),
    }
    how = "tokens x fixed time of a graph x (1 / tokens a graph - 1 / tokens that one could have)"
    prize = scope.prize(saved, how)
    return Finding("small_pieces", None, text, "-ub 512 -b 2048", scope.name, evidence, prize)


def _plain_part(scope: Scope) -> float:
    """Part of the matrix products' time whose weights are plain numbers."""
    wall, nodes = scope.trace.sums(scope.selection).wall, scope.trace.nodes
    products = (nodes["op"] == "MUL_MAT").to_numpy()
    plain = products & nodes["src0_type"].isin(("f32", "f16", "bf16")).to_numpy()
    return float(wall[plain].sum()) / max(float(wall[products].sum()), 1.0)


def _running(scope: Scope) -> float:
    """Part of the threads' computing that they were on a CPU; 1 if that is not known."""
    if not scope.trace.has_sched:
        return 1.0
    sums = per_thread(scope.trace, scope.selection)
    return float(sums["compute_running_ns"].sum()) / max(float(sums["compute_ns"].sum()), 1.0)


def _few_threads(scope: Scope) -> Finding | None:
    """Prompts are bound by arithmetic, which more CPUs would share."""
    trace = scope.trace
    most = int(min(scopes.cores(trace), scopes.quota(trace) or scopes.cores(trace)))
    busy = 1 - scope.waiting_ns / max(scope.wall_ns, 1)
    if _piece(scope) < COMPUTE_TOKENS or scope.threads >= most or busy < BUSY_MIN:
        return None
    saved = scope.wall_ns * busy * (1 - scope.threads / most)
    if saved < WORTH * scope.span_ns:  # another backend computes them
        return None
    text = (
        f"prompts are bound by arithmetic and {format_things(scope.threads, 'thread')} computed "
        f"them, of {most} cores that they may use"
    )
    evidence = {
        "threads": Number(scope.threads, "count", "Threads that computed together."),
        "cores": Number(most, "count", "Cores within affinity and quota."),
        "computing": Number(busy, "ratio", "Of the operators' time, not waiting."),
        "tokens_per_graph": Number(_piece(scope), "count", "Prompt tokens a graph."),
    }
    how = "operators' wall time x (1 - threads / cores)"
    prize = scope.prize(saved, how)
    tries = f"-tb {most}, which leaves decoding as it is"
    return Finding("few_threads", None, text, tries, scope.name, evidence, prize)


def _slow_products(scope: Scope) -> Finding | None:
    """With a calibration only: the machine's peak must be known.

    Of quantised weights nothing is said: how near to the peak their kernels can come depends on the
    type, and no library would be faster.
    """
    found = of_trace(scope.trace)
    if found.calibration is None or _piece(scope) < FULL_PIECE / 8:
        return None
    if _plain_part(scope) < PLAIN_MIN or _running(scope) < RUNNING_MIN:
        return None
    table = roofline(scope.trace, scope.selection, "op", found).frame
    mine = table[(table["op"] == "MUL_MAT").to_numpy()]
    if not len(mine):
        return None
    row = mine.iloc[0]
    reached, wall = float(row["of_compute"]), float(row["wall_ns"])
    if not reached <= SLOW_ROOF or wall < 0.5 * scope.wall_ns:
        return None
    blas = (scope.trace.splits["backend"].astype(str) == "BLAS").any()
    text = (
        f"matrix products of prompts reach {format_percent(reached)} of the compute peak"
        f"{'' if blas else ', and no BLAS computed them'}"
    )
    evidence = {
        "of_compute": Number(reached, "ratio", "Least time of the arithmetic / time."),
        "time_ns": Number(int(wall), "ns", "Of the matrix products."),
        "blas": Number("yes" if blas else "no", "text", "A BLAS backend took part."),
        "tokens_per_graph": Number(_piece(scope), "count", "Prompt tokens a graph."),
    }
    tries = "a build for this CPU: -DGGML_NATIVE=ON" + ("" if blas else ", -DGGML_BLAS=ON")
    how = f"their time x (1 - share reached / {NEAR_ROOF:.0%})"
    prize = scope.prize(wall * (1 - reached / NEAR_ROOF), how)
    return Finding("slow_products", None, text, tries, scope.name, evidence, prize)
