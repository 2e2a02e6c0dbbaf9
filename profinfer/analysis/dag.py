"""Layer 6: what can be said of any directed graph: is it acyclic, its levels, its longest path.

Textbook algorithms over arrays of edges; knows nothing of operators. Must not import rich or
anything above.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

I32 = npt.NDArray[np.int32]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Paths:
    """The longest paths of an acyclic graph whose nodes have weights.

    Attributes:
        length: of the longest path, its nodes' weights summed.
        nodes: one longest path, in order.
        slack: how much heavier each node can be until it lengthens the longest path, shape (n,).
    """

    length: float
    nodes: list[int]
    slack: F64


class Dag:
    """Nodes 0 to n - 1 and the edges between them."""

    def __init__(self, n: int, src: I32, dst: I32) -> None:
        """Keep neighbours in both directions.

        Args:
            n: number of nodes.
            src: earlier end of each edge, shape (e,).
            dst: later end of each edge, shape (e,).
        """
        self.n = n
        self.after: list[list[int]] = [[] for _ in range(n)]
        self.before: list[list[int]] = [[] for _ in range(n)]
        for a, b in zip(src.tolist(), dst.tolist(), strict=True):
            self.after[a].append(b)
            self.before[b].append(a)
        self.order = self._order()

    @property
    def acyclic(self) -> bool:
        """No node can be reached from itself."""
        return len(self.order) == self.n

    def _order(self) -> list[int]:
        """Nodes in an order that every edge follows (Kahn 1962); those in or after a cycle miss."""
        waits = [len(b) for b in self.before]
        ready = deque(i for i, w in enumerate(waits) if not w)
        out = []
        while ready:
            node = ready.popleft()
            out.append(node)
            for after in self.after[node]:
                waits[after] -= 1
                if not waits[after]:
                    ready.append(after)
        return out

    def levels(self) -> I32:
        """Most edges on any path to each node; nodes of one level do not need each other."""
        level = np.zeros(self.n, np.int32)
        for node in self.order:
            for after in self.after[node]:
                level[after] = max(level[after], level[node] + 1)
        return level

    def paths(self, weight: F64) -> Paths:
        """Longest paths by node weights, shape (n,), none negative. The graph is acyclic."""
        upto, following = weight.astype(np.float64).copy(), weight.astype(np.float64).copy()
        for node in self.order:
            upto[node] += max((upto[b] for b in self.before[node]), default=0.0)
        for node in reversed(self.order):
            following[node] += max((following[a] for a in self.after[node]), default=0.0)
        if not self.n:
            return Paths(0.0, [], np.zeros(0))
        length = float(upto.max())
        at = int(np.argmax(following))
        path = [at]
        while self.after[at] and len(path) < self.n:  # a cycle would have no end
            at = max(self.after[at], key=lambda a: (following[a], -a))
            path.append(at)
        slack = length - (upto + following - weight)
        slack[slack < 1e-9 * length] = 0.0  # sums in another order
        return Paths(length, path, slack)
