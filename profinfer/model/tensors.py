"""Layer 5: raw ``struct ggml_tensor`` bytes become fields, by the layout of the metadata.

Owns the reading of raw structs and the check that what was read can be true. Vectorised over
records. Must not import pandas, the analyses or anything above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from profinfer.tracefile.metadata import TensorType

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

# A dimension or stride beyond this is garbage read through a wrong layout, not a tensor.
MAX_EXTENT = 1 << 48


@dataclass(frozen=True)
class Fields:
    """Fields of ``n`` raw tensors.

    Attributes:
        type: type id, shape (n,).
        op: op id, shape (n,).
        ne: elements per dimension, shape (n, 4).
        nb: bytes per step of each dimension, shape (n, 4).
        param: first op parameter, shape (n,).
        flags: tensor flags, shape (n,).
        src: addresses of the sources, 0 for none, shape (n, max_src).
        buffer: address of the backend buffer, shape (n,).
        view_src: address of the tensor this one is a view of, 0 for none, shape (n,).
        data: address of the data, shape (n,).
        name: names as bytes up to the first NUL, shape (n,).
    """

    type: I64
    op: I64
    ne: I64
    nb: I64
    param: I64
    flags: I64
    src: npt.NDArray[np.uint64]
    buffer: npt.NDArray[np.uint64]
    view_src: npt.NDArray[np.uint64]
    data: npt.NDArray[np.uint64]
    name: npt.NDArray[np.bytes_]


def raw_bytes(records: npt.NDArray[Any]) -> U8:
    """The ``raw`` field of tensor or buffer records as bytes, shape (n, size)."""
    size = records.dtype["raw"].itemsize
    if not len(records):
        return np.zeros((0, size), np.uint8)
    return np.ascontiguousarray(records["raw"]).view(np.uint8).reshape(len(records), size)


def column(raw: U8, offset: int | None, dtype: str, count: int = 1) -> npt.NDArray[Any]:
    """One field of every struct, or zeros where the layout does not know it."""
    width = np.dtype(dtype).itemsize * count
    if offset is None or offset + width > raw.shape[1]:
        return np.zeros((len(raw), count) if count > 1 else len(raw), dtype)
    out = np.ascontiguousarray(raw[:, offset : offset + width]).view(dtype)
    return out if count > 1 else out.reshape(len(raw))


def parse(raw: U8, layout: dict[str, int]) -> Fields:
    """Read every field that profinfer uses out of raw tensors, shape (n, tensor_size)."""
    at = layout.get
    name_size = layout.get("name_size", 64)
    return Fields(
        type=column(raw, at("type"), "<i4").astype(np.int64),
        op=column(raw, at("op"), "<i4").astype(np.int64),
        ne=column(raw, at("ne"), "<i8", 4),
        nb=column(raw, at("nb"), "<i8", 4),
        param=column(raw, at("op_params"), "<i4").astype(np.int64),
        flags=column(raw, at("flags"), "<i4").astype(np.int64),
        src=column(raw, at("src"), "<u8", layout.get("max_src", 10)),
        buffer=column(raw, at("buffer"), "<u8"),
        view_src=column(raw, at("view_src"), "<u8"),
        data=column(raw, at("data"), "<u8"),
        name=column(raw, at("name"), f"S{name_size}"),
    )


def implausible(fields: Fields, n_ops: int, n_types: int) -> npt.NDArray[np.bool_]:
    """Mask of tensors that no engine could have made: they were read wrongly, or not at all."""
    ne_bad = ((fields.ne < 0) | (fields.ne > MAX_EXTENT)).any(axis=1)
    bad = ne_bad | (fields.type < 0) | (fields.op < 0)
    if n_ops:
        bad |= fields.op >= n_ops
    if n_types:
        bad |= fields.type >= n_types
    return np.asarray(bad)


def blocks(fields: Fields, types: Sequence[TensorType | None]) -> tuple[I64, I64]:
    """Of each tensor's type, bytes of a block, 0 if it is not known, and elements of one, 1 then.

    From the engine's own table (``ggml_type_size``, ``ggml_blck_size``).
    """
    unit, block = np.zeros(len(types) + 1, np.int64), np.ones(len(types) + 1, np.int64)
    for number, known in enumerate(types):
        if known is not None and known.block > 0:
            unit[number], block[number] = known.size, known.block
    kind = np.where((fields.type >= 0) & (fields.type < len(types)), fields.type, len(types))
    return unit[kind], block[kind]


def spanned(fields: Fields, types: Sequence[TensorType | None]) -> I64:
    """Bytes from the first to the last element of each tensor (``ggml_nbytes``); 0 if not known."""
    unit, block = blocks(fields, types)
    first = np.where(
        block == 1,
        unit + (fields.ne[:, 0] - 1) * fields.nb[:, 0].astype(np.int64),
        fields.ne[:, 0] * fields.nb[:, 0].astype(np.int64) // block,
    )
    rest = ((fields.ne[:, 1:] - 1) * fields.nb[:, 1:].astype(np.int64)).sum(axis=1)
    out: I64 = np.where((fields.ne > 0).all(axis=1) & (unit > 0), first + rest, 0)
    return out


def text(name: bytes) -> str:
    """A tensor name, with what cannot be printed shown as an escape."""
    raw = name.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
    return raw if raw.isprintable() else raw.encode("unicode_escape").decode("ascii")


def shape_text(ne: Sequence[int]) -> str:
    """``576x64x9`` for ne = (576, 64, 9, 1): trailing ones are dropped, one dimension stays."""
    dims = list(ne)
    while len(dims) > 1 and dims[-1] == 1:
        dims.pop()
    return "x".join(map(str, dims))
