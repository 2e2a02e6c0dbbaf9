"""Layer 6: the run in a few lines: what ran, how fast, what is missing; and where its time went.

Must not import rich or anything above.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.analysis import counters, latency, notes
from profinfer.analysis.backends import has_others
from profinfer.analysis.calltime import outside_of_graphs
from profinfer.analysis.hosttime import host_time
from profinfer.analysis.overhead import estimated_share, share_by_phase
from profinfer.analysis.result import Column, Note, Result
from profinfer.model.selection import Selection
from profinfer.model.selfcheck import Check, checks, explained
from profinfer.model.trace import Trace
from profinfer.units import format_percent

I64 = npt.NDArray[np.int64]
DEAR = 0.1  # from this part of the time on the probes' cost is no small one
_MODEL_OPTIONS = ("-m", "--model", "-mu", "--model-url", "-hf", "-hfr", "--hf-repo")


def model_name(argv: tuple[str, ...]) -> str | None:
    """The model that the command line names: file name without path and ``.gguf``."""
    for at, word in enumerate(argv):
        option, _, value = word.partition("=")
        if option in _MODEL_OPTIONS:
            value = value or (argv[at + 1] if at + 1 < len(argv) else "")
            if value:
                return Path(value).name.removesuffix(".gguf")
    files = [w for w in argv[1:] if w.endswith(".gguf")]
    return Path(files[0]).name.removesuffix(".gguf") if files else None


def _threads(trace: Trace) -> str | None:
    graphs = trace.graphs
    if not len(graphs):
        return None
    column = "threads_seen" if trace.meta.plan.ops.mode != "none" else "n_threads"
    seen = sorted({int(n) for n in graphs[column] if n > 0})
    return "/".join(map(str, seen)) if seen else None


def overview(trace: Trace) -> Result:
    """One row: the run and its headline numbers."""
    meta, calls = trace.meta, trace.calls
    first = latency.time_to_first_token(trace)
    step = latency.time_per_output_token(trace)
    speeds = {s.phase: s for s in latency.speeds(trace)}
    lost = sum(n for k, n in trace.losses.items() if k.startswith("lost_")
               and k not in ("lost_ops", "lost_experts"))  # fmt: skip
    engine = " ".join(filter(None, [meta.engine.name, meta.engine.version])) or None
    real = calls[(calls["phase"] != "warmup").to_numpy()]
    wall = int(real["done_ns"].max() - real["begin_ns"].min()) if len(real) else None
    fields: list[tuple[Column, Any]] = [
        (_text("model", "model", "Model file that the command line names."),
         model_name(meta.target.argv)),
        (_text("engine", "engine", "Engine and version as the binary tells it."), engine),
        (_text("program", "program", "Program that was recorded."),
         Path(meta.target.exe or (meta.target.argv or ("?",))[0]).name),
        (_text("threads", "threads", "Threads that computed graphs; several counts if it changed."),
         _threads(trace)),
        (_text("level", "level", "What was recorded: token, graph or op."), meta.plan.level),
        (_text("cpu", "CPU", "CPU model and CPUs online."), _cpu(trace)),
        (_ns("run_ns", "run", "First to last call, warm-up excluded."), wall),
        (_ns("ttft_ns", "TTFT", "Begin of the first prefill call to the end of the first sample; "
             "median over generations."), latency.quantile(first, 0.5)),
        (_ns("tpot_mean_ns", "TPOT mean", "Time per output token: distance between the ends of "
             "consecutive decode calls."), float(step.mean()) if len(step) else None),
        (_ns("tpot_p50_ns", "TPOT p50", "Median."), latency.quantile(step, 0.5)),
        (_ns("tpot_p90_ns", "TPOT p90", "90 % are no longer."), latency.quantile(step, 0.9)),
        (_ns("tpot_p99_ns", "TPOT p99", "99 % are no longer."), latency.quantile(step, 0.99)),
        (_rate("prefill_per_s", "prefill", "Prompt tokens per second of call time."),
         speeds["prefill"].per_s if "prefill" in speeds else None),
        (_rate("decode_per_s", "decode", "Decoded tokens per second of call time."),
         speeds["decode"].per_s if "decode" in speeds else None),
        (Column("generations", "generations", "count", "Prompts that were answered."), len(first)),
        (Column("contexts", "contexts", "count", "llama_contexts that ran, if several."),
         _several(real["ctx"].nunique())),
        (Column("parallel", "parallel", "count", "Most sequences in one call, if several."),
         _several(int(real["n_seqs"].max()) if len(real) else 0)),
        (Column("lost", "lost", "count", "Events that the recorder lost."), lost),
        (Column("probe_cost", "probe cost", "ratio", "Part of the decode calls' time, or of all "
                "calls' if there are none, that recording is estimated to have cost."),
         share_by_phase(trace).get("decode", estimated_share(trace))),
        (Column("sampled", "sampled", "ratio", "Part of the tokens during which operators were "
                "recorded, if not all."), _sampled(trace)),
        (Column("explained", "explained", "ratio",
                "Part of the graphs' wall time that operators and barriers cover."),
         explained(trace)),
    ]  # fmt: skip
    extra = []
    if trace.tokens_from_graphs:
        text = f"{trace.tokens_from_graphs:,} calls' token counts were taken from their graphs"
        extra.append(Note("info", text))
    extra += counters.about(trace)
    return Result(
        "overview",
        "Run",
        "the whole recording, warm-up told apart",
        tuple(c for c, _ in fields),
        pd.DataFrame([{c.name: v for c, v in fields}]),
        (*notes.losses(trace), *extra),
        layout="record",
    )


def _sampled(trace: Trace) -> float | None:
    chosen = trace.select()
    return chosen.n_tokens / chosen.of_tokens if trace.partly_sampled and chosen.of_tokens else None


def _several(n: int) -> int | None:
    return n if n > 1 else None


def _text(name: str, title: str, description: str) -> Column:
    return Column(name, title, "text", description)


def _ns(name: str, title: str, description: str) -> Column:
    return Column(name, title, "ns", description)


def _rate(name: str, title: str, description: str) -> Column:
    return Column(name, title, "per_s", description)


def _cpu(trace: Trace) -> str | None:
    host = trace.meta.host
    parts = [host.cpu_model or host.machine]
    if host.cpus_online:
        parts.append(f"{host.cpus_online} CPUs")
    return ", ".join(p for p in parts if p) or None


def phases(trace: Trace) -> Result:
    """One row per phase: tokens, time, speed, sampling."""
    rows = [
        {
            "phase": s.phase,
            "calls": s.calls,
            "tokens": s.tokens,
            "time_ns": s.time_ns,
            "per_token_ns": s.time_ns / s.tokens if s.tokens else np.nan,
            "per_s": s.per_s,
            "sampling_ns": s.sampling_ns,
        }
        for s in latency.speeds(trace)
    ]
    columns = (
        Column("phase", "phase", "text", "Warm-up, prefill, decode, encode."),
        Column("calls", "calls", "count", "Calls of llama_decode and its like."),
        Column("tokens", "tokens", "count", "Tokens that they were given."),
        Column("time_ns", "in calls", "ns", "Sum of their time."),
        Column("per_token_ns", "per token", "ns", "Call time per token."),
        Column("per_s", "tok/s", "per_s", "Tokens per second of call time."),
        Column("sampling_ns", "sampling", "ns", "Time in samplers after them."),
    )
    names = [c.name for c in columns]
    return Result(
        "phases",
        "Phases",
        "the whole recording, warm-up told apart",
        columns,
        pd.DataFrame(rows, columns=names),
        tuple(notes.losses(trace)),
    )


def ledger(trace: Trace, selection: Selection) -> Result:
    """Every nanosecond from each selected call to the next in one row; the rows sum to 100 %."""
    calls, graphs = trace.calls, trace.graphs
    chosen = selection.calls
    host = host_time(trace) if has_others(trace) else None
    windows = latency.windows(trace)
    if host is not None:
        windows = np.maximum(windows, host.last_wait_ns)
    span = (windows - calls["begin_ns"].to_numpy())[chosen].sum()
    in_calls = int((calls["end_ns"] - calls["begin_ns"]).to_numpy()[chosen].sum())
    sampling = int(latency.sampling_per_call(trace, "end_ns")[chosen].sum())
    mine = graphs[np.r_[chosen, False][graphs["call_id"].to_numpy()]]
    in_graphs = int((mine["end_ns"] - mine["begin_ns"]).sum())
    walk = int(mine["walk_ns"].sum())
    unseen = int(outside_of_graphs(trace)[chosen & calls["torn"].to_numpy()].sum())
    # Graphs outside of calls belong to no window.
    inside = selection.with_graphs(_flags(mine["graph_id"].to_numpy(), len(graphs)))
    sums = trace.sums(inside) if len(trace.op_walls) else None
    ops = int(sums.wall.sum()) if sums else 0
    compute = int(sums.compute.sum()) if sums else 0
    whole = sums.whole_wall if sums else 0
    empty = trace.empty_walls
    passed = inside.graphs[empty["graph_id"].to_numpy()]
    barriers = int((empty["release_ns"] - empty["begin_ns"]).to_numpy()[passed].sum())
    rows: list[tuple[str, str, int]] = []
    away = [int(v[chosen].sum()) for v in host.parts] if host else [0] * 5
    rest = "graphs: threads starting and leaving"
    if trace.narrowed.by_node:
        rest = "graphs: operators that were not recorded"
    if sums and len(mine):
        rows += [
            ("compute", "operators: computing (mean over threads)", compute),
            ("wait", "operators: waiting for other threads", whole - compute),
            ("gaps", rest, in_graphs - ops - barriers),
        ]
        if barriers:
            rows.insert(2, ("empty", "graphs: barriers after empty nodes (views)", barriers))
        if torn := ops - whole:
            rows.insert(2, ("torn", "operators: only partly recorded", torn))
    elif len(mine):
        rows.append(("graphs", "graphs", in_graphs))
    if len(mine) or any(away):
        build = in_calls - in_graphs - walk - sum(away[:3])
        others = (
            ("backends", "other backends: computing, or taking work", away[0]),
            ("copies", "copies to and from other backends", away[1]),
            ("waits", "waiting for other backends", sum(away[2:])),
        )
        rows += [row for row in others if row[2]]
        if len(mine):
            rows.append(("walk", "profinfer reading the graphs", walk))
        rows += [
            ("build", "calls: building and scheduling the graphs", build - unseen),
        ]
        if unseen:
            rows.append(("unseen", "calls: not recorded, graphs of them were lost", unseen))
    else:
        rows.append(("calls", "calls", in_calls))
    rows += [
        ("sampling", "sampling", sampling - away[3]),
        ("between", "between calls", int(span) - in_calls - sampling - away[4]),
    ]
    frame = pd.DataFrame(rows, columns=["part", "label", "time_ns"])
    frame["share"] = frame["time_ns"] / span if span else np.nan
    tokens = selection.n_tokens
    frame["per_token_ns"] = frame["time_ns"] / tokens if tokens else np.nan
    columns = (
        Column("part", "part", "id", "Stable key of the row.", detail=True),
        Column("label", "where the time goes", "text", "What was going on."),
        Column("time_ns", "time", "ns", "Sum over the selected calls."),
        Column("share", "share", "ratio", "Part of the time from call to call.", bar=True),
        Column("per_token_ns", "per token", "ns", "Time divided by the tokens."),
    )
    total = {
        "time_ns": int(span),
        "share": 1.0 if span else None,
        "per_token_ns": span / tokens if tokens else None,
    }
    return Result(
        "ledger",
        "Wall time",
        selection.description,
        columns,
        frame[[c.name for c in columns]],
        notes.of(trace, selection),
        total,
    )


def _flags(rows: I64, n: int) -> npt.NDArray[np.bool_]:
    out = np.zeros(n, bool)
    out[rows] = True
    return out


def _cost(trace: Trace) -> list[Check]:
    share = estimated_share(trace)
    if share is None:
        return []
    text = f"probes cost about {format_percent(share)} of the calls' time"
    if share >= DEAR:
        text += ": the same run without them is that much faster"
    return [Check("overhead", share < DEAR, text)]


def self_check(trace: Trace) -> Result:
    """One row per question that the trace was asked about itself, and what recording it cost."""
    found = [*checks(trace), *_cost(trace)]
    bad = [c for c in found if not c.ok]
    columns = (
        Column("check", "check", "id", "Stable key."),
        Column("ok", "ok", "text", "yes or no."),
        Column("text", "answer", "text", "The answer, with numbers."),
    )
    frame = pd.DataFrame(
        [(c.name, "yes" if c.ok else "no", c.text) for c in found],
        columns=[c.name for c in columns],
    )
    if bad:
        said = tuple(Note("error" if c.severity == "error" else "warning", c.text) for c in bad)
    else:
        said = (Note("info", "; ".join(c.text for c in found)),)
    return Result("self_check", "Self-check", "the whole recording", columns, frame, said)
