"""Layer 5: which nodes' operators were recorded, where record --ops or --layers narrowed it.

Owns the same decision as ``bpf/filter.bpf.c``, made again from the definitions. Must not import the
analyses or above.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import pandas as pd

Mask = npt.NDArray[np.bool_]

# What lies beyond is recorded: PF_FILTER_WORDS times 64.
_MOST_NODES = 128 * 64
_SELF_NAMED = re.compile(r"^(?:$|node_|leaf_)")
_LAYER = re.compile(r"^(?:cache_._l|(?!cache_._l)[^-]*-)(\d{1,4})(?=$| )", re.ASCII)


@dataclass(frozen=True)
class Narrowed:
    """What a recording was narrowed to.

    Attributes:
        ops: operator types, empty for all.
        layers: [a, b), None for all.
        main: only the threads that begin graphs left records, so that waits are not told.
    """

    ops: tuple[str, ...] = ()
    layers: tuple[int, int] | None = None
    main: bool = False

    @classmethod
    def of(cls, options: dict[str, Any]) -> Self:
        """Read the options of a trace's metadata; what makes no sense there counts as absent."""
        ops, layers = options.get("only_ops"), options.get("only_layers")
        pair = isinstance(layers, list) and [type(n) for n in layers] == [int, int]
        return cls(
            tuple(o for o in ops if isinstance(o, str)) if isinstance(ops, list) else (),
            (layers[0], layers[1]) if pair and isinstance(layers, list) else None,
            options.get("only_threads") == "main",
        )

    def __bool__(self) -> bool:
        return self.by_node or self.main

    @property
    def by_node(self) -> bool:
        """Operators of some nodes were left out."""
        return bool(self.ops) or self.layers is not None

    @property
    def options(self) -> str:
        """``--ops MUL_MAT --layers 0:4``, as they were given."""
        parts = [f"--ops {','.join(self.ops)}"] if self.ops else []
        if self.layers is not None:
            first, end = self.layers
            parts.append(f"--layers {first}" if end == first + 1 else f"--layers {first}:{end}")
        return " ".join(parts)

    @property
    def text(self) -> str:
        """``MUL_MAT of layers 0 to 3``."""
        parts = [", ".join(self.ops) if self.ops else "operators"]
        if self.layers is not None:
            first, last = self.layers[0], self.layers[1] - 1
            parts.append(f"of layer {first}" if first == last else f"of layers {first} to {last}")
        return " ".join(parts)


def wanted_nodes(nodes: pd.DataFrame, narrowed: Narrowed) -> Mask:
    """Mask over the nodes table of those that records were left of."""
    out = ~nodes["unread"].to_numpy()
    if narrowed.ops:
        out &= nodes["op"].isin(narrowed.ops).to_numpy()
    if narrowed.layers is not None:
        layer = layers(nodes)
        out &= (layer >= narrowed.layers[0]) & (layer < narrowed.layers[1])
    return np.asarray(out | (nodes["idx"].to_numpy() >= _MOST_NODES))


def layers(nodes: pd.DataFrame) -> npt.NDArray[np.int64]:
    """Layer by the kernel's rule: from the name alone, -1 none.

    A name that ggml made up takes the layer of the node before.
    """
    names = nodes["name"].cat
    told = np.array([layer_of(n) for n in names.categories] + [-1], np.int64)
    auto = np.array([_SELF_NAMED.match(n) is not None for n in names.categories] + [False])
    code = names.codes.to_numpy()
    own = told[code]
    carried = (auto[code] | nodes["unread"].to_numpy()) & (nodes["idx"].to_numpy() > 0)
    own[auto[code]] = -1
    source = np.where(carried, 0, np.arange(len(own)))
    return np.asarray(own[np.maximum.accumulate(source)])


def layer_of(name: str) -> int:
    """The number that ends a name or stands before a blank: Qcur-3, cache_k_l3 (view); -1 none."""
    found = _LAYER.search(name)
    return int(found[1]) if found else -1
