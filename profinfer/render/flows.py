"""Layer 7: flows of a timeline: from the operator that made something to those that use it.

A flow leaves the slice of the producer's slowest thread, which is the one that everything waited
for, and enters the consumer's slice on every thread. Owns their numbers. May import numpy; must not
import perfetto or the command line.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from profinfer.render.opblocks import OpBlock
from profinfer.render.opnames import OpNames
from profinfer.render.timeline import Timeline

Ids = dict[int, list[int]]  # row of a block -> flows


class Flows:
    """Numbers the flows of a timeline as its blocks come."""

    def __init__(self, timeline: Timeline, names: OpNames) -> None:
        """Prepare; ``names`` knows which nodes ran as one."""
        assert timeline.producers is not None
        self._producers = timeline.producers
        self._names = names
        self._given = 0

    def of_block(self, block: OpBlock) -> tuple[Ids, Ids]:
        """Flows that begin and that end at each operator of a block, by its row."""
        begins: Ids = defaultdict(list)
        ends: Ids = defaultdict(list)
        order = np.argsort(block.graph, kind="stable")
        cuts = np.flatnonzero(np.diff(block.graph[order])) + 1
        # One turn an operator event: flows are drawn of some tokens only.
        for rows in np.split(order, cuts):
            self._of_graph(block, rows[block.fused[rows] > 0].tolist(), begins, ends)
        return begins, ends

    def _of_graph(self, block: OpBlock, rows: list[int], begins: Ids, ends: Ids) -> None:
        users: dict[int, list[int]] = defaultdict(list)  # operator -> its rows
        slowest: dict[int, int] = {}  # node -> row of the thread that was done last
        covers: dict[int, list[int]] = {}
        for row in rows:
            node = int(block.node_id[row])
            users[node].append(row)
            if node not in covers:
                covers[node] = self._names.covered(node, int(block.fused[row]))
            for one in covers[node]:
                if one not in slowest or block.end[row] > block.end[slowest[one]]:
                    slowest[one] = row
        for node, theirs in users.items():
            made = {p for one in covers[node] for p in self._producers.get(one, ())}
            sources = {slowest[p] for p in made if p in slowest and p not in covers[node]}
            for source in sorted(sources):
                for row in theirs:
                    if block.end[source] <= block.begin[row]:
                        self._given += 1
                        begins[source].append(self._given)
                        ends[row].append(self._given)
