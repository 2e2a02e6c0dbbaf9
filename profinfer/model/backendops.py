"""Layer 5: operators that other backends compute, or record, node by node on the host.

BLAS: each operator calls the library a known number of times, so that the calls inside a split tell
its operators apart, in the order of its nodes. Vulkan: the function that records a node's commands
is given the node's index. Must not import the analyses or above.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.engine.catalog import backend_facts
from profinfer.model.spans import parents

I64 = npt.NDArray[np.int64]
_COLUMNS = ("split_id", "node_id", "how", "begin_ns", "end_ns", "library_ns")


def backend_operators(
    splits: pd.DataFrame, nodes: pd.DataFrame, work: pd.DataFrame
) -> pd.DataFrame:
    """One row per operator of a split.

    Columns: split_id, node_id, how (``computed``, or ``recorded``: its commands were, it runs
    later), begin_ns, end_ns, library_ns (inside of it, in the library behind the backend). A BLAS
    operator lasts from the end of the one before, or the split's begin, to the end of its last
    library call. Splits whose calls do not fit their nodes are left out.
    """
    parts = [_computed(splits, nodes, work), _recorded(splits, nodes, work)]
    table = pd.concat(parts, ignore_index=True)
    return table.astype({"split_id": np.int32, "node_id": np.int32}).astype(
        dict.fromkeys(("begin_ns", "end_ns", "library_ns"), np.int64) | {"how": "category"}
    )


def _inside(splits: pd.DataFrame, work: pd.DataFrame, kind: str) -> tuple[pd.DataFrame, I64]:
    """Work of a kind in order of time, and the row of the split around each, -1 for none."""
    mine = work[(work["kind"] == kind).to_numpy() & ~work["cut"].to_numpy()]
    mine = mine.sort_values(["tid", "begin_ns"], kind="stable")
    outer = splits[splits["outermost"].to_numpy()]
    at = parents(
        mine["tid"].to_numpy(np.int64),
        mine["begin_ns"].to_numpy(),
        outer["tid"].to_numpy(np.int64),
        outer["begin_ns"].to_numpy(),
        outer["end_ns"].to_numpy(),
    )
    return mine, np.r_[outer["split_id"].to_numpy(np.int64), -1][at]


def _nodes_of(
    splits: pd.DataFrame, nodes: pd.DataFrame, wanted: npt.NDArray[np.bool_]
) -> pd.DataFrame:
    """The wanted nodes of every split: split_id, node_id, idx and repeats, in order."""
    starts = nodes.groupby("def_id")["node_id"].min()
    chosen = nodes.loc[wanted, ["node_id", "def_id", "idx"]]
    known = splits.loc[splits["def_id"].isin(starts.index), ["split_id", "def_id"]]
    return known.merge(chosen, on="def_id").sort_values(["split_id", "idx"], kind="stable")


def _computed(splits: pd.DataFrame, nodes: pd.DataFrame, work: pd.DataFrame) -> pd.DataFrame:
    calls, split = _inside(splits, work, "gemm")
    if not len(calls):
        return pd.DataFrame(columns=_COLUMNS)
    rule = backend_facts().blas_calls
    op, empty = nodes["op"].astype(str), nodes["empty"].to_numpy()
    matrices = (nodes["ne2"] * nodes["ne3"]).to_numpy()
    times = np.where((op.map(rule) == "matrices").to_numpy(), matrices, 1)
    blas = (splits["backend"] == "BLAS").to_numpy() & splits["outermost"].to_numpy()
    expected = _nodes_of(splits[blas], nodes, op.isin(rule).to_numpy() & ~empty)
    expected["times"] = times[expected["node_id"].to_numpy()]
    # Only splits in which as many calls were seen as their nodes need.
    needed = np.zeros(len(splits), np.int64)
    np.add.at(needed, expected["split_id"].to_numpy(), expected["times"].to_numpy())
    seen = np.bincount(split[split >= 0], minlength=len(splits))
    fits = needed == seen
    expected = expected[fits[expected["split_id"].to_numpy()]]
    inside = (split >= 0) & np.r_[fits, False][split]
    calls, split = calls[inside], split[inside]
    order = np.lexsort((calls["begin_ns"].to_numpy(), split))
    begin, end = (calls[c].to_numpy()[order] for c in ("begin_ns", "end_ns"))
    last = np.cumsum(expected["times"].to_numpy()) - 1
    first = last - expected["times"].to_numpy() + 1
    spent = np.r_[0, np.cumsum(end - begin)]
    ends = end[last]
    split_id = expected["split_id"].to_numpy()
    before = np.r_[-1, split_id[:-1]] == split_id
    begins = np.where(before, np.r_[0, ends[:-1]], splits["begin_ns"].to_numpy()[split_id])
    return pd.DataFrame(
        {
            "split_id": split_id,
            "node_id": expected["node_id"].to_numpy(),
            "how": "computed",
            "begin_ns": begins,
            "end_ns": ends,
            "library_ns": spent[last + 1] - spent[first],
        }
    )


def _recorded(splits: pd.DataFrame, nodes: pd.DataFrame, work: pd.DataFrame) -> pd.DataFrame:
    calls, split = _inside(splits, work, "node")
    if not len(calls):
        return pd.DataFrame(columns=_COLUMNS)
    first = nodes.groupby("def_id")["node_id"].min()
    count = nodes.groupby("def_id")["node_id"].size()
    def_id = np.r_[splits["def_id"].to_numpy(), -1][split]
    idx = calls["node"].to_numpy()
    known = np.isin(def_id, first.index) & (split >= 0)
    known &= idx < count.reindex(def_id).fillna(0).to_numpy()
    node = first.reindex(def_id).fillna(-1).to_numpy(np.int64) + idx
    known[known] = ~nodes["empty"].to_numpy()[node[known]]  # nothing is recorded for these
    return pd.DataFrame(
        {
            "split_id": split[known],
            "node_id": node[known],
            "how": "recorded",
            "begin_ns": calls["begin_ns"].to_numpy()[known],
            "end_ns": calls["end_ns"].to_numpy()[known],
            "library_ns": np.zeros(int(known.sum()), np.int64),
        }
    )
