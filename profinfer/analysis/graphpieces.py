"""Layer 6: the pieces of a graph that was split over backends, and what leads from one to the next.

On a backend that reads the CPU's memory a split's sources are nodes of earlier ones, by name. Else
they are copies that the engine makes, which lead nowhere: what was copied to a split's backend
before it began was handed to its first operator that reads something unknown. Where nothing tells,
the split waits for the one before. Must not import rich or above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.model.dependencies import Dependencies
from profinfer.units import format_things

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_LISTED = 4  # pieces that a heading names


@dataclass(frozen=True)
class Piece:
    """A definition as a part of a graph.

    Attributes:
        def_id: the definition.
        backend: that computed it; empty if it is not known.
        begin: place of its first node.
        end: behind its last node.
        handed: tensors that were copied to its backend before it began.
    """

    def_id: int
    backend: str
    begin: int
    end: int
    handed: tuple[str, ...]


def said(pieces: Sequence[Piece]) -> str:
    """``graph 2``, or ``graphs 2 on CPU, 3 on RPC``."""
    if len(pieces) == 1:
        return f"graph {pieces[0].def_id}"
    if len(pieces) <= _LISTED:
        return "graphs " + ", ".join(f"{p.def_id} on {p.backend}" for p in pieces)
    names = ", ".join(dict.fromkeys(p.backend for p in pieces))
    return f"{format_things(len(pieces), 'graph')} on {names}" if pieces else ""


def made_before(
    idx: pd.Series[int],
    names: pd.Series[str],
    wanted: Mask,
    nodes: pd.Series[str],
    pieces: Sequence[Piece],
) -> I64:
    """Which node of an earlier piece made a source, by its name; -1 for none, shape (edges,).

    Args:
        idx: place of the node that reads, of each edge.
        names: of the sources.
        wanted: edges to look at.
        nodes: name of each node.
        pieces: the pieces.
    """
    n = len(nodes)
    code, known = pd.factorize(nodes)
    made = np.sort(code.astype(np.int64) * n + np.arange(n))
    asked = pd.Index(known).get_indexer(names).astype(np.int64)
    begins = np.array([piece.begin for piece in pieces], np.int64)
    begin = begins[np.searchsorted(begins, idx.to_numpy(np.int64), side="right") - 1]
    last = made[np.maximum(np.searchsorted(made, asked * n + begin) - 1, 0)]
    good = wanted & (asked >= 0) & (names != "").to_numpy(bool)
    good &= (last // n == asked) & (last % n < begin)
    out: I64 = np.where(good, last % n, -1)
    return out


def joined(
    each: Sequence[Dependencies],
    pieces: Sequence[Piece],
    nodes: pd.DataFrame,
    works: npt.NDArray[np.bool_],
    sources: pd.DataFrame,
) -> Dependencies:
    """The edges of all pieces, and those between them.

    Args:
        each: edges of each piece, by places in it.
        pieces: the pieces.
        nodes: all nodes, with ``name`` and ``op``.
        works: nodes that compute, shape (n,).
        sources: what each node reads: ``idx``, ``src_idx``, ``src_name``, ``src_unread``.
    """
    if len(pieces) == 1:
        return each[0]
    rows = [
        np.stack([one.src + piece.begin, one.dst + piece.begin, one.memory], axis=1)
        for one, piece in zip(each, pieces, strict=True)
    ]
    known = _between(pieces, nodes, works, sources)
    rows.append(known)
    reached = known[:, 1]
    names = nodes["name"].astype(str).to_numpy()
    unknown = np.unique(sources["idx"].to_numpy()[sources["src_unread"].to_numpy(bool)])
    for before, piece in pairwise(pieces):
        mine = unknown[(unknown >= piece.begin) & (unknown < piece.end)]
        busy = np.flatnonzero(works[piece.begin : piece.end]) + piece.begin
        if not len(busy):
            continue
        to = int(mine[0]) if len(mine) else int(busy[0])
        made = [np.flatnonzero(names[: piece.begin] == name)[-1:] for name in piece.handed]
        froms = np.unique(np.concatenate([*made, np.zeros(0, np.int64)])).astype(np.int64)
        ordered = not len(froms)
        if ordered:
            if ((reached >= piece.begin) & (reached < piece.end)).any():
                continue  # its sources tell what it waits for
            done = np.flatnonzero(works[before.begin : before.end]) + before.begin
            froms = done[-1:]
        rows.append(
            np.stack([froms, np.full(len(froms), to), np.full(len(froms), ordered)], axis=1)
        )
    table = np.concatenate(rows).astype(np.int64)
    table = table[np.lexsort((table[:, 0], table[:, 1]))]
    new = np.r_[True, (table[1:, :2] != table[:-1, :2]).any(axis=1)]
    table = table[new[: len(table)]]
    return Dependencies(table[:, 0].astype(np.int32), table[:, 1].astype(np.int32), table[:, 2] > 0)


def _between(
    pieces: Sequence[Piece], nodes: pd.DataFrame, works: Mask, sources: pd.DataFrame
) -> I64:
    """Edges by sources in earlier pieces, and from who wrote a cache to who reads it later."""
    sizes = [piece.end - piece.begin for piece in pieces]
    of_node = np.repeat(np.arange(len(pieces)), sizes)
    dst, src = (sources[c].to_numpy(np.int64) for c in ("idx", "src_idx"))
    far = src >= 0
    far[far] = of_node[src[far]] != of_node[dst[far]]
    data = np.stack([src[far], dst[far], np.zeros(int(far.sum()), np.int64)], axis=1)
    cached = sources[(sources["kind"] == "cache").to_numpy()].sort_values("idx", kind="stable")
    writes = (nodes["op"].astype(str) == "SET_ROWS").to_numpy()
    written: dict[str, int] = {}
    rows: list[tuple[int, int, int]] = []
    names = cached["src_name"].astype(str).tolist()
    for place, name in zip(cached["idx"].tolist(), names, strict=True):
        before = written.get(name)
        # A view may be read in a later piece than its own.
        far_away = before is not None and of_node[before] != of_node[place]
        if before is not None and (far_away or not works[place]):
            rows.append((before, place, 1))
        if writes[place]:
            written[name] = place
    return np.concatenate([data, np.array(rows, np.int64).reshape(-1, 3)])
