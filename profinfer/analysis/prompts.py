"""Layer 6: prefill speed over the length of the prompt, prompt by prompt, of one or more traces.

Must not import rich or anything above.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from profinfer.analysis import latency, notes
from profinfer.analysis.result import Column, Note, Result
from profinfer.model.trace import Trace
from profinfer.units import format_things

COLUMNS = (
    Column("tokens", "tokens", "count", "Tokens of the prompt that were computed."),
    Column("calls", "calls", "count", "Calls that computed them: batches."),
    Column("first", "from", "id", "Position of the first: what lay before was in the KV cache."),
    Column("time_ns", "in calls", "ns", "Time of those calls."),
    Column("per_token_ns", "per token", "ns", "That, divided by the tokens."),
    Column("per_s", "tok/s", "per_s", "Prompt tokens per second of call time."),
    Column("ttft_ns", "TTFT", "ns", "Begin of the first call to the end of the first sample."),
    Column("sequence", "seq", "id", "llama_seq_id: a server's slot.", detail=True),
    Column("generation", "gen", "id", "Number of the prompt in its sequence.", detail=True),
)
TRACE = Column("trace", "trace", "text", "File that it is from.")


def prompts(traces: Sequence[Trace]) -> Result:
    """One row per prompt, shortest first. Calls shared with other sequences are left out."""
    frames, left, extra = [], 0, []
    for trace in traces:
        frame, shared = _of(trace)
        frames.append(frame.assign(trace=trace.path.name))
        left += shared
        extra += notes.losses(trace)
    frame = pd.concat(frames, ignore_index=True)
    frame = frame.sort_values(["tokens", "first"], kind="stable").reset_index(drop=True)
    columns = (TRACE, *COLUMNS) if len(traces) > 1 else COLUMNS
    if left:
        text = (
            f"{format_things(left, 'prompt')} shared a call with other sequences: the call's time "
            "is not theirs alone, so they are left out"
        )
        extra.append(Note("info", text))
    scope = format_things(len(frame), "prompt") + ", warm-up excluded"
    return Result(
        "prompts",
        "Prefill by length of the prompt",
        scope,
        columns,
        frame[[c.name for c in columns]],
        tuple(extra),
    )


def _of(trace: Trace) -> tuple[pd.DataFrame, int]:
    """Prompts whose calls are theirs alone, and how many others there are."""
    calls, seqs = trace.calls, trace.sequences
    rows = seqs[(seqs["phase"] == "prefill").to_numpy()]
    owner = rows["call_id"].to_numpy()
    alone = np.bincount(seqs["call_id"].to_numpy(), minlength=len(calls))[owner] == 1
    whole = alone & ~calls["cut"].to_numpy()[owner]
    rows = rows.assign(
        ctx=calls["ctx"].to_numpy()[owner],
        took=latency.call_times(trace)[owner],
        whole=whole,
    )
    keys = ["ctx", "seq", "generation"]
    out = rows.groupby(keys, sort=False).agg(
        tokens=("n_tokens", "sum"),
        calls=("call_id", "size"),
        first=("pos_first", "first"),
        time_ns=("took", "sum"),
        whole=("whole", "all"),
    )
    told = latency.generations(trace).set_index(keys)["ttft_ns"]
    out = out.join(told).reset_index()
    shared = int((~out["whole"]).sum())
    out = out[out["whole"] & (out["tokens"] > 0)].drop(columns=["ctx", "whole"])
    out["per_token_ns"] = out["time_ns"] / out["tokens"]
    out["per_s"] = 1e9 / out["per_token_ns"]
    for name, source in (("first", "first"), ("sequence", "seq")):
        out[name] = out[source].astype("Int64").where(out[source] >= 0)
    return out, shared
