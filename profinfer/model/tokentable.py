"""Layer 5: every token that was computed as a row: whose it was, in which call, how long it took.

Must not import the analyses or above.
"""

from __future__ import annotations

import numpy as np
import pandas as pd


def decode_steps(calls: pd.DataFrame, sequences: pd.DataFrame) -> pd.Series:
    """Time from when the decode step before was done to when each decode step was, ns.

    Returns:
        By the row of ``sequences``, Int64: NA for the first step of a generation, and where the
        step before was not recorded. Rows that are no decode steps, or were cut off, are left out.
    """
    owner = sequences["call_id"].to_numpy()
    rows = sequences.assign(
        losses=calls["lost_before"].cumsum().to_numpy()[owner],
        **{c: calls[c].to_numpy()[owner] for c in ("ctx", "done_ns", "cut")},
    )
    rows = rows[(rows["phase"] == "decode").to_numpy() & ~rows["cut"].to_numpy()]
    groups = rows.groupby(["ctx", "seq", "generation"], sort=False)
    step: pd.Series = groups["done_ns"].diff().astype("Int64")
    follows = (groups["token_index"].diff() == 1) & (groups["losses"].diff() == 0)
    return step.where(follows.to_numpy())


def tokens_table(calls: pd.DataFrame, sequences: pd.DataFrame) -> pd.DataFrame:
    """One row per token of a call, in the order of ``sequences``."""
    n = sequences["n_tokens"].to_numpy().clip(min=0)
    row = np.repeat(np.arange(len(sequences)), n)
    place = np.arange(len(row)) - np.repeat(np.cumsum(n) - n, n)
    of = sequences.iloc[row].reset_index(drop=True)
    first = of["pos_first"].to_numpy()
    call = of["call_id"].to_numpy()
    step = decode_steps(calls, sequences).reindex(sequences.index).fillna(-1).to_numpy(np.int64)
    return pd.DataFrame(
        {
            "call_id": call,
            "seq": of["seq"],
            "position": np.where(first >= 0, first + place, -1),
            "phase": of["phase"],
            "generation": of["generation"],
            "token_index": of["token_index"],
            "begin_ns": calls["begin_ns"].to_numpy()[call],
            "end_ns": calls["end_ns"].to_numpy()[call],
            "done_ns": calls["done_ns"].to_numpy()[call],
            "step_ns": step[row],
        }
    )
