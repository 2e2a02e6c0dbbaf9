"""Layer 5: which calls, graphs and nodes a view covers, and the sentence that says so.

Must not import the analyses or above.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.model.oprows import Rows, Walls
from profinfer.units import format_things

I32 = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)  # compared and hashed by identity: sums are kept for it
class Selection:
    """A part of a trace.

    Attributes:
        phase: prefill, decode, encode, warmup or other; None for several.
        calls: mask over the calls table.
        graphs: mask over the graphs table.
        nodes: mask over the nodes table.
        n_tokens: tokens of the selected calls.
        of_tokens: and of those that were left out because operators were not recorded then, too.
        warmup_excluded: the trace has warm-up calls and they were left out.
        filters: what else narrows it, for the description.
        narrowed: the nodes are a part of each graph, so that gaps and shares of it mean nothing.
    """

    phase: str | None
    calls: Mask
    graphs: Mask
    nodes: Mask
    n_tokens: int
    of_tokens: int
    warmup_excluded: bool
    filters: tuple[str, ...] = ()
    narrowed: bool = False

    @property
    def n_calls(self) -> int:
        """Selected calls."""
        return int(self.calls.sum())

    @property
    def n_graphs(self) -> int:
        """Selected graphs."""
        return int(self.graphs.sum())

    @property
    def empty(self) -> bool:
        """Whether nothing was selected."""
        return not (self.calls.any() or self.graphs.any())

    @property
    def description(self) -> str:
        """Phase, number of tokens and graphs, filters, and whether warm-up is in it."""
        tokens = format_things(self.of_tokens, "token")
        if self.of_tokens > self.n_tokens:
            tokens = f"{self.n_tokens:,} of {tokens}"
        parts = [f"{self.phase or 'all phases'}: {tokens}"]
        if len(self.calls):
            parts.append(format_things(self.n_calls, "call"))
        if len(self.graphs):
            parts.append(format_things(self.n_graphs, "graph"))
        parts.extend(self.filters)
        if self.warmup_excluded:
            parts.append("warm-up excluded")
        return ", ".join(parts)

    def with_graphs(self, graphs: Mask) -> Selection:
        """Other graphs instead; itself where they are the same, as its sums are known then."""
        return self if np.array_equal(graphs, self.graphs) else replace(self, graphs=graphs)

    def mask(self, table: pd.DataFrame) -> Mask:
        """Which rows of an ops or op_walls table are selected."""
        return self._picks(table["graph_id"].to_numpy(), table["node_id"].to_numpy())

    def of_rows(self, rows: Rows | Walls) -> Mask:
        """Which of some rows of operators are selected."""
        return self._picks(rows.graph, rows.node)

    def rows(self, table: pd.DataFrame) -> pd.DataFrame:
        """The rows of an ops or op_walls table that are selected."""
        mask = self.mask(table)
        return table if mask.all() else table.loc[mask]

    def _picks(self, graph: I32, node: I32) -> Mask:
        out: Mask = self.graphs[graph]
        if self.narrowed:
            out &= self.nodes[node]
        return out
