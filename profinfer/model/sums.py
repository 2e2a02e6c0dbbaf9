"""Layer 5: the operators of a selection summed per node and per thread.

Views group nodes and threads, of which there are few; only this file looks at every operator for
them.
Must not import the analyses or above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from profinfer.model.oprows import Rows, Walls
from profinfer.model.selection import Selection

I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class NodeSums:
    """Sums per node_id; arrays have the length of the nodes table.

    Attributes:
        calls: executions.
        wall: ns from release to release.
        compute: ns of computing, mean over the threads of each execution, torn ones left out.
        wait: ns of waiting, likewise.
        slowest: ns of the longest execution.
        fused: executions that covered more than one node.
        covered: nodes before this one that were computed with it, summed over its executions.
        compute_max: ns of the slowest thread of each execution, summed, torn ones left out.
        whole_wall: ns of the executions that are not torn.
        thread_compute: ns of computing, all threads added up, torn ones left out.
        thread_time: ns from begin to release, likewise.
    """

    calls: I64
    wall: I64
    compute: I64
    wait: I64
    slowest: I64
    fused: int
    covered: I64
    compute_max: int
    whole_wall: int
    thread_compute: I64
    thread_time: I64


@dataclass(frozen=True)
class ThreadSums:
    """Sums per thread over its operators, torn ones left out; arrays of shape (threads,).

    Attributes:
        tids: threads that have any.
        compute: ns from begin to end.
        time: ns from begin to release.
    """

    tids: npt.NDArray[np.int32]
    compute: I64
    time: I64


def per_node(walls: Walls, selection: Selection) -> NodeSums:
    """Sum the selected operators."""
    n = len(selection.nodes)
    graph, node, whole, threads = walls.graph, walls.node, walls.complete, walls.threads
    length = walls.release - walls.begin
    compute, wait, most, fused = walls.compute_sum, walls.wait_sum, walls.compute_max, walls.fused
    if not selection.graphs.all() or selection.narrowed:
        mask = selection.graphs[graph]
        if selection.narrowed:
            mask &= selection.nodes[node]
        if not mask.all():
            keep = np.flatnonzero(mask)
            graph, node, whole, threads = graph[keep], node[keep], whole[keep], threads[keep]
            length, compute, wait = length[keep], compute[keep], wait[keep]
            most, fused = most[keep], fused[keep]
    # Integer nanoseconds: the mean over threads of one operator, rounded down.
    mean_compute, mean_wait = compute // threads, wait // threads
    torn = np.flatnonzero(~whole)
    mean_compute[torn] = mean_wait[torn] = 0
    all_compute = _summed(node, compute, n) - _summed(node[torn], compute[torn], n)
    slowest = np.zeros(n, np.int64)
    np.maximum.at(slowest, node, length)
    return NodeSums(
        calls=np.bincount(node, minlength=n).astype(np.int64),
        wall=_summed(node, length, n),
        compute=_summed(node, mean_compute, n),
        wait=_summed(node, mean_wait, n),
        slowest=slowest,
        fused=int((fused > 1).sum()),
        covered=_summed(node, np.maximum(fused.astype(np.int64) - 1, 0), n),
        compute_max=int(most.sum() - most[torn].sum()),
        whole_wall=int(length.sum() - length[torn].sum()),
        thread_compute=all_compute,
        thread_time=all_compute + _summed(node, wait, n) - _summed(node[torn], wait[torn], n),
    )


def per_thread(rows: Rows, tids: npt.NDArray[np.int32], selection: Selection) -> ThreadSums:
    """Sum the selected operators.

    Args:
        rows: of all.
        tids: threads that they are of.
        selection: which operators.
    """
    chosen = rows.complete
    if not selection.graphs.all():
        chosen = chosen & selection.graphs[rows.graph]
    if selection.narrowed:
        chosen = chosen & selection.nodes[rows.node]
    found = []
    for tid in tids.tolist():
        mine = np.flatnonzero(chosen & (rows.tid == tid))
        if len(mine):
            begin = rows.begin[mine]
            compute, time = (rows.end[mine] - begin).sum(), (rows.release[mine] - begin).sum()
            found.append((tid, int(compute), int(time)))
    table = np.array(found, np.int64).reshape(-1, 3)
    return ThreadSums(table[:, 0].astype(np.int32), table[:, 1], table[:, 2])


def _summed(at: npt.NDArray[np.int32], values: I64, n: int) -> I64:
    out = np.zeros(n, np.int64)
    np.add.at(out, at, values)
    return out
