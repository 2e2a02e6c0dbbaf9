"""Layer 6: one row per prompt and what came of it: the requests of a server, told apart.

Must not import rich or anything above.
"""

from __future__ import annotations

import pandas as pd

from profinfer.analysis import firsttoken, latency, notes
from profinfer.analysis.result import Column, Result
from profinfer.model.trace import Trace
from profinfer.units import format_things

COLUMNS = (
    Column("context", "ctx", "id", "Number of the llama_context, in order of first use."),
    Column("sequence", "seq", "id", "llama_seq_id: a server's slot."),
    Column("generation", "gen", "id", "Number of the prompt in its sequence."),
    Column("begin_ns", "begin", "ns", "Begin of its first call, since the recording's first."),
    Column("prompt_tokens", "prompt", "count", "Tokens of the prompt that were computed."),
    Column("ttft_ns", "TTFT", "ns", "Begin of its first prefill call to the first sample."),
    Column("queue_ns", "queue", "ns", "From being queued to being given a slot.", detail=True),
    Column("start_ns", "start", "ns", "From the slot to its first call.", detail=True),
    Column("own_ns", "own", "ns", "TTFT: prefill calls, by its part of them.", detail=True),
    Column("others_ns", "others", "ns", "TTFT: other sequences' work meanwhile.", detail=True),
    Column("rest_ns", "rest", "ns", "TTFT: outside of calls.", detail=True),
    Column("output_tokens", "decoded", "count", "Decode steps."),
    Column("tpot_p50_ns", "TPOT p50", "ns", "Median time per output token.", like="tpot"),
    Column("tpot_max_ns", "TPOT max", "ns", "The longest.", like="tpot"),
    Column("per_s", "tok/s", "per_s", "Steps over their time, other sequences' work included."),
    Column("end_ns", "end", "ns", "End of its last call, since the first.", detail=True),
)


def generations(trace: Trace, top: int | None = None) -> Result:
    """One row per generation of every context and sequence, in order of their begin."""
    table = latency.generations(trace).sort_values("begin_ns", kind="stable")
    steps = latency.token_steps(trace).dropna()
    keys = ["ctx", "seq", "generation"]
    grouped = steps.astype({"step_ns": "int64"}).groupby(keys, sort=False)["step_ns"]
    of_steps = pd.DataFrame(
        {
            "tpot_p50_ns": grouped.quantile(0.5, interpolation="lower"),
            "tpot_max_ns": grouped.max(),
            "per_s": 1e9 / grouped.mean(),
        }
    )
    table = table.join(of_steps, on=keys)
    waited = firsttoken.parts(trace, table)
    start = int(trace.calls["begin_ns"].min()) if len(trace.calls) else 0
    frame = pd.DataFrame(
        {
            "context": pd.factorize(table["ctx"])[0],
            "sequence": table["seq"].astype("Int64").where(table["seq"] >= 0),
            "generation": table["generation"],
            "begin_ns": table["begin_ns"] - start,
            "prompt_tokens": table["prompt_tokens"],
            "ttft_ns": table["ttft_ns"],
            **{name: waited[name] for name in waited},
            "output_tokens": table["output_tokens"],
            "tpot_p50_ns": table["tpot_p50_ns"].astype("Int64"),
            "tpot_max_ns": table["tpot_max_ns"].astype("Int64"),
            "per_s": table["per_s"],
            "end_ns": table["end_ns"] - start,
        }
    ).reset_index(drop=True)
    total = {
        "prompt_tokens": int(frame["prompt_tokens"].fillna(0).sum()),
        "output_tokens": int(frame["output_tokens"].sum()),
    }
    many = len(frame)
    title = "Generations"
    if top and many > top:
        frame = frame.nlargest(top, "output_tokens").sort_index().reset_index(drop=True)
        title = f"The {top} longest of {many:,} generations"
    contexts = table["ctx"].nunique()
    sequences = len(table[["ctx", "seq"]].drop_duplicates())
    scope = f"{format_things(contexts, 'context')}, {format_things(sequences, 'sequence')}"
    return Result("generations", title, scope, COLUMNS, frame, tuple(notes.losses(trace)), total)
