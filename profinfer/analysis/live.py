"""Layer 6: what a running target does, from a trace of its last seconds.

Must not import rich or above.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd

from profinfer.analysis import latency, operators, threads
from profinfer.model.trace import Trace

_PHASES = ("decode", "prefill", "mixed", "encode")
IDLE_NS = 500_000_000  # without a call for longer than this it is called idle


@dataclass(frozen=True)
class Row:
    """Operators of one kind.

    Attributes:
        name: role or operator type.
        per_token_ns: wall time a token.
        share: of the operators' time.
        wait_share: waiting as a part of computing and waiting, NaN if it is not known.
    """

    name: str
    per_token_ns: float
    share: float
    wait_share: float


@dataclass(frozen=True)
class ThreadRow:
    """One thread.

    Attributes:
        name: of the thread.
        tid: its id.
        compute: part of the operators' time that it computed.
        wait: part that it waited in barriers.
        on_cpu: part that it was on a CPU, NaN if it is not known.
    """

    name: str
    tid: int
    compute: float
    wait: float
    on_cpu: float


@dataclass(frozen=True)
class LiveView:
    """What is shown.

    Attributes:
        since_ns: begin of the interval that "now" is about.
        now_ns: its end.
        window_ns: how far back operators, threads and percentiles look.
        state: a phase, "idle", or "inside of a long call" that began before the window.
        idle_ns: since the last call; 0 inside of one, or if none was seen.
        sequences: that took part in calls during the interval.
        tps: tokens decoded a second of the interval.
        prefill_tps: prompt tokens a second of the interval.
        tpot_p50_ns: of the window, None without steps.
        tpot_p90_ns: likewise.
        by: what operators are grouped by.
        phase: that rows are of; None without operators.
        seen: tokens of that phase in the window during which operators were recorded.
        of_tokens: all of them.
        token_ns: their operators' wall time a token.
        rows: the largest first.
        threads: those that compute.
    """

    since_ns: int
    now_ns: int
    window_ns: int
    state: str
    idle_ns: int
    sequences: int
    tps: float
    prefill_tps: float
    tpot_p50_ns: int | None
    tpot_p90_ns: int | None
    by: str = "role"
    phase: str | None = None
    seen: int = 0
    of_tokens: int = 0
    token_ns: float = 0.0
    rows: list[Row] = field(default_factory=list)
    threads: list[ThreadRow] = field(default_factory=list)


def live(
    trace: Trace, since_ns: int, now_ns: int, by: str = "role", open_ns: int | None = None
) -> LiveView:
    """Look at the last seconds.

    Args:
        trace: an excerpt that ends now.
        since_ns: what happened after this moment counts as now.
        now_ns: when the excerpt was made.
        by: what operators are grouped by: "role", "op" or "layer".
        open_ns: when a call began that was under way when the excerpt began; None without one.
    """
    calls = trace.calls
    ended = calls[~calls["cut"].to_numpy() & (calls["done_ns"] > since_ns).to_numpy()]
    # Of a call that began before the interval only a part belongs to it.
    length = (ended["done_ns"] - ended["begin_ns"]).clip(lower=1)
    part = ((ended["done_ns"] - ended["begin_ns"].clip(lower=since_ns)) / length).to_numpy()
    span_s = max(now_ns - since_ns, 1) / 1e9
    decoded = float((ended["n_decoded"].to_numpy() * part).sum())
    given = float((ended["n_tokens"].to_numpy().clip(min=0) * part).sum())
    steps = latency.token_steps(trace)["step_ns"].dropna().to_numpy(np.int64)
    state, idle = _state(calls, now_ns)
    if not len(calls) and open_ns is not None:
        state = "inside of a long call"
    recent = trace.sequences[trace.sequences["call_id"].isin(ended["call_id"])]
    begin = int(calls["begin_ns"].min()) if len(calls) else since_ns
    view = LiveView(
        since_ns=since_ns,
        now_ns=now_ns,
        window_ns=now_ns - min(begin, since_ns),
        state=state,
        idle_ns=idle,
        sequences=len(recent[["seq"]].drop_duplicates()),
        tps=decoded / span_s,
        prefill_tps=max(given - decoded, 0.0) / span_s,
        tpot_p50_ns=latency.quantile(steps, 0.5),
        tpot_p90_ns=latency.quantile(steps, 0.9),
        by=by,
    )
    return _with_operators(view, trace)


def _state(calls: pd.DataFrame, now_ns: int) -> tuple[str, int]:
    """A phase inside of a call; else since when there is none."""
    if not len(calls):
        return "idle", 0
    last = calls.iloc[int(calls["done_ns"].to_numpy().argmax())]
    if bool(last["cut"]):
        return str(last["phase"]), 0
    idle = max(now_ns - int(last["done_ns"]), 0)
    return ("idle" if idle > IDLE_NS else str(last["phase"])), idle


def _with_operators(view: LiveView, trace: Trace) -> LiveView:
    """With the operators of the phase that took most of the window."""
    calls = trace.calls
    spent = (calls["done_ns"] - calls["begin_ns"]).groupby(calls["phase"].astype(str)).sum()
    known = [phase for phase in _PHASES if phase in spent.index]
    if not known or trace.meta.plan.ops.mode == "none":
        return view
    phase = max(known, key=lambda p: int(spent[p]))
    chosen = trace.select(phase=phase)
    view = replace(view, phase=phase, of_tokens=chosen.of_tokens)
    if not chosen.n_tokens or not len(trace.ops):
        return view
    table = operators.by(trace, chosen, view.by)
    frame = table.frame
    rows = [
        Row(str(name), float(each), float(share), float(wait))
        for name, each, share, wait in zip(
            frame[view.by], frame["per_token_ns"], frame["share"], frame["wait_share"], strict=True
        )
    ]
    return replace(
        view,
        seen=chosen.n_tokens,
        token_ns=float((table.total or {}).get("per_token_ns") or 0.0),
        rows=rows,
        threads=_thread_rows(threads.threads(trace, chosen, states=True).frame),
    )


def _thread_rows(frame: pd.DataFrame) -> list[ThreadRow]:
    both = (frame["compute_ns"] + frame["wait_ns"]).to_numpy(float)
    whole = max(float(both.max(initial=0.0)), 1.0)
    on_cpu = frame["on_cpu"].to_numpy(float) if "on_cpu" in frame else np.full(len(frame), np.nan)
    return [
        ThreadRow(str(name), int(tid), float(compute) / whole, float(wait) / whole, float(cpu))
        for name, tid, compute, wait, cpu in zip(
            frame["thread"], frame["tid"], frame["compute_ns"], frame["wait_ns"], on_cpu,
            strict=True,
        )
    ]  # fmt: skip
