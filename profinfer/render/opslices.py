"""Layer 7: operators, visits and waits of a block as slices, with what their executions counted.

Owns which template an execution gets. May import numpy and pandas; must not import the command
line.
"""

from __future__ import annotations

import numpy as np

from profinfer.render.containers import ContainerSlices
from profinfer.render.events import Spans
from profinfer.render.flows import Flows
from profinfer.render.opblocks import OP_LEVEL, VISIT_LEVEL, OpBlock
from profinfer.render.opnames import OpNames, OpText
from profinfer.render.packets import Args, Packets, Unique, Value
from profinfer.render.timeline import Timeline, ints
from profinfer.render.trackevent import MOST_INT, Ints

_KNOWN_BITS = 8  # a bit a counter that was read; there are fewer
_FUSED_BITS = 16


class OpSlices:
    """Turns blocks into slices.

    Attributes:
        short: operators and waits left out because they are too short.
    """

    def __init__(self, packets: Packets, timeline: Timeline, graphs: ContainerSlices) -> None:
        """Prepare; ``graphs`` has the templates of the graphs that threads visit."""
        self._packets = packets
        self._names = OpNames(timeline.nodes)
        self._graphs = graphs
        self._counted = timeline.counted
        self._min = timeline.min_ns
        self._flows = Flows(timeline, self._names) if timeline.producers is not None else None
        self._template: dict[tuple[int, str], int] = {}
        self._wait = packets.event("barrier wait", "wait", {})
        self._empty = packets.event("barrier after an empty node", "empty node", {})
        self._details(timeline)
        self.short = 0

    def _details(self, timeline: Timeline) -> None:
        """Texts of single executions, by a key that the operators of a block are found by."""
        table = timeline.details
        self._detail_keys = np.empty(0, np.int64)
        self._texts: list[dict[str, str]] = []
        self._graph_ids = ints(timeline.graphs, "graph_id")
        if table is None or not len(table):
            return
        keys = ints(table, "graph_id") << 32 | ints(table, "node_id")
        order = np.argsort(keys, kind="stable")
        self._detail_keys = keys[order]
        texts = table.drop(columns=["graph_id", "node_id"]).iloc[order]
        self._texts = [
            dict(zip(map(str, texts.columns), map(str, row), strict=True))
            for row in texts.itertuples(index=False)
        ]

    def _detailed(self, block: OpBlock) -> Ints:
        """Which text each operator has, -1 for none."""
        if not len(self._detail_keys):
            return np.full(len(block.begin), -1)
        key = self._graph_ids[block.graph] << 32 | block.node_id
        at = np.minimum(np.searchsorted(self._detail_keys, key), len(self._detail_keys) - 1)
        return np.where(self._detail_keys[at] == key, at, -1)

    def _values(self, block: OpBlock) -> tuple[Ints, Ints]:
        """What the operators counted, and as bits which of it is known."""
        if self._counted is None:
            return np.zeros((len(block.row), 0), np.int64), np.zeros(len(block.row), np.int64)
        counts = self._counted.values[block.row]
        known = np.isfinite(counts)
        bits = (known << np.arange(counts.shape[1])).sum(axis=1).astype(np.int64)
        whole = np.clip(np.rint(np.where(known, counts, 0)), 0, MOST_INT >> 1).astype(np.int64)
        return whole, bits

    def _text(self, node_id: int, fused: int, known: int) -> tuple[OpText, Args]:
        """Name and arguments; what was counted comes as values of the event."""
        text = self._names.describe(node_id, fused)
        counters = self._counted.counters if self._counted else ()
        counted = {c.name: Value(k) for k, c in enumerate(counters) if known >> k & 1}
        return text, {**text.args, **counted}

    def _templates(self, block: OpBlock, known: Ints) -> Ints:
        # One turn a distinct operator of the block, not an operator event.
        key = (block.node_id << _FUSED_BITS | block.fused) << _KNOWN_BITS | known
        detail = self._detailed(block)
        packed, which = np.unique(
            np.stack([key, detail]) if (detail >= 0).any() else key, axis=-1, return_inverse=True
        )
        pairs = packed.T.tolist() if packed.ndim == 2 else [(k, -1) for k in packed.tolist()]
        ids = np.array([self._kind(k, d) for k, d in pairs], np.int64)
        out = ids[which.reshape(-1)] if len(ids) else np.empty(0, np.int64)
        out[block.fused == 0] = self._empty
        if self._flows is not None:
            self._flow(block, key, detail, out)
        return out

    def _kind(self, key: int, detail: int) -> int:
        """Template of a kind of operator, with the text of one execution if it has one."""
        more = self._texts[detail] if detail >= 0 else {}
        known = (key, repr(more) if more else "")
        if known not in self._template:
            self._template[known] = self._event(key, more)
        return self._template[known]

    def _event(
        self, key: int, more: dict[str, str], flows: list[int] | None = None,
        ends: list[int] | None = None,
    ) -> int:  # fmt: skip
        node = key >> (_FUSED_BITS + _KNOWN_BITS)
        fused = key >> _KNOWN_BITS & ((1 << _FUSED_BITS) - 1)
        text, args = self._text(node, fused, key & ((1 << _KNOWN_BITS) - 1))
        own = {k: Unique(v) for k, v in more.items()}
        return self._packets.event(
            text.name, text.category, {**args, **own}, flows=flows or (), ends=ends or ()
        )

    def _flow(self, block: OpBlock, key: Ints, detail: Ints, out: Ints) -> None:
        """Give the operators that flows begin or end at templates of their own."""
        assert self._flows is not None
        begins, ends = self._flows.of_block(block)
        for row in sorted({*begins, *ends}):
            at = int(detail[row])
            more = self._texts[at] if at >= 0 else {}
            out[row] = self._event(int(key[row]), more, begins.get(row), ends.get(row))

    def spans(self, block: OpBlock, first_track: int) -> list[Spans]:
        """Slices in the order of their threads and times."""
        n = len(block.begin)
        track = block.track + first_track
        level = np.full(n, OP_LEVEL)
        values, known = self._values(block)
        template = self._templates(block, known)
        # An empty node has nothing to compute: one slice to its barrier's end.
        end = np.where(block.fused == 0, block.release, block.end)
        ops = Spans(block.begin, end, track, level, template, block.late, values)
        waits = block.release > end
        v = block.visit_row
        graph_templates = [self._graphs.graph(row) for row in block.graph[v].tolist()]
        if self._min:
            long = end - block.begin >= self._min
            long_waits = waits & (block.release - end >= self._min)
            self.short += int((~long).sum() + (waits & ~long_waits).sum())
            ops, waits = ops.take(long), long_waits
        at = np.flatnonzero(waits)
        return [
            Spans(
                block.begin[v],
                block.visit_end,
                track[v],
                np.full(len(v), VISIT_LEVEL),
                np.array(graph_templates, np.int64),
                np.ones(len(v), np.bool_),
            ),
            ops,
            Spans(
                block.end[at],
                block.release[at],
                track[at],
                level[at],
                np.full(len(at), self._wait),
                np.ones(len(at), np.bool_),
            ),
        ]
