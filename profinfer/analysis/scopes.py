"""Layer 6: the part of a run that findings look at, and how long it took.

Must not import rich or above.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from profinfer.analysis import latency
from profinfer.analysis.finding import Prize
from profinfer.model.choose import without_torn
from profinfer.model.oprows import operator_starts
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace

# A step or two tell nothing: findings of a phase want at least these.
MIN_TOKENS = 8


@dataclass(frozen=True)
class Scope:
    """Selected calls with their time.

    Attributes:
        trace: the trace.
        selection: which calls.
    """

    trace: Trace
    selection: Selection

    @cached_property
    def span_ns(self) -> int:
        """From each call to the next one of its thread; without calls, the time of the graphs."""
        calls, graphs = self.trace.calls, self.trace.graphs
        if self.selection.n_calls:
            ends = latency.windows(self.trace)
            return int((ends - calls["begin_ns"].to_numpy())[self.selection.calls].sum())
        spent = (graphs["end_ns"] - graphs["begin_ns"]).to_numpy()
        return int(spent[self.selection.graphs].sum())

    @property
    def tokens(self) -> int:
        """Of the selected calls."""
        return self.selection.n_tokens

    @property
    def name(self) -> str:
        """For ``Finding.scope``."""
        return self.selection.description

    @cached_property
    def wall_ns(self) -> int:
        """Of the operators."""
        return int(self.trace.sums(self.selection).wall.sum())

    @cached_property
    def waiting_ns(self) -> int:
        """Of the operators that are whole: their wall less their mean computing."""
        sums = self.trace.sums(self.selection)
        return max(sums.whole_wall - int(sums.compute.sum()), 0)

    @cached_property
    def threads(self) -> int:
        """Threads that computed together, at most."""
        return int(
            self.trace.graphs["threads_seen"].to_numpy()[self.selection.graphs].max(initial=0)
        )

    def prize(self, ns: float, how: str, more: bool = False) -> Prize | None:
        """``ns`` saved in all, at most or (``more``) at least; None if that is nothing."""
        most = int(min(ns, self.span_ns))
        return Prize(most, self.tokens, self.span_ns, how, more) if most > 0 else None


def of_phase(trace: Trace, phase: str, least: int = MIN_TOKENS) -> Scope | None:
    """All of a phase but calls that are not known in full; None if too short to say anything."""
    scope = Scope(trace, without_torn(trace, trace.select(phase=phase)))
    return scope if scope.selection.n_calls and scope.tokens >= least else None


def cpus(trace: Trace) -> int:
    """CPUs that the target may run on."""
    return len(trace.meta.limits.get("cpus") or ()) or trace.meta.host.cpus_online or 1


def cores(trace: Trace) -> int:
    """Cores that these CPUs belong to; their number where the topology is not known."""
    allowed = trace.meta.limits.get("cpus") or ()
    told = trace.meta.host.topology.get("cpus") or {}
    mine = {
        (told[str(cpu)].get("package"), told[str(cpu)]["core"])
        for cpu in (allowed or map(int, told))
        if "core" in told.get(str(cpu), {})
    }
    return len(mine) or cpus(trace)


def quota(trace: Trace) -> float | None:
    """CPUs that the target's cgroup allows it at a time, None without a limit."""
    cgroup = trace.meta.limits.get("cgroup") or {}
    if cgroup.get("quota_us") and cgroup.get("period_us"):
        return float(cgroup["quota_us"] / cgroup["period_us"])
    return None


def longest_ns(trace: Trace, selection: Selection, column: str) -> int:
    """Of each selected operator the longest that any of its threads lost, summed.

    Threads lose their time at once and meet at the next barrier: the longest is what delays it.

    Args:
        trace: the trace.
        selection: which operators.
        column: of ``OpSched``, one that is zero of whoever was on a CPU all the time.
    """
    rows = trace.disturbed.rows
    mine = np.flatnonzero(selection.of_rows(rows))
    if not len(mine):
        return 0
    starts = operator_starts(rows.graph[mine], rows.node[mine])
    return int(np.maximum.reduceat(getattr(trace.disturbed, column)[mine], starts).sum())
