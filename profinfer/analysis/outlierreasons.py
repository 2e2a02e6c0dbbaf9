"""Layer 6: why one decode step took longer than its neighbours, as a phrase with numbers.

Must not import rich or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.analysis import steps as parts
from profinfer.analysis.steps import Steps
from profinfer.model.oprows import of_graphs, operator_starts
from profinfer.model.results import asynchronous_names
from profinfer.model.trace import Trace
from profinfer.units import format_bytes, format_ns, format_things

I64 = npt.NDArray[np.int64]

# A cause explains an excess when it is at least this part of it.
EXPLAINS = 0.5
_AWAY = {
    parts.AWAY: "{} took its work {} more slowly",
    parts.COPIES: "copies to and from {} took {} longer",
    parts.WAITS: "{} was waited for {} longer",
}
# One node explains a role's excess likewise.
ONE_NODE = 0.5


@dataclass(frozen=True)
class Excess:
    """One slow step.

    Attributes:
        at: row of ``Steps``.
        part: number of the part with the largest excess.
        total_ns: what the step took longer than its neighbours.
        part_ns: what that part took longer.
    """

    at: int
    part: int
    total_ns: float
    part_ns: float


def reason(trace: Trace, steps: Steps, excess: Excess) -> str:
    """The first of: no CPU, page faults, a new graph, one operator, the part itself."""
    call = int(steps.call[excess.at])
    graphs = np.flatnonzero(trace.graphs["call_id"].to_numpy() == call)
    name = steps.parts[excess.part]
    away = _without_cpu(trace, steps, excess.at, graphs)
    if away is not None and away[0] >= EXPLAINS * excess.total_ns:
        return away[1]
    held, text = _faults(trace, graphs)
    if held >= EXPLAINS * excess.total_ns:
        return text
    if name in (parts.BUILD, parts.WALK) and steps.rebuilt[excess.at]:
        return f"a new graph was built{_cells(steps, excess.at)}"
    if name == parts.BETWEEN:
        return "the program's own work between two calls"
    if excess.part < steps.roles:
        return _operators(trace, steps, excess, graphs)
    if name in _AWAY:
        return _AWAY[name].format(_others(trace, call), format_ns(excess.part_ns))
    return {
        parts.SAMPLING: "sampling took longer",
        parts.BUILD: "the engine took longer to build and schedule the same graph",
        parts.LOST: "graphs of it were lost: what it did is not known",
        parts.GAPS: "a thread came late to the graph, or left it late",
        parts.NOT_RECORDED: "operators that were not recorded took longer",
        parts.WALK: "profinfer read the graph",
    }.get(name, f"{name} took longer")


def _others(trace: Trace, call: int) -> str:
    """Names of the asynchronous backends that a call used."""
    splits = trace.splits
    return asynchronous_names(splits[(splits["call_id"] == call).to_numpy()]) or "another backend"


def _cells(steps: Steps, at: int) -> str:
    if at and 0 <= steps.cells[at - 1] != steps.cells[at] >= 0:
        return f": KV cells {steps.cells[at - 1]:,} -> {steps.cells[at]:,}"
    return ""


def _without_cpu(trace: Trace, steps: Steps, at: int, graphs: I64) -> tuple[float, str] | None:
    """Time that the step lost because threads had no CPU: ns and a phrase; None if not recorded.

    At each operator the others wait for the thread that lost most, so the largest loss of each
    operator counts. Outside of graphs it is the calling thread's. A thread that sleeps, for a disk
    or a lock, wants no CPU and has lost none.
    """
    if not trace.has_sched:
        return None
    ops = trace.ops
    mine = ops.iloc[of_graphs(ops["graph_id"].to_numpy(), graphs)]
    mine = mine[mine["complete"].to_numpy() & np.isin(mine["graph_id"].to_numpy(), graphs)]
    lost = 0
    worst: dict[int, int] = {}
    if len(mine):
        off = trace.disturbed.values_at(mine.index.to_numpy(), "compute_runnable")
        graph, node = mine["graph_id"].to_numpy(), mine["node_id"].to_numpy()
        lost = int(np.maximum.reduceat(off, operator_starts(graph, node)).sum())
        tids = mine["tid"].to_numpy()
        worst = {t: int(off[tids == t].sum()) for t in np.unique(tids).tolist()}
    call = trace.calls.iloc[int(steps.call[at])]
    since, until = int(steps.since[at]), int(steps.since[at] + steps.total[at])
    table = trace.sched
    inside = table[(table["end_ns"].to_numpy() > since) & (table["begin_ns"].to_numpy() < until)]
    waits = inside[(inside["state"] == "runnable").to_numpy()]
    outside = _outside(trace, waits, int(call["tid"]), since, until, graphs)
    worst[int(call["tid"])] = worst.get(int(call["tid"]), 0) + outside
    if not lost and not outside:
        return 0.0, ""
    tid = max(worst, key=lambda t: worst[t])
    names = dict(zip(trace.threads["tid"], trace.threads["name"], strict=True))
    taker = _taker(trace, waits[waits["tid"].to_numpy() == tid], since, until)
    text = f"no CPU for {format_ns(worst[tid])}{taker}: thread {names.get(tid) or tid}"
    return float(lost + outside), text


def _outside(
    trace: Trace, waits: pd.DataFrame, tid: int, since: int, until: int, graphs: I64
) -> int:
    """Time that the calling thread waited for a CPU outside of its graphs."""
    mine = waits[waits["tid"].to_numpy() == tid]
    begin = np.clip(mine["begin_ns"].to_numpy(), since, until)
    end = np.clip(mine["end_ns"].to_numpy(), since, until)
    total = int((end - begin).sum())
    table = trace.graphs.iloc[graphs]
    for first, last in zip(table["begin_ns"].tolist(), table["end_ns"].tolist(), strict=True):
        total -= int((np.clip(end, first, last) - np.clip(begin, first, last)).sum())
    return max(total, 0)


def _taker(trace: Trace, waits: pd.DataFrame, since: int, until: int) -> str:
    """Who had the CPU for the longest time while the thread waited for it."""
    table = waits.assign(
        ns=np.clip(waits["end_ns"], since, until) - np.clip(waits["begin_ns"], since, until)
    )
    table = table[table["by_tid"].to_numpy() > 0]
    if not len(table):
        return ""
    taken = table.groupby("by_pid")["ns"].sum()
    pid = int(taken.index[int(taken.to_numpy().argmax())])
    if pid == trace.schedule.own:
        return " behind another of its threads"
    names = table["by_name"][table["by_pid"].to_numpy() == pid]
    return f" behind {names.iloc[0]} (pid {pid})"


def _faults(trace: Trace, graphs: I64) -> tuple[float, str]:
    """The longest that one thread was held up by page faults in these graphs, and a phrase."""
    if not trace.has_faults or not len(trace.faults):
        return 0.0, ""
    table = trace.faults
    mine = table[np.isin(table["graph_id"].to_numpy(), graphs)]
    if not len(mine):
        return 0.0, ""
    held = int(mine.groupby("tid")["held_ns"].sum().max())
    majors = int(mine["major"].sum())
    read = trace.reads
    size = int(read["bytes"].to_numpy()[np.isin(read["graph_id"].to_numpy(), graphs)].sum())
    text = f"page faults held a thread up for {format_ns(held)}: {format_things(majors, 'major')}"
    text += f", {format_bytes(size)} read" if size else ""
    tensors = mine[(mine["tensor"].astype(str) != "").to_numpy()]
    if len(tensors):
        most = tensors.groupby(tensors["tensor"].astype(str))["held_ns"].sum().idxmax()
        text += f", most at {most}"
    return float(held), text


def _operators(trace: Trace, steps: Steps, excess: Excess, graphs: I64) -> str:
    """One operator of the role, or all of them."""
    name = steps.parts[excess.part]
    role = (trace.nodes["role"] == name).to_numpy()
    neighbours = steps.call[max(0, excess.at - 25) : excess.at + 26]
    owner = trace.graphs["call_id"].to_numpy()
    near = np.flatnonzero((owner >= neighbours.min()) & (owner <= neighbours.max()))
    walls = trace.op_walls.iloc[of_graphs(trace.op_walls["graph_id"].to_numpy(), near)]
    node = walls["node_id"].to_numpy()
    of_call = owner[walls["graph_id"].to_numpy()]
    use = role[node] & (of_call >= neighbours.min()) & (of_call <= neighbours.max())
    use &= walls["complete"].to_numpy()
    place = trace.nodes["idx"].to_numpy()[node[use]]
    length = (walls["release_ns"] - walls["begin_ns"]).to_numpy()[use]
    mine = np.isin(walls["graph_id"].to_numpy()[use], graphs)
    others = ~mine & np.isin(of_call[use], neighbours)
    n = int(place.max()) + 1 if len(place) else 0
    own = np.bincount(place[mine], length[mine], n)
    usual = np.bincount(place[others], length[others], n) / max(len(neighbours) - 1, 1)
    beyond = own - usual
    if not len(beyond):
        return f"{name} took longer"
    worst = int(beyond.argmax())
    if beyond[worst] >= ONE_NODE * excess.part_ns:
        which = node[use][mine & (place == worst)]
        label = str(trace.nodes["name"].iloc[int(which[0])])
        return f"one operator: {label} took {format_ns(float(beyond[worst]))} more"
    slower = int((beyond > 0.1 * usual)[usual > 0].sum())
    of = int((usual > 0).sum())
    return f"{slower:,} of {of:,} operators of {name} took longer{_cells(steps, excess.at)}"
