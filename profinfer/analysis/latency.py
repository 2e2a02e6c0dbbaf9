"""Layer 6: time to first token, time per output token, speeds. ``docs/metrics.md`` defines them.

Must not import rich or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.model.trace import Trace

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Speed:
    """One phase: what llama.cpp prints as "prompt eval" and "eval".

    Attributes:
        phase: prefill, decode, ...
        calls: how many.
        tokens: of all calls, unknown ones left out.
        time_ns: sum of the calls' time.
        sampling_ns: sum of the sampling that follows them.
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


def sample_owner(trace: Trace) -> I64:
    """Row of the call that each sample follows on its thread, -1 if none."""
    out = np.full(len(trace.samples), -1, np.int64)
    s_tid, s_begin = trace.samples["tid"].to_numpy(), trace.samples["begin_ns"].to_numpy()
    c_tid, c_begin = trace.calls["tid"].to_numpy(), trace.calls["begin_ns"].to_numpy()
    for tid in np.unique(s_tid):
        mine, theirs = np.flatnonzero(s_tid == tid), np.flatnonzero(c_tid == tid)
        at = np.searchsorted(c_begin[theirs], s_begin[mine], side="right") - 1
        out[mine[at >= 0]] = theirs[at[at >= 0]]
    return out


def sampling_per_call(trace: Trace) -> I64:
    """Nanoseconds sampled after each call."""
    out = np.zeros(len(trace.calls), np.int64)
    owner = sample_owner(trace)
    spent = (trace.samples["end_ns"] - trace.samples["begin_ns"]).to_numpy()
    np.add.at(out, owner[owner >= 0], spent[owner >= 0])
    return out


def speeds(trace: Trace) -> list[Speed]:
    """Every phase that has calls, in order of their use."""
    calls = trace.calls
    sampling = sampling_per_call(trace)
    spent = (calls["end_ns"] - calls["begin_ns"]).to_numpy()
    tokens = calls["n_tokens"].to_numpy().clip(min=0)
    out = []
    for phase in ("warmup", "encode", "prefill", "decode", "other"):
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


def time_to_first_token(trace: Trace) -> I64:
    """Per generation: begin of its first prefill call to the end of its first sample, ns."""
    calls = trace.calls
    prefill = calls[calls["phase"] == "prefill"]
    owner = sample_owner(trace)
    ends = trace.samples["end_ns"].to_numpy()
    out: list[int] = []
    for (_, generation), group in prefill.groupby(["ctx", "generation"], sort=False):
        if trace.excerpt and generation == 0 and int(group["pos_first"].iloc[0]) > 0:
            continue  # the recording began in the middle of this prompt
        last = int(group.index[-1])
        following = ends[owner == last]
        end = int(following[0]) if len(following) else int(group["end_ns"].iloc[-1])
        out.append(end - int(group["begin_ns"].iloc[0]))
    return np.array(out, np.int64)


def time_per_output_token(calls: pd.DataFrame) -> I64:
    """Distances between the ends of consecutive decode calls of a generation, ns."""
    decode = calls[(calls["phase"] == "decode") & ~calls["cut"]]
    steps = decode.groupby(["ctx", "generation"], sort=False)["end_ns"].diff()
    consecutive = decode.groupby(["ctx", "generation"], sort=False)["token_index"].diff() == 1
    return np.asarray(steps[consecutive].astype("int64").to_numpy(), np.int64)


def quantile(values: I64, q: float) -> int | None:
    """Nearest-rank quantile: a value that was measured, None without values."""
    if not len(values):
        return None
    return int(np.sort(values)[max(int(np.ceil(q * len(values))) - 1, 0)])
