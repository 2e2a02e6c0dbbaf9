"""Layer 5: page faults and disk reads, each with the tensor it hit and the operator it held up.

Owns the columns of the tables ``faults``, ``reads`` and ``residence``. Vectorised over records;
loops over threads and files only. Must not import the analyses or above.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.model.decode import Records, Rows, int64
from profinfer.model.operators import Operators
from profinfer.model.residents import NOWHERE, Residents, texts
from profinfer.tracefile import schema
from profinfer.tracefile.schema import Kind

I64 = npt.NDArray[np.int64]
_DEV_MINOR_BITS = 20  # MKDEV of linux/kdev_t.h


def faults(
    records: Records, residents: Residents, graphs: pd.DataFrame, operators: Operators
) -> pd.DataFrame:
    """One row per major fault or run of minor ones.

    ``ts_ns`` and ``end_ns`` are begin and end, ``held_ns`` the time inside the faults, ``faults``
    their number. ``tensor`` and ``file_offset`` are those of the first address. ``graph_id`` and
    ``node_id`` are what the thread ran when the first fault began, -1 for nothing.
    """
    rows = records.rows[Kind.FAULT]
    ts, tid, address = int64(rows["ts"]), int64(rows["tid"]), int64(rows["addr"])
    tensor = residents.by_address.find(address)
    of, offset = residents.file_at(address)
    # What is mapped only to be copied has the tensor's name by its place in the file.
    for number, ranges in residents.by_offset.items():
        mine = (of == number) & (tensor == NOWHERE)
        tensor[mine] = ranges.find(offset[mine])
    graph, node = running(ts, tid, graphs, operators)
    return pd.DataFrame(
        {
            "ts_ns": ts,
            "end_ns": ts + int64(rows["dt"]),
            "tid": tid.astype(np.int32),
            "address": address,
            "last": int64(rows["last"]),
            "faults": int64(rows["n"]),
            "major": (rows["flags"] & schema.FAULT_MAJOR) != 0,
            "held_ns": int64(rows["ns"]),
            "tensor": texts(residents.tensors, "name", tensor),
            "kind": texts(residents.tensors, "kind", tensor),
            "file": texts(residents.files, "path", of),
            "file_offset": offset,
            "graph_id": graph,
            "node_id": node,
        }
    )


def reads(
    records: Records, residents: Residents, graphs: pd.DataFrame, operators: Operators
) -> pd.DataFrame:
    """One row per read that a thread handed to the block layer; writes are not among them."""
    rows = records.rows[Kind.READ]
    rows = rows[(rows["flags"] & schema.READ_WRITE) == 0]
    ts, tid, offset = int64(rows["ts"]), int64(rows["tid"]), int64(rows["offset"])
    of = _file_of(rows, residents.files)
    tensor = np.full(len(rows), NOWHERE, np.int64)
    for number, ranges in residents.by_offset.items():
        tensor[of == number] = ranges.find(offset[of == number])
    graph, node = running(ts, tid, graphs, operators)
    return pd.DataFrame(
        {
            "ts_ns": ts,
            "tid": tid.astype(np.int32),
            "file": texts(residents.files, "path", of),
            "file_offset": offset,
            "bytes": int64(rows["bytes"]),
            "ino": int64(rows["ino"]),
            "tensor": texts(residents.tensors, "name", tensor),
            "graph_id": graph,
            "node_id": node,
        }
    )


def read_by_tensor(table: pd.DataFrame, residents: Residents) -> pd.DataFrame:
    """Parts of reads that fell on tensors: ``read`` (row of ``table``), ``tensor``, ``bytes``."""
    parts = []
    names = residents.tensors["name"].to_numpy(dtype=object)
    for number, ranges in residents.by_offset.items():
        mine = np.flatnonzero((table["file"] == residents.files["path"][number]).to_numpy())
        begin = table["file_offset"].to_numpy()[mine]
        which, row, size = ranges.overlap(begin, begin + table["bytes"].to_numpy()[mine])
        parts.append(pd.DataFrame({"read": mine[which], "tensor": names[row], "bytes": size}))
    empty = {"read": np.zeros(0, np.int64), "tensor": [], "bytes": np.zeros(0, np.int64)}
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(empty)


def residence(notes: Iterable[Any]) -> pd.DataFrame:
    """Sizes of the target as the recorder read them from /proc: one row a reading."""
    columns = ("ts", "rss", "file", "read", "major", "minor")
    told = [
        [note.get(c, -1) for c in columns]
        for note in notes
        if note.get("what") == "memory" and type(note.get("ts")) is int
    ]
    whole = [row for row in told if all(type(v) is int for v in row)]
    table = np.array(whole, np.int64).reshape(-1, len(columns))
    out = pd.DataFrame(table, columns=["ts_ns", *(f"{c}" for c in columns[1:])])
    out.insert(2, "anon", out["rss"] - out["file"])
    return out


def running(
    ts: I64, tid: I64, graphs: pd.DataFrame, operators: Operators
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Graph and node that a thread ran at a moment, -1 for none.

    A thread without an operator at that moment may still be inside a graph: then some graph that
    runs on any thread is named.
    """
    graph = np.full(len(ts), NOWHERE, np.int32)
    node = np.full(len(ts), NOWHERE, np.int32)
    if len(graphs) and len(ts):
        begin = graphs["begin_ns"].to_numpy()
        order = np.argsort(begin, kind="stable")
        at = np.searchsorted(begin[order], ts, side="right") - 1
        row = order[np.maximum(at, 0)]
        hit = (at >= 0) & (ts < graphs["end_ns"].to_numpy()[row])
        graph[hit] = row[hit]
    rows = operators.rows
    for one in np.intersect1d(tid, operators.tids).tolist():
        theirs = operators.rows_of(one)
        if not len(theirs):
            continue
        mine = np.flatnonzero(tid == one)
        at = np.searchsorted(rows.begin[theirs], ts[mine], side="right") - 1
        found = theirs[np.maximum(at, 0)]
        hit = (at >= 0) & (ts[mine] < rows.release[found])
        graph[mine[hit]], node[mine[hit]] = rows.graph[found[hit]], rows.node[found[hit]]
    return graph, node


def _file_of(rows: Rows, files: pd.DataFrame) -> I64:
    """The file whose inode a read is of.

    The kernel's device number and the one that /proc shows differ on some file systems (btrfs), so
    the inode alone decides where no file of the same device has it.
    """
    out = np.full(len(rows), NOWHERE, np.int64)
    ino, dev = int64(rows["ino"]), int64(rows["dev"])
    for exact in (False, True):
        for number, f in enumerate(files[["ino", "major", "minor"]].to_numpy(np.int64).tolist()):
            same = (ino == f[0]) & (ino != 0)
            if exact:
                same &= dev == (f[1] << _DEV_MINOR_BITS | f[2])
            out[same] = number
    return out
