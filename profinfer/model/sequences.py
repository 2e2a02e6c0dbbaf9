"""Layer 5: which sequences the tokens of each call belong to.

A server decodes one token of several requests in one call, and reads the prompts of others in the
same batch. Loops over calls, never over operators. Must not import the analyses or above.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.model.decode import Records, int64
from profinfer.model.spans import parents
from profinfer.tracefile import schema
from profinfer.tracefile.schema import Kind

I64 = npt.NDArray[np.int64]


def sequences(records: Records, calls: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """One row per call and sequence, in the order of the calls and of the batch.

    Args:
        records: of the trace.
        calls: call_id, tid, begin_ns, end_ns, n_tokens, pos_first, n_seqs, seq.

    Returns:
        A table call_id, seq (-1: not known, all tokens of the call in one row), pos_first (of the
        sequence's first token in this batch), n_tokens, n_outputs (-1: not known); and of how many
        batches the sequences were recorded, but not to the end.
    """
    runs, torn = _runs(records, calls)
    told = np.zeros(len(calls), bool)
    told[runs["call_id"].to_numpy()] = True
    rest = calls[~told]
    alone = (rest["n_seqs"] == 1).to_numpy()
    whole = pd.DataFrame(
        {
            "call_id": rest["call_id"].to_numpy(),
            "seq": np.where(alone, rest["seq"], -1),
            "pos_first": rest["pos_first"].to_numpy(),
            "n_tokens": rest["n_tokens"].to_numpy(),
            "n_outputs": np.full(len(rest), -1),
        }
    )
    both = pd.concat([runs, whole], ignore_index=True)
    both = both.sort_values("call_id", kind="stable", ignore_index=True).astype(np.int64)
    return both.astype({"call_id": np.int32, "seq": np.int32}), torn


def _runs(records: Records, calls: pd.DataFrame) -> tuple[pd.DataFrame, int]:
    """The same, of the calls whose batch was walked to its end."""
    rows = records.rows[Kind.SEQS]
    tid, ts = int64(rows["tid"]), int64(rows["ts"])
    begin = calls["begin_ns"].to_numpy()
    at = parents(tid, ts, calls["tid"].to_numpy(np.int64), begin, calls["end_ns"].to_numpy())
    rows, at, ts = rows[at >= 0], at[at >= 0], ts[at >= 0]
    # An older entry may wrap a newer one, and both know: the outer one's, which is the earliest.
    earliest = np.full(len(calls), np.iinfo(np.int64).max)
    np.minimum.at(earliest, at, ts)
    rows, at = rows[ts == earliest[at]], at[ts == earliest[at]]
    n = np.minimum(rows["n_runs"], schema.RUNS_PER_RECORD).astype(np.int64)
    used = np.arange(schema.RUNS_PER_RECORD) < n[:, None]
    run = rows["run"][used]
    flat = pd.DataFrame(
        {
            "call_id": np.repeat(at, n),
            "seq": run["seq"].astype(np.int64),
            "pos_first": run["pos"].astype(np.int64),
            "n_tokens": run["n_tokens"].astype(np.int64),
            "n_outputs": run["n_outputs"].astype(np.int64),
        }
    )
    merged = flat.groupby(["call_id", "seq"], sort=False, as_index=False).agg(
        {"pos_first": "first", "n_tokens": "sum", "n_outputs": "sum"}
    )
    counted = np.zeros(len(calls), np.int64)
    np.add.at(counted, merged["call_id"].to_numpy(), merged["n_tokens"].to_numpy())
    whole = counted == calls["n_tokens"].to_numpy()
    whole[at[(rows["flags"] & schema.SEQS_CUT) != 0]] = False
    torn = len(np.unique(at[~whole[at]]))
    return merged[whole[merged["call_id"].to_numpy()]], torn
