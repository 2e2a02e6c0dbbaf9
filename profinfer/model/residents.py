"""Layer 5: where tensors and files lie in the target's memory: addresses and offsets to names.

Owns the ranges of weights, of the KV cache and of data files. Must not import the analyses or
above.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.model import tensors
from profinfer.model.decode import Records
from profinfer.model.definitions import USAGE_WEIGHTS, WEIGHT_SUFFIXES, buffer_usage
from profinfer.tracefile.metadata import Engine, Layout

I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_KV_PREFIX = b"cache_"
NOWHERE = -1


@dataclass(frozen=True)
class Ranges:
    """Ranges that do not overlap, in order of their begin.

    Attributes:
        begin: first address or offset, shape (n,).
        end: behind the last one, shape (n,).
        row: what each range is, shape (n,).
    """

    begin: I64
    end: I64
    row: I64

    @classmethod
    def of(cls, begin: I64, end: I64, row: I64) -> Ranges:
        """Sorted; of ranges that begin inside another the later one is cut or left out."""
        order = np.argsort(begin, kind="stable")
        begin, end, row = begin[order], end[order], row[order]
        before = np.r_[np.iinfo(np.int64).min, np.maximum.accumulate(end)[:-1]] if len(end) else end
        begin = np.maximum(begin, before)
        kept = begin < end
        return cls(begin[kept], end[kept], row[kept])

    def find(self, at: I64) -> I64:
        """The row that holds each place, NOWHERE if none does."""
        if not len(self.begin):
            return np.full(len(at), NOWHERE, np.int64)
        slot = np.searchsorted(self.begin, at, side="right") - 1
        return np.where((slot >= 0) & (at < self.end[slot]), self.row[slot], NOWHERE)

    def overlap(self, begin: I64, end: I64) -> tuple[I64, I64, I64]:
        """Parts of intervals in ranges: index of the interval, row, bytes; one for each pair."""
        first = np.searchsorted(self.end, begin, side="right")
        stop = np.searchsorted(self.begin, end, side="left")
        count = np.maximum(stop - first, 0)
        which = np.repeat(np.arange(len(begin)), count)
        slot = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
        slot = slot + np.repeat(first, count)
        size = np.minimum(end[which], self.end[slot]) - np.maximum(begin[which], self.begin[slot])
        return which, self.row[slot], size


@dataclass(frozen=True)
class Residents:
    """Tensors that stay in memory, and files.

    Attributes:
        tensors: one row per weight or KV cache tensor: ``name``, ``kind`` (weight, kv),
            ``address``, ``size`` in bytes, ``file`` (path of the file it is mapped from, or ""),
            ``file_offset`` (-1 if it is not mapped).
        files: one row per data file: ``path``, ``size``, ``major``, ``minor``, ``ino``.
        by_address: rows of ``tensors``.
        mapped: mappings by address.
        mapping_file: row of ``files`` of each mapping.
        mapping_shift: file offset minus address of each mapping.
        by_offset: row of ``files`` -> rows of ``tensors`` by file offset.
    """

    tensors: pd.DataFrame
    files: pd.DataFrame
    by_address: Ranges
    mapped: Ranges
    mapping_file: I64
    mapping_shift: I64
    by_offset: dict[int, Ranges]

    def file_at(self, address: I64) -> tuple[I64, I64]:
        """File and offset in it that addresses are mapped from; NOWHERE for other memory."""
        mapping = self.mapped.find(address)
        known = mapping >= 0
        shift = np.where(known, self.mapping_shift[mapping] if len(self.mapping_shift) else 0, 0)
        of = np.where(known, self.mapping_file[mapping] if len(self.mapping_file) else 0, NOWHERE)
        return of, np.where(known, address + shift, NOWHERE)


def build(records: Records, engine: Engine, memory: dict[str, Any]) -> Residents:
    """Ranges of a trace.

    Args:
        records: the decoded trace.
        engine: layout and type sizes.
        memory: the metadata's ``memory``.
    """
    files = _files(memory)
    of_path = {path: row for row, path in enumerate(files["path"].tolist())}
    told = [m for m in memory.get("mappings", []) if len(m) == 4 and m[3] in of_path]
    start, end, offset = (np.array([m[i] for m in told], np.int64) for i in range(3))
    # Of mappings that lay in the same place one after the other the largest is the model's.
    order = np.argsort(start - end, kind="stable")
    kept: list[int] = []
    for row in order.tolist():
        if all(end[row] <= start[k] or start[row] >= end[k] for k in kept):
            kept.append(row)
    chosen = np.array(sorted(kept), np.int64)
    mapping_file = np.array([of_path[m[3]] for m in told], np.int64)
    mapped = Ranges.of(start[chosen], end[chosen], chosen)
    half = Residents(
        pd.DataFrame(), files, Ranges.of(*[np.zeros(0, np.int64)] * 3), mapped, mapping_file,
        offset - start, {},
    )  # fmt: skip
    table = _tensors(records, engine)
    at, size = table["address"].to_numpy(), table["size"].to_numpy()
    of, where = half.file_at(at)
    # Only weights come from a file: a cache may lie where something was mapped before.
    own = (table["kind"] == "kv").to_numpy()
    of[own], where[own] = NOWHERE, NOWHERE
    table["file"] = texts(files, "path", of)
    table["file_offset"] = where
    rows = np.arange(len(table))
    by_offset = {
        int(f): Ranges.of(where[of == f], where[of == f] + size[of == f], rows[of == f])
        for f in np.unique(of[of >= 0])
    }
    return Residents(
        table,
        files,
        Ranges.of(at, at + size, rows),
        mapped,
        mapping_file,
        offset - start,
        by_offset,
    )


def texts(table: pd.DataFrame, column: str, row: I64) -> npt.NDArray[np.object_]:
    """Texts of rows, "" for NOWHERE."""
    every: npt.NDArray[np.object_] = np.array([*table[column].tolist(), ""], dtype=object)
    return every[row]


def _files(memory: dict[str, Any]) -> pd.DataFrame:
    rows = [
        (f.get("path", ""), f.get("size") or 0, *(f.get("dev") or (0, 0)), f.get("ino", 0))
        for f in memory.get("files", [])
    ]
    return pd.DataFrame(rows, columns=["path", "size", "major", "minor", "ino"])


def _tensors(records: Records, engine: Engine) -> pd.DataFrame:
    """Weights and KV cache tensors, each at the last place where it was seen."""
    layout = engine.layout or Layout()
    fields = tensors.parse(tensors.raw_bytes(records.tensors), layout.tensor)
    usage = buffer_usage(records, layout, fields.buffer)
    none = engine.ops.index("NONE") if "NONE" in engine.ops else 0
    named = np.zeros(len(fields.name), bool)
    for ending in WEIGHT_SUFFIXES:
        named |= np.char.endswith(fields.name, ending)
    weight = named | (usage == USAGE_WEIGHTS)
    kv = np.char.startswith(fields.name, _KV_PREFIX)
    bad = tensors.implausible(fields, len(engine.ops), len(engine.types))
    leaf = (fields.op == none) & (fields.view_src == 0) & (fields.data > 0) & ~bad
    rows = np.flatnonzero(leaf & (weight | kv))
    unit = np.array([t.size if t else 0 for t in engine.types] + [0], np.int64)
    block = np.array([t.block if t else 1 for t in engine.types] + [1], np.int64)
    kind = fields.type[rows]
    ne, nb = fields.ne[rows], fields.nb[rows]
    # ggml_nbytes: from the first byte to behind the last one.
    size = ne[:, 0] // block[kind] * unit[kind] + ((ne[:, 1:] - 1) * nb[:, 1:]).sum(axis=1)
    table = pd.DataFrame(
        {
            "name": [tensors.text(n) for n in fields.name[rows].tolist()],
            "kind": np.where(kv[rows], "kv", "weight"),
            "address": fields.data[rows].astype(np.int64),
            "size": np.maximum(size, 0),
        }
    )
    return table.drop_duplicates("address", keep="last").reset_index(drop=True)
