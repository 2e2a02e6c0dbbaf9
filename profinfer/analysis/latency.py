"""Layer 6: time to first token, time per output token, speeds. ``docs/metrics.md`` defines them.

Must not import rich or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.model.tokentable import decode_steps
from profinfer.model.trace import Trace

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Speed:
    """One phase: what llama.cpp prints as "prompt eval" and "eval".

    Attributes:
        phase: prefill, decode, ...
        calls: how many.
        tokens: of all calls, unknown ones left out.
        time_ns: sum of the calls' time, from begin to results.
        sampling_ns: sum of the sampling that follows them, without waiting for the results.
    """

    phase: str
    calls: int
    tokens: int
    time_ns: int
    sampling_ns: int

    @property
    def per_s(self) -> float | None:
        """Tokens per second of call time."""
        return self.tokens * 1e9 / self.time_ns if self.time_ns and self.tokens else None


def latest_call(trace: Trace, table: pd.DataFrame) -> I64:
    """Row of the latest call on its thread that began before each row did, -1 if none.

    None, too, where the latest one was lost.
    """
    out = np.full(len(table), -1, np.int64)
    tids, begins = table["tid"].to_numpy(), table["begin_ns"].to_numpy()
    c_tid, c_begin = trace.calls["tid"].to_numpy(), trace.calls["begin_ns"].to_numpy()
    for tid in np.unique(tids):
        mine, theirs = np.flatnonzero(tids == tid), np.flatnonzero(c_tid == tid)
        at = np.searchsorted(c_begin[theirs], begins[mine], side="right") - 1
        out[mine[at >= 0]] = theirs[at[at >= 0]]
    at = np.flatnonzero(out >= 0)
    ends = trace.calls["end_ns"].to_numpy()[out[at]]
    out[at[trace.lost_calls.touches(tids[at], ends, begins[at])]] = -1
    return out


def sample_owner(trace: Trace) -> I64:
    """Row of the call that each sample follows on its thread, -1 if none."""
    return latest_call(trace, trace.samples)


def call_times(trace: Trace) -> I64:
    """Nanoseconds of each call: from its begin until its results were there."""
    return np.asarray((trace.calls["done_ns"] - trace.calls["begin_ns"]).to_numpy(np.int64))


def sampling_per_call(trace: Trace, since: str = "done_ns") -> I64:
    """Nanoseconds sampled after each call, once its results were there.

    A sampler that waits for another backend first takes that part of the call's time.

    Args:
        trace: the trace.
        since: column of calls: from when on; ``end_ns`` takes all that samplers took.
    """
    out = np.zeros(len(trace.calls), np.int64)
    owner = sample_owner(trace)
    at = np.flatnonzero(owner >= 0)
    begin, end = (trace.samples[c].to_numpy(np.int64)[at] for c in ("begin_ns", "end_ns"))
    first = np.maximum(begin, trace.calls[since].to_numpy()[owner[at]])
    np.add.at(out, owner[at], np.maximum(end - first, 0))
    return out


def windows(trace: Trace) -> I64:
    """End of each call's window: begin of the next call of its thread, or its last sample's end.

    The latter too if calls were lost in between; and not before its results were there.
    """
    calls = trace.calls
    begin, done, tid = (calls[c].to_numpy() for c in ("begin_ns", "done_ns", "tid"))
    out = done.copy()
    owner = sample_owner(trace)
    np.maximum.at(out, owner[owner >= 0], trace.samples["end_ns"].to_numpy()[owner >= 0])
    order = np.lexsort((begin, tid))
    same = tid[order][1:] == tid[order][:-1]
    same &= ~calls["lost_before"].to_numpy()[order][1:]
    out[order[:-1][same]] = begin[order][1:][same]
    return out


def speeds(trace: Trace) -> list[Speed]:
    """Every phase that has calls, in order of their use."""
    calls = trace.calls
    sampling = sampling_per_call(trace)
    spent = call_times(trace)
    tokens = calls["n_tokens"].to_numpy().clip(min=0)
    out = []
    for phase in ("warmup", "encode", "prefill", "decode", "verify", "mixed", "other"):
        mine = (calls["phase"] == phase).to_numpy() & ~calls["cut"].to_numpy()
        if mine.any():
            out.append(
                Speed(
                    phase,
                    int(mine.sum()),
                    int(tokens[mine].sum()),
                    int(spent[mine].sum()),
                    int(sampling[mine].sum()),
                )
            )
    return out


def generations(trace: Trace) -> pd.DataFrame:
    """One row per prompt of a sequence: what came of it, in order of its first call.

    Columns: ctx, seq, generation, begin_ns (of its first call), end_ns (its last call was done),
    prompt_tokens, ttft_ns (begin of the first prefill call to the end of the first sample after
    the last one), output_tokens (decode steps; the token that the prefill yields is not one).
    Without a prompt that was seen from its beginning, prompt_tokens and ttft_ns are NA. answered:
    something was sampled or decoded, where the program samples at all; engines try things out with
    prompts that nobody wants an answer to.
    """
    rows = _steps(trace)
    keys = ["ctx", "seq", "generation"]
    of_all = rows.groupby(keys, sort=False)
    out = pd.DataFrame(
        {
            "begin_ns": of_all["begin_ns"].min(),
            "end_ns": of_all["done_ns"].max(),
            "output_tokens": of_all["decodes"].sum(),
        }
    )
    prompt = rows[rows["phase"] == "prefill"].groupby(keys, sort=False)
    prompts = pd.DataFrame(
        {
            "prompt_tokens": prompt["n_tokens"].sum(),
            "first_ns": prompt["begin_ns"].min(),
            "last_call": prompt["call_id"].last(),
            "pos": prompt["pos_first"].first(),
        }
    )
    if trace.excerpt:
        # The recording may have begun in the middle of a sequence's first prompt.
        number = prompts.index.get_level_values("generation")
        prompts = prompts[~((number == 0) & (prompts["pos"] > 0).to_numpy())]
    first = first_samples(trace)
    done = pd.Series(first[prompts["last_call"].to_numpy()], prompts.index)
    prompts = prompts.assign(ttft_ns=done - prompts["first_ns"])
    told = prompts[["prompt_tokens", "ttft_ns"]].reindex(out.index).astype("Int64")
    followed = np.zeros(len(trace.calls), bool)
    owner = sample_owner(trace)
    followed[owner[owner >= 0]] = True
    sampled = prompts["last_call"].map(dict(enumerate(followed))).reindex(out.index)
    answered = (out["output_tokens"] > 0) | sampled.fillna(False).astype(bool)
    return out.join(told).assign(answered=answered | (not len(trace.samples))).reset_index()


def first_samples(trace: Trace) -> I64:
    """End of the first sample after each call; when it was done where nothing was sampled.

    What a sampler made before the results were there is not of them: a token is not there earlier.
    """
    done = trace.calls["done_ns"].to_numpy()
    out = done.copy()
    owner, ends = sample_owner(trace), trace.samples["end_ns"].to_numpy()
    owned = np.flatnonzero(owner >= 0)[::-1]  # the first sample is written last
    out[owner[owned]] = ends[owned]
    return np.asarray(np.maximum(out, done))


def time_to_first_token(trace: Trace) -> I64:
    """``ttft_ns`` of each generation that was answered and whose prompt was seen."""
    table = generations(trace)
    return np.asarray(table["ttft_ns"][table["answered"]].dropna().to_numpy(np.int64), np.int64)


def time_per_output_token(trace: Trace) -> I64:
    """Distances between the moments when consecutive decode calls were done, by generation, ns."""
    return np.asarray(token_steps(trace)["step_ns"].dropna().to_numpy(np.int64), np.int64)


def token_steps(trace: Trace) -> pd.DataFrame:
    """One row per decode step: ctx, seq, generation, call_id, step_ns (NA for the first)."""
    step = decode_steps(trace.calls, trace.sequences)
    rows = _steps(trace).loc[step.index, ["ctx", "seq", "generation", "call_id"]]
    return rows.assign(step_ns=step)


def _steps(trace: Trace) -> pd.DataFrame:
    """The sequences table of prefill and decode, with the calls' ctx and times."""
    calls, seqs = trace.calls, trace.sequences
    owner = seqs["call_id"].to_numpy()
    rows = seqs.assign(
        decodes=(seqs["phase"] == "decode").astype(np.int64),
        **{c: calls[c].to_numpy()[owner] for c in ("ctx", "begin_ns", "done_ns")},
    )
    return rows[rows["phase"].isin(("prefill", "decode"))]


def quantile(values: I64, q: float) -> int | None:
    """Nearest-rank quantile: a value that was measured, None without values."""
    if not len(values):
        return None
    return int(np.sort(values)[max(int(np.ceil(q * len(values))) - 1, 0)])
