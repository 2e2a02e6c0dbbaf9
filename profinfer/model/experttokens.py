"""Layer 5: which token of a batch, and of which sequence, the rows of expert ids are.

Vectorised over rows. Must not import the analyses or above.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.model.oprows import operator_starts

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]


class _Passes(NamedTuple):
    """Of each row: its call, tokens that its pass through the layers computes, and those before.

    A long batch is several passes; a pass is several graphs where there are several backends.
    """

    call: I64
    tokens: I64
    before: I64


def name_tokens(
    table: pd.DataFrame, calls: pd.DataFrame, sequences: pd.DataFrame, graphs: pd.DataFrame
) -> None:
    """Add ``token`` and ``seq``: which token of its call's batch a row is, and whose.

    A batch of one sequence keeps its order, however the engine cuts it; of several sequences it
    does where each has one token and all are computed together (llama-batch.cpp: split_simple,
    split_equal). The last layer of a prompt computes the wanted tokens only, which are not named.
    """
    token = np.full(len(table), -1, np.int32)
    seq = np.full(len(table), -1, np.int32)
    if len(table):
        row = table["row"].to_numpy()
        passes = _passes(table, graphs["call_id"].to_numpy())
        owner = sequences["call_id"].to_numpy()
        n_seqs = np.bincount(owner, minlength=len(calls) + 1)  # one more, for graphs without a call
        first = (np.cumsum(n_seqs) - n_seqs)[passes.call]
        one_each = np.ones(len(calls) + 1, bool)
        np.logical_and.at(one_each, owner, sequences["n_tokens"].to_numpy() == 1)
        known = np.r_[sequences["seq"].to_numpy(), -1]
        mine = n_seqs[passes.call]
        of_first = known[np.minimum(first, len(known) - 1)]
        whole = _rows_of_place(table) == passes.tokens
        alone = (mine == 1) & (of_first >= 0)
        apart = whole & (mine > 1) & one_each[passes.call] & (passes.tokens == mine)
        token = np.where(alone & whole, passes.before + row, np.where(apart, row, token))
        theirs = known[np.minimum(first + row, len(known) - 1)]
        seq = np.where(alone, of_first, np.where(apart, theirs, seq))
    table.insert(4, "token", token.astype(np.int32))
    table.insert(5, "seq", seq.astype(np.int32))


def _passes(table: pd.DataFrame, call_of_graph: I32) -> _Passes:
    graph, layer = table["graph_id"].to_numpy(), table["layer"].to_numpy()
    ids, start = np.unique(graph, return_index=True)
    stop = np.r_[start[1:], len(table)]
    call = call_of_graph[ids]
    tokens = np.maximum.reduceat(table["row"].to_numpy(), start) + 1
    # Calls of several contexts run at the same time: each call's graphs one behind the other.
    order = np.argsort(call, kind="stable")
    lowest, highest = layer[start][order], layer[stop - 1][order]
    sorted_call = call[order]
    fresh = sorted_call[1:] != sorted_call[:-1]
    first = np.flatnonzero(np.r_[True, fresh | (lowest[1:] <= highest[:-1])])
    size = np.maximum.reduceat(tokens[order], first)
    before = np.cumsum(size) - size
    opens = np.r_[True, sorted_call[first][1:] != sorted_call[first][:-1]]
    before -= before[np.maximum.accumulate(np.where(opens, np.arange(len(first)), 0))]
    number = np.empty(len(ids), np.int64)
    number[order] = np.repeat(np.arange(len(first)), np.diff(np.r_[first, len(ids)]))
    of_row = np.repeat(np.arange(len(ids)), stop - start)
    mine = number[of_row]
    return _Passes(call[of_row].astype(np.int64), size[mine], before[mine])


def _rows_of_place(table: pd.DataFrame) -> I64:
    """Rows that the same node computed in the same graph, for each row of the table."""
    graph, node = table["graph_id"].to_numpy(), table["node_id"].to_numpy()
    start = operator_starts(graph, node)
    most = np.maximum.reduceat(table["row"].to_numpy(), start) + 1
    return np.repeat(most.astype(np.int64), np.diff(np.r_[start, len(table)]))
