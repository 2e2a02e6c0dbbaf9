"""Layer 5: the columns of operators, filled block by block.

Owns the two row types and their memory: pieces to be joined later would need it twice.
Must not import pandas or above.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
import numpy.typing as npt

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
T = TypeVar("T", "Rows", "Walls")


@dataclass(frozen=True)
class Rows:
    """One row per operator and thread, ordered by graph, then node, then thread."""

    graph: I32
    node: I32
    fused: npt.NDArray[np.int16]
    tid: I32
    begin: I64
    end: I64
    release: I64
    complete: Mask


@dataclass(frozen=True)
class Walls:
    """One row per operator of a graph, all threads together, in order of execution."""

    graph: I32
    node: I32
    fused: npt.NDArray[np.int16]
    begin: I64
    release: I64
    threads: npt.NDArray[np.int16]
    compute_max: I64
    compute_sum: I64
    wait_sum: I64
    complete: Mask


def operator_starts(graph: I32, node: I32) -> I64:
    """Where each operator of a graph begins among rows ordered by graph, then node."""
    return np.flatnonzero(np.r_[True, (graph[1:] != graph[:-1]) | (node[1:] != node[:-1])])


def of_graphs(graph: I32, graphs: I64) -> slice:
    """Where the rows of some graphs lie, and of those between them, among rows ordered by graph."""
    if not len(graphs):
        return slice(0, 0)
    edges = np.array([graphs.min(), graphs.max() + 1], graph.dtype)  # another type: all is copied
    return slice(*np.searchsorted(graph, edges).tolist())


_DTYPES = {
    "graph": np.int32,
    "node": np.int32,
    "fused": np.int16,
    "tid": np.int32,
    "threads": np.int16,
    "begin": np.int64,
    "end": np.int64,
    "release": np.int64,
    "compute_max": np.int64,
    "compute_sum": np.int64,
    "wait_sum": np.int64,
    "complete": np.bool_,
}


def room(kind: type[T], n: int) -> T:
    """Arrays of length ``n``; memory is taken only where they are written."""
    return kind(**{f.name: np.empty(n, _DTYPES[f.name]) for f in fields(kind)})


def put(whole: T, at: int, part: T) -> int:
    """Write a block behind the ones before; returns where the next one goes."""
    end = at + len(part.graph)
    for field in fields(part):
        getattr(whole, field.name)[at:end] = getattr(part, field.name)
    return end


def piece(whole: T, part: slice) -> T:
    """Consecutive rows, without a copy."""
    return type(whole)(**{f.name: getattr(whole, f.name)[part] for f in fields(whole)})


def pieces(whole: T, size: int) -> Iterator[T]:
    """All rows, ``size`` at a time, without a copy."""
    for since in range(0, len(whole.graph), size):
        yield piece(whole, slice(since, since + size))


def chosen(whole: T, which: Mask | I64) -> T:
    """The rows of a mask, or of some numbers, as a copy."""
    return type(whole)(**{f.name: getattr(whole, f.name)[which] for f in fields(whole)})
