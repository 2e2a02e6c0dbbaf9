"""Layer 3: numpy dtypes of the engine's raw structs, made from a trace's layout.

Owns the widths of the fields; their offsets come from the metadata. Must not import anything above.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from profinfer.tracefile.metadata import Layout

# Width of each known field of struct ggml_tensor; the counts of op_params and src vary.
_TENSOR_FIELDS: dict[str, str] = {
    "type": "<i4",
    "buffer": "<u8",
    "ne": "<i8",
    "nb": "<u8",
    "op": "<i4",
    "flags": "<i4",
    "view_src": "<u8",
    "view_offs": "<u8",
    "data": "<u8",
}


def tensor_struct(layout: Layout) -> np.dtype[np.void]:
    """The dtype of a raw ``struct ggml_tensor``: only the fields whose offset is known.

    Fields: type, buffer, ne[4], nb[4], op, op_params[int32], flags, src[], view_src, view_offs,
    data, name. View an array of raw structs with it: ``rows["raw"].copy().view(dtype)``.

    Raises:
        ValueError: a field lies outside ``layout.tensor_size``.
    """
    at = layout.tensor
    fields: list[tuple[str, object, int]] = []
    for name, width in _TENSOR_FIELDS.items():
        if name in at:
            form: object = (width, (4,)) if name in ("ne", "nb") else width
            fields.append((name, form, at[name]))
    if "op_params" in at:
        fields.append(("op_params", ("<i4", (at.get("op_params_size", 64) // 4,)), at["op_params"]))
    if "src" in at:
        fields.append(("src", ("<u8", (at.get("max_src", 10),)), at["src"]))
    if "name" in at:
        fields.append(("name", f"S{at.get('name_size', 64)}", at["name"]))
    return _struct(fields, layout.tensor_size or 0)


def buffer_struct(layout: Layout) -> np.dtype[np.void]:
    """The dtype of a raw ``struct ggml_backend_buffer``: usage, where its offset is known."""
    fields: list[tuple[str, object, int]] = []
    if "usage" in layout.buffer:
        fields.append(("usage", "<i4", layout.buffer["usage"]))
    return _struct(fields, layout.buffer_size or 0)


def decode_struct(raw: bytes, dtype: np.dtype[np.void]) -> dict[str, Any]:
    """One raw struct as plain Python values: int, list of int, or bytes for the name."""
    row = np.frombuffer(raw, dtype, count=1)[0]
    return {name: row[name].tolist() for name in dtype.names or ()}


def _struct(fields: list[tuple[str, object, int]], size: int) -> np.dtype[np.void]:
    return np.dtype(
        {
            "names": [name for name, _, _ in fields],
            "formats": [form for _, form, _ in fields],
            "offsets": [at for _, _, at in fields],
            "itemsize": size,
        }
    )
