"""Layer 5: which experts the router chose for which token, and where their weights lie.

Owns the tables ``experts`` and ``expert_weights``, and what is missing of the first. Vectorised
over records; must not import the analyses or above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.model.decode import int64
from profinfer.model.definitions import Definitions
from profinfer.model.experttokens import name_tokens
from profinfer.model.nodes import NodeTables
from profinfer.model.residents import NOWHERE, Ranges, Residents
from profinfer.model.spans import parents
from profinfer.tracefile.ringindex import ExpertRecords

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

OP = "MUL_MAT_ID"
_WEIGHTS, _IDS = 0, 2  # sources of ggml_mul_mat_id


@dataclass(frozen=True)
class Places:
    """The nodes that compute with experts, ordered by node_id. Shapes (n,).

    Attributes:
        node: node_id.
        place: node_id of the first of the nodes that take the same ids; ids are read there.
        n_experts: experts to choose from.
        n_used: experts a token.
        rows: tokens that it computes.
        stride: bytes of one expert's weights.
        def_id: definition that the node is part of.
    """

    node: I32
    place: I32
    n_experts: I64
    n_used: I64
    rows: I64
    stride: I64
    def_id: I32


@dataclass(frozen=True)
class Routing:
    """The router's choices.

    Attributes:
        table: one row per graph, place, token and slot, in that order.
        lost_rows: tokens of a layer whose ids should be there and are not, or cannot be true.
        read_ns: profinfer's own time reading them.
        reads: places at which ids were read.
    """

    table: pd.DataFrame
    lost_rows: int
    read_ns: int
    reads: int


def find_places(definitions: Definitions, tables: NodeTables, ops: list[str]) -> Places:
    """The nodes that compute with experts, of every definition."""
    op = ops.index(OP) if OP in ops else -1
    fields = definitions.contents.fields
    found: list[tuple[I64, ...]] = []
    for def_id, item in enumerate(definitions.items):
        mine = (item.node >= 0) & (fields.op[item.node] == op)
        mine &= tables.index.works[tables.index.base[def_id] :][: len(item.node)]
        at = np.flatnonzero(mine)
        weights, ids = item.src[at, _WEIGHTS], item.src[at, _IDS]
        at, weights, ids = (v[(weights >= 0) & (ids >= 0)] for v in (at, weights, ids))
        if not len(at):
            continue
        idx = item.src_idx[at, _IDS]
        # The same tensor: the same node, or, of inputs, the same content.
        key = np.where(idx >= 0, idx.astype(np.int64), -1 - ids.astype(np.int64))
        first = np.flatnonzero(np.r_[True, key[1:] != key[:-1]])
        place = np.repeat(at[first], np.diff(np.r_[first, len(at)]))
        base = int(tables.index.base[def_id])
        found.append(
            (at + base, place + base, fields.ne[weights, 2], fields.ne[ids, 0], fields.ne[ids, 1],
             fields.nb[weights, 2], np.full(len(at), def_id))
        )  # fmt: skip
    joined = [np.concatenate(part) for part in zip(*found, strict=True)]
    node, place, n_experts, used, rows, stride, def_ids = joined or [np.zeros(0, np.int64)] * 7
    return Places(
        node.astype(np.int32), place.astype(np.int32), int64(n_experts), int64(used), int64(rows),
        int64(stride), def_ids.astype(np.int32),
    )  # fmt: skip


def build(
    records: ExpertRecords,
    places: Places,
    tables: NodeTables,
    graphs: pd.DataFrame,
    calls: pd.DataFrame,
    sequences: pd.DataFrame,
    *,
    recorded: bool,
    wanted: npt.NDArray[np.bool_] | None = None,
) -> Routing:
    """The table ``experts``.

    Args:
        records: of the file.
        places: where ids are read.
        tables: nodes of the trace.
        graphs: table of the trace.
        calls: table of the trace.
        sequences: table of the trace.
        recorded: the recorder read ids; else none are missing.
        wanted: nodes that records were left of, None for all.
    """
    heads = records.heads
    graph = parents(
        int64(heads["tid"]), int64(heads["ts"]), int64(graphs["tid"].to_numpy()),
        graphs["begin_ns"].to_numpy(), graphs["end_ns"].to_numpy(),
    )  # fmt: skip
    def_id = np.r_[graphs["def_id"].to_numpy(), -1][graph]
    same = np.r_[graphs["cgraph"].to_numpy(), 0][graph] == heads["cgraph"]
    node = np.r_[tables.index.base, 0][def_id] + heads["node"]
    at = np.searchsorted(places.node, node)
    at[at == len(places.node)] = 0
    ok = (graph >= 0) & (def_id >= 0) & same
    if len(places.node):
        ok &= (places.node[at] == node) & (places.place[at] == node)
        ok &= places.n_used[at] == heads["n_used"]
        ok &= int64(heads["first"]) + heads["n"] <= places.rows[at]
    else:
        ok[:] = False
    table = _rows(records, np.flatnonzero(ok), graph, at, places)
    wrong = (table["expert"] < 0) | (table["expert"] >= places.n_experts[table.pop("at")])
    wrong_rows = len(table.loc[wrong, ["graph_id", "node_id", "row"]].drop_duplicates())
    table = table[~wrong.to_numpy()].reset_index(drop=True)
    table.insert(2, "layer", tables.nodes["layer"].to_numpy()[table["node_id"].to_numpy()])
    name_tokens(table, calls, sequences, graphs)
    lost = wrong_rows
    if recorded:
        due = graphs["complete"] & graphs["sampled"] & (graphs["def_id"] >= 0)
        lost += _missing(table, places, graphs["def_id"].to_numpy(), due.to_numpy(bool), wanted)
    return Routing(table, lost, int(heads["ns"].sum()), int((heads["first"] == 0).sum()))


def _rows(records: ExpertRecords, chosen: I64, graph: I32, at: I64, places: Places) -> pd.DataFrame:
    """One row per id of the chosen records, sorted by graph, place, row and slot."""
    heads = records.heads
    count = int64(heads["n"]) * heads["n_used"]
    begin = np.cumsum(count) - count
    node = places.node[at] if len(places.node) else np.zeros(len(at), np.int32)
    order = chosen[np.lexsort((heads["first"][chosen], node[chosen], graph[chosen]))]
    n = count[order]
    of = np.repeat(order, n)
    within = np.arange(int(n.sum())) - np.repeat(np.cumsum(n) - n, n)
    used = int64(heads["n_used"])[of]
    return pd.DataFrame(
        {
            "graph_id": graph[of].astype(np.int32),
            "node_id": node[of].astype(np.int32),
            "row": (heads["first"][of] + within // used).astype(np.int32),
            "slot": (within % used).astype(np.int16),
            "expert": records.ids[begin[of] + within],
            "at": at[of],
        }
    )


def _missing(
    table: pd.DataFrame,
    places: Places,
    def_id: I32,
    due: npt.NDArray[np.bool_],
    wanted: npt.NDArray[np.bool_] | None,
) -> int:
    """Rows that whole graphs must have had, and that are not there.

    Ids are read at the first node of a place that a record is left of.
    """
    first = places.node == places.place
    if wanted is not None:
        first &= np.isin(places.place, places.place[wanted[places.node]])
    per_def = np.zeros(int(def_id.max(initial=0)) + 1, np.int64)
    np.add.at(per_def, places.def_id[first], places.rows[first])
    want = np.where(def_id >= 0, per_def[np.maximum(def_id, 0)], 0)
    have = np.zeros(len(def_id), np.int64)
    np.add.at(have, table["graph_id"].to_numpy()[table["slot"].to_numpy() == 0], 1)
    return int(np.maximum(want - have, 0)[due].sum())


def weights(places: Places, nodes: pd.DataFrame, residents: Residents) -> pd.DataFrame:
    """One row per expert of each tensor with experts' weights: its bytes, and where they lie."""
    name = nodes["src0_name"].astype(str).to_numpy(dtype=object)[places.node]
    layer = nodes["layer"].to_numpy()[places.node]
    first = pd.DataFrame({"tensor": name, "row": np.arange(len(name))})
    first = first[first["tensor"] != ""].drop_duplicates("tensor")
    row = first["row"].to_numpy()
    at = residents.tensors.drop_duplicates("name", keep="last").set_index("name")
    at = at[["address", "file_offset"]].reindex(first["tensor"].to_numpy(), fill_value=-1)
    n = places.n_experts[row]
    of = np.repeat(np.arange(len(row)), n)
    expert = np.arange(int(n.sum())) - np.repeat(np.cumsum(n) - n, n)
    size = places.stride[row][of]

    def along(begin: I64) -> I64:
        return np.where(begin[of] >= 0, begin[of] + expert * size, -1)

    return pd.DataFrame(
        {
            "tensor": first["tensor"].to_numpy()[of],
            "layer": layer[row][of].astype(np.int32),
            "expert": expert.astype(np.int32),
            "bytes": size,
            "address": along(at["address"].to_numpy(np.int64)),
            "file_offset": along(at["file_offset"].to_numpy(np.int64)),
        }
    )


def expert_at(table: pd.DataFrame, address: I64) -> I64:
    """Row of ``expert_weights`` whose bytes lie at each address, NOWHERE for none."""
    begin = table["address"].to_numpy()
    known = np.flatnonzero(begin >= 0)
    if not len(known):
        return np.full(len(address), NOWHERE, np.int64)
    end = begin[known] + table["bytes"].to_numpy()[known]
    return Ranges.of(begin[known], end, known).find(address)
