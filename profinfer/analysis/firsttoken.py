"""Layer 6: what a request's time to first token is made of: queue, own prompt, the others' work.

Must not import rich or above.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.analysis import latency, notes
from profinfer.analysis.result import Column, Note, Result
from profinfer.model.trace import Trace

I64 = npt.NDArray[np.int64]

COLUMNS: tuple[Column, ...] = (
    Column("sequence", "seq", "id", "llama_seq_id: a server's slot."),
    Column("generation", "gen", "id", "Number of the prompt in its sequence."),
    Column("queue_ns", "queue", "ns", "From being queued to being given a slot.", like="t"),
    Column("start_ns", "start", "ns", "From the slot to its first prefill call.", like="t"),
    Column("own_ns", "own prompt", "ns", "Prefill calls, by its part of their tokens.", like="t"),
    Column("others_ns", "others", "ns", "The rest of these calls, and calls without it.", like="t"),
    Column("rest_ns", "rest", "ns", "Outside of calls, the first sample included.", like="t"),
    Column("ttft_ns", "TTFT", "ns", "First prefill call to the first sample.", like="t"),
    Column("since_queued_ns", "in all", "ns", "From being queued to the first sample.", like="t"),
)
_NONE = -1
_PARTS = ("own_ns", "others_ns", "rest_ns")
UNKNOWN = (
    "when requests came is not known: no function of a server's queue was recorded, so time in the "
    "queue is missing from TTFT"
)


def parts(trace: Trace, table: pd.DataFrame) -> pd.DataFrame:
    """Of each row of ``latency.generations``: queue_ns, start_ns, own_ns, others_ns, rest_ns, ns.

    own, others and rest sum to ttft_ns. NA where a prompt was not seen from its begin, or, of
    queue and start, where it is not known when the request came.
    """
    told = np.full((len(table), len(_PARTS)), _NONE, np.int64)
    calls, seqs = trace.calls, trace.sequences
    owner = seqs["call_id"].to_numpy()
    begin, end = (calls[c].to_numpy(np.int64) for c in ("begin_ns", "done_ns"))
    tokens = calls["n_tokens"].to_numpy(np.int64)
    prompt = (seqs["phase"] == "prefill").to_numpy()
    seq, generation = seqs["seq"].to_numpy(), seqs["generation"].to_numpy()
    ctx = calls["ctx"].to_numpy()
    keys = (table[name].to_numpy() for name in ("ctx", "seq", "generation", "begin_ns"))
    until = table["begin_ns"] + table["ttft_ns"].fillna(_NONE).astype(np.int64)
    seen = table["ttft_ns"].notna()
    for row, (of, number, which, since, last, known) in enumerate(
        zip(*keys, until.to_numpy(), seen.to_numpy(), strict=True)
    ):
        if not known:
            continue
        mine = prompt & (seq == number) & (generation == which) & (ctx[owner] == of)
        during = (begin < last) & (end > since)
        length = np.minimum(end, last) - np.maximum(begin, since)
        its = owner[mine]
        share = seqs["n_tokens"].to_numpy(np.int64)[mine] / np.maximum(tokens[its], 1)
        own = int((length[its] * np.minimum(share, 1.0)).sum())
        # Contexts on other threads compute at the same time: they take nothing from it.
        same = during & (calls["tid"].to_numpy() == calls["tid"].to_numpy()[its[0]])
        inside = int(length[same].sum())
        told[row] = own, inside - own, int(last - since) - inside
    out = _queued(trace, table)
    for name, values in zip(_PARTS, told.T, strict=True):
        out[name] = _nullable(values, table)
    return out


def _nullable(values: I64, table: pd.DataFrame) -> pd.Series[Any]:
    """Values by the table's rows, NA where there is none."""
    out = pd.Series(values, index=table.index).astype("Int64")
    return out.where(out != _NONE)


def _queued(trace: Trace, table: pd.DataFrame) -> pd.DataFrame:
    """queue_ns and start_ns: the last launch on the slot before its first call."""
    requests = trace.requests
    launched = requests[(requests["launched_ns"] >= 0).to_numpy()]
    queue, start = (np.full(len(table), _NONE, np.int64) for _ in range(2))
    taken: set[int] = set()
    order = np.argsort(table["begin_ns"].to_numpy(), kind="stable")
    for row in order.tolist():
        one = table.iloc[row]
        fits = launched[
            (launched["seq"] == one["seq"]) & (launched["launched_ns"] <= one["begin_ns"])
        ]
        if not len(fits) or int(fits["task"].iloc[-1]) in taken:
            continue
        last = fits.sort_values("launched_ns").iloc[-1]
        taken.add(int(last["task"]))
        start[row] = int(one["begin_ns"] - last["launched_ns"])
        if last["posted_ns"] >= 0:
            queue[row] = int(last["launched_ns"] - last["posted_ns"])
    return pd.DataFrame({"queue_ns": _nullable(queue, table), "start_ns": _nullable(start, table)})


def first_tokens(trace: Trace, top: int | None = None) -> Result:
    """One row per answered prompt that was seen from its begin, in order of its begin."""
    table = latency.generations(trace).sort_values("begin_ns", kind="stable")
    table = table[(table["answered"] & table["ttft_ns"].notna()).to_numpy()]
    told = parts(trace, table)
    whole = told["queue_ns"] + told["start_ns"] + table["ttft_ns"]
    frame = pd.DataFrame(
        {
            "sequence": table["seq"].astype("Int64").where(table["seq"] >= 0),
            "generation": table["generation"],
            **{name: told[name] for name in ("queue_ns", "start_ns", *_PARTS)},
            "ttft_ns": table["ttft_ns"],
            "since_queued_ns": whole,
        }
    ).reset_index(drop=True)
    known = frame["queue_ns"].notna()
    extra = [] if known.any() or not _serves(trace) else [Note("info", UNKNOWN)]
    columns = COLUMNS
    if not known.any():
        hidden = ("queue_ns", "start_ns", "since_queued_ns")
        columns = tuple(c for c in COLUMNS if c.name not in hidden)
    many = len(frame)
    extra += notes.cut(min(top or many, many), many) if top else []
    total = {c.name: int(frame[c.name].fillna(0).sum()) for c in columns if c.unit == "ns"}
    if top and top < many:
        frame = frame.nlargest(top, "ttft_ns").sort_index()
    return Result(
        "first_tokens",
        "Time to first token",
        "what each prompt waited for",
        columns,
        frame[[c.name for c in columns]],
        (*notes.losses(trace), *extra),
        total,
    )


def _serves(trace: Trace) -> bool:
    """Several sequences: somebody's requests."""
    return trace.sequences["seq"].nunique() > 1
