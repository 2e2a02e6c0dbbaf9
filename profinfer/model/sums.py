"""Layer 5: the operators of a selection summed per node and per thread.

Views group nodes and threads, of which there are few; only this file looks at every operator for
them.
Must not import the analyses or above.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from profinfer.model.oprows import Rows, Walls, chosen, pieces
from profinfer.model.selection import Selection

I64 = npt.NDArray[np.int64]


_BLOCK = 1 << 18  # operators summed at a time: copies of all would need as much memory again
_OF_ALL = ("fused", "compute_max", "whole_wall", "most_threads")


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
        most_threads: of any execution that is not torn.
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
    most_threads: int
    thread_compute: I64
    thread_time: I64


@dataclass(frozen=True)
class ThreadSums:
    """Sums per thread over its operators; arrays of shape (threads,).

    Attributes:
        tids: threads that have any.
        ops: operators.
        spent: ns from begin to release.
        compute: ns from begin to end, torn ones left out.
        time: ns from begin to release, likewise.
    """

    tids: npt.NDArray[np.int32]
    ops: I64
    spent: I64
    compute: I64
    time: I64


def per_node(walls: Walls, selection: Selection) -> NodeSums:
    """Sum the selected operators."""
    n = len(selection.nodes)
    total = {f.name: np.zeros(n, np.int64) for f in fields(NodeSums) if f.name not in _OF_ALL}
    of_all = dict.fromkeys(_OF_ALL, 0)
    for part in pieces(walls, _BLOCK):
        mask = selection.of_rows(part)
        if not mask.all():
            part = chosen(part, mask)
        node, whole, threads = part.node.astype(np.int64), part.complete, part.threads
        length, fused = part.release - part.begin, part.fused
        compute = np.where(whole, part.compute_sum, 0)
        wait = np.where(whole, part.wait_sum, 0)
        np.maximum.at(total["slowest"], node, length)
        for name, values in (
            ("wall", length),
            # Integer nanoseconds: the mean over threads of one operator, rounded down.
            ("compute", compute // threads),
            ("wait", wait // threads),
            ("thread_compute", compute),
            ("thread_time", compute + wait),
        ):
            np.add.at(total[name], node, values)
        total["calls"] += np.bincount(node, minlength=n)
        several = np.flatnonzero(fused > 1)
        np.add.at(total["covered"], node[several], fused[several].astype(np.int64) - 1)
        of_all["fused"] += len(several)
        of_all["compute_max"] += int(part.compute_max[whole].sum())
        of_all["most_threads"] = max(of_all["most_threads"], int(threads[whole].max(initial=0)))
        of_all["whole_wall"] += int(length[whole].sum())
    sums: dict[str, Any] = {**total, **of_all}
    return NodeSums(**sums)


def per_thread(rows: Rows, tids: npt.NDArray[np.int32], selection: Selection) -> ThreadSums:
    """Sum the selected operators.

    Args:
        rows: of all.
        tids: threads that they are of.
        selection: which operators.
    """
    table = np.zeros((4, len(tids)), np.int64)
    for part in pieces(rows, _BLOCK):
        mask = selection.of_rows(part)
        spent, compute = part.release - part.begin, part.end - part.begin
        for at, tid in enumerate(tids.tolist()):
            mine = np.flatnonzero(mask & (part.tid == tid))
            whole = mine if part.complete.all() else mine[part.complete[mine]]
            known = spent[whole].sum()
            every = known if whole is mine else spent[mine].sum()
            table[:, at] += len(mine), every, compute[whole].sum(), known
    ran = table[0] > 0
    return ThreadSums(tids[ran], *table[:, ran])
