"""Layer 5: the number of tokens of a call whose batch could not be read, from its graphs.

Must not import the analyses or above.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from profinfer.model.calls import Spans
from profinfer.model.phases import PHASES, with_phases

TOKEN_TABLE = "token_embd.weight"


def counted(spans: Spans, nodes: pd.DataFrame) -> tuple[Spans, int]:
    """Fill in n_tokens = -1 where the graphs tell it, and work out the phases again.

    A graph's tokens are the rows that its first GET_ROWS takes from the token table.

    Returns:
        The spans, and how many calls were filled in.
    """
    calls = spans.calls
    unknown = calls["n_tokens"].to_numpy() < 0
    if not unknown.any() or not len(nodes):
        return spans, 0
    rows = (nodes["op"] == "GET_ROWS") & (nodes["src0_name"] == TOKEN_TABLE)
    of_def = nodes[rows].groupby("def_id", observed=True)["ne1"].first()
    graphs = spans.graphs
    tokens = graphs["def_id"].map(of_def).fillna(0).to_numpy(np.int64)
    inside = graphs["call_id"].to_numpy() >= 0
    total = np.zeros(len(calls), np.int64)
    np.add.at(total, graphs["call_id"].to_numpy()[inside], tokens[inside])
    filled = unknown & (total > 0)
    if not filled.any():
        return spans, 0
    calls = calls.assign(n_tokens=np.where(filled, total, calls["n_tokens"]))
    seqs = spans.sequences
    owner = seqs["call_id"].to_numpy()
    seqs = seqs.assign(n_tokens=np.where(filled[owner], total[owner], seqs["n_tokens"]))
    calls, seqs = with_phases(calls, seqs)
    codes = np.r_[calls["phase"].cat.codes.to_numpy(), PHASES.index("other")]
    phase = pd.Categorical.from_codes(
        codes[graphs["call_id"].to_numpy()], categories=pd.Index(PHASES)
    )
    spans = dataclasses.replace(
        spans, calls=calls, sequences=seqs, graphs=graphs.assign(phase=phase)
    )
    return spans, int(filled.sum())
