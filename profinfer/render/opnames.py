"""Layer 7: how an operator is named and described on a timeline.

Owns the text of operator slices. May import numpy and pandas; must not import perfetto.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from profinfer.render.timeline import COUNTED, ints

_SOURCES = 10
OpArgs = dict[str, str | int | float]


@dataclass(frozen=True)
class OpText:
    """What an operator's slice shows.

    Attributes:
        name: "<OP> <tensor>"; the operators of a fused run are joined by "+".
        category: the role of the tensor in the model.
        args: details, in order.
    """

    name: str
    category: str
    args: OpArgs


def _digits(value: float) -> float:
    """The number to four significant digits."""
    return float(f"{value:.4g}")


def _shape(text: str) -> str:
    """'576x4x1x1' -> '[576,4]'."""
    ne = text.split("x")
    while len(ne) > 1 and ne[-1] == "1":
        ne.pop()
    return f"[{','.join(ne)}]"


def _text(value: Any) -> str:
    return "" if pd.isna(value) else str(value)


class OpNames:
    """Describes operators from the nodes table."""

    def __init__(self, nodes: pd.DataFrame) -> None:
        """Index ``nodes``; no text is made yet."""
        self._columns = {str(name): nodes[name].to_numpy() for name in nodes.columns}
        node_id = ints(nodes, "node_id")
        self._row = dict(zip(node_id.tolist(), range(len(node_id)), strict=True))
        # Nodes that compute, in graph order: the ones before an output are those fused into it.
        definition, index = ints(nodes, "def_id"), ints(nodes, "idx")
        order = np.lexsort((index, definition))
        empty = nodes["empty"].to_numpy(dtype=bool) if len(nodes) else np.empty(0, bool)
        self._order = order[~empty[order]]
        self._definition = definition
        self._place = np.full(len(nodes), -1, np.int64)
        self._place[self._order] = np.arange(len(self._order))

    def _get(self, column: str, row: int) -> str:
        values = self._columns.get(column)
        return "" if values is None else _text(values[row])

    def _covered(self, row: int, fused: int) -> list[int]:
        """Rows of the nodes that ran as one, the output last."""
        place = int(self._place[row])
        if place < 0:
            return [row]
        rows = self._order[max(0, place - fused + 1) : place + 1]
        return [int(r) for r in rows if self._definition[r] == self._definition[row]]

    def covered(self, node_id: int, fused: int) -> list[int]:
        """The nodes that ran as one, the output last."""
        row = self._row.get(node_id)
        if row is None:
            return [node_id]
        ids = self._columns["node_id"]
        return [int(ids[r]) for r in self._covered(row, max(fused, 1))]

    def _work(self, rows: list[int]) -> OpArgs:
        """Operations and least bytes, where they are known; what is handed on inside is not moved.

        All threads share them.
        """
        columns = [self._columns.get(name) for name in ("flops", "moved", "written")]
        if any(column is None for column in columns):
            return {}
        flops, moved, written = (np.asarray(c, np.float64)[rows] for c in columns)
        values = {"flops": flops.sum(), "bytes": moved.sum() - 2 * written[:-1].sum()}
        out: OpArgs = {k: int(v) for k, v in values.items() if np.isfinite(v)}
        took = self._columns.get("mean_ns")
        if took is None or not took[rows[-1]] > 0:
            return out
        # Of all threads together, from the release of the operator before to its own.
        out["mean us"] = _digits(took[rows[-1]] / 1000)
        rates = {"flops": "mean GFLOP/s", "bytes": "mean GB/s"}
        return out | {rates[k]: _digits(v / took[rows[-1]]) for k, v in values.items() if v > 0}

    def _counted(self, row: int) -> OpArgs:
        """What an execution counted, all threads, in the mean over the whole recording."""
        found = {c: v[row] for c, v in self._columns.items() if c.startswith(COUNTED)}
        return {
            f"mean {name.removeprefix(COUNTED)}": round(value) if value >= 10 else f"{value:.3g}"
            for name, value in found.items()
            if np.isfinite(value)
        }

    def describe(self, node_id: int, fused: int) -> OpText:
        """Text of the operator whose output is ``node_id``, of ``fused`` nodes run as one."""
        row = self._row.get(node_id)
        if row is None:
            return OpText("unknown operator", "unknown", {"node_id": node_id})
        rows = self._covered(row, max(fused, 1))
        op = "+".join(self._get("op", r) for r in rows)
        tensor = self._get("name", row)
        args: OpArgs = {"op": op, "tensor": tensor}
        variant = "+".join(filter(None, (self._get("params", r) for r in rows)))
        if variant:
            args["variant"] = variant
        shapes, types = [], []
        for slot in range(_SOURCES):
            ne = self._get(f"src{slot}_ne", row)
            if ne:
                shapes.append(_shape(ne))
                types.append(self._get(f"src{slot}_type", row))
        ne = "x".join(self._get(f"ne{k}", row) for k in range(4))
        args["shape"] = " ".join(filter(None, (" x ".join(shapes), "->", _shape(ne))))
        args["types"] = " ".join(filter(None, (" x ".join(types), "->", self._get("type", row))))
        layer = self._get("layer", row)
        if layer and int(float(layer)) >= 0:
            args["layer"] = int(float(layer))
        role = self._get("role", row) or "other"
        args["role"] = role
        weight = ", ".join(filter(None, (self._get("weight", r) for r in rows)))
        if weight:
            args["weight"] = weight
        args["node"] = int(self._columns["idx"][row])
        args |= self._work(rows) | self._counted(row)
        return OpText(f"{op} {tensor}".rstrip(), role, args)
