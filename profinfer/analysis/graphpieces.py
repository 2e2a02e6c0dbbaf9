"""Layer 6: the pieces of a graph that was split over backends, and what leads from one to the next.

A split has inputs of its own, copies that the engine makes: their sources lead nowhere. What was
copied to a split's backend before it began was handed to its first operator that reads something
unknown; where nothing was, the split still waits for the one before. Must not import rich or above.
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
        nodes: all nodes, with ``name``.
        works: nodes that compute, shape (n,).
        sources: what each node reads, with ``idx`` and ``src_unread``.
    """
    if len(pieces) == 1:
        return each[0]
    rows = [
        np.stack([one.src + piece.begin, one.dst + piece.begin, one.memory], axis=1)
        for one, piece in zip(each, pieces, strict=True)
    ]
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
