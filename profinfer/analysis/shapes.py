"""Layer 6: what was computed, in the words of a reader: M x K x N of a matrix product, types.

Must not import rich or anything above.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

MATMUL = ("MUL_MAT", "MUL_MAT_ID")


def _dims(text: str) -> list[int]:
    out = [int(d) for d in text.split("x") if d]
    return out + [1] * (4 - len(out))


def problem(op: str, shape: str, src0: str, src1: str) -> str:
    """The size of one node's work.

    A matrix product is ``MxKxN``: M rows of weights, K summed over, N columns (tokens), times
    the number of heads or experts where there are several. Attention is its output's shape and
    the length of the KV cache it read. Everything else is the shape of its output.
    """
    if op in MATMUL and src0:
        weights, out = _dims(src0), _dims(shape)
        batch = out[2] * out[3]
        size = f"{weights[1]}x{weights[0]}x{out[1]}"
        return size if batch == 1 else f"{size} *{batch}"
    if op == "FLASH_ATTN_EXT" and src1:
        return f"{shape} kv {_dims(src1)[1]}"
    return shape


def with_problem(nodes: pd.DataFrame) -> pd.DataFrame:
    """Add ``problem`` and ``types`` to a nodes table; works on distinct values."""
    keys = ["op", "shape", "src0_ne", "src1_ne"]
    code = _distinct(nodes, keys)
    first = np.unique(code, return_index=True)[1]
    rows = nodes.iloc[first][keys].astype(str).itertuples(index=False)
    sizes = [problem(*row) for row in rows]
    types = nodes["src0_type"].where(nodes["op"].isin(MATMUL), nodes["type"].astype(str))
    return nodes.assign(
        problem=np.asarray(sizes, object)[code] if sizes else [],
        types=types.astype(str),
    )


def _distinct(nodes: pd.DataFrame, keys: list[str]) -> np.ndarray:
    """Number of the distinct combination of ``keys`` of each row."""
    code = np.zeros(len(nodes), np.int64)
    for key in keys:
        column = nodes[key].cat
        code = code * (len(column.categories) + 1) + column.codes.to_numpy()
        code = np.unique(code, return_inverse=True)[1]  # stays small, whatever the number of keys
    return code
