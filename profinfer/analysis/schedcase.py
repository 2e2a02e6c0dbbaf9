"""Layer 6: the numbers that the scheduler's findings share. Must not import rich or above."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import pandas as pd

from profinfer.analysis import scopes
from profinfer.analysis.finding import Finding, Number
from profinfer.analysis.scheduling import per_thread
from profinfer.analysis.scopes import Scope
from profinfer.model.trace import Trace
from profinfer.units import format_things

# How ``Case.longest_ns`` is found.
LONGEST = "of each operator the longest that any thread stood still so, summed"


@dataclass(frozen=True)
class Case:
    """What every finding looks at.

    Attributes:
        scope: which operators.
        sums: ``per_thread`` of them.
        whole: their thread time, ns.
        cpus: CPUs that the target may run on.
    """

    scope: Scope
    sums: pd.DataFrame
    whole: int
    cpus: int

    @property
    def trace(self) -> Trace:
        """The trace."""
        return self.scope.trace

    @property
    def threads(self) -> int:
        """Threads that computed together."""
        return self.scope.threads

    def total(self, column: str) -> int:
        """A column over all threads."""
        return int(self.sums[column].to_numpy().sum())

    def part(self, column: str) -> float:
        """A column's part of the thread time."""
        return self.total(column) / self.whole if self.whole else 0.0

    @cached_property
    def usable(self) -> int:
        """CPUs that the threads could have at a time, were there no quota."""
        return max(min(self.cpus, self.threads), 1)

    @cached_property
    def crowding_ns(self) -> float:
        """The operators' wall time less what their computing takes on the usable CPUs.

        Too little: what spins in barriers inside of operators looks like computing.
        """
        return self.scope.wall_ns - self.total("compute_running_ns") / self.usable

    @cached_property
    def crowding_how(self) -> str:
        """``crowding_ns`` in words."""
        return (
            "operators' wall time less the CPU time of their computing, spread evenly over "
            f"{format_things(self.usable, 'CPU')}"
        )

    def finding(
        self,
        name: str,
        share: float | None,
        text: str,
        tries: str,
        evidence: dict[str, Number],
        prize_ns: float = 0,
        how: str = "",
        more: bool = False,
    ) -> Finding:
        """A finding of this scope; ``more``: it may save more than ``prize_ns``."""
        prize = self.scope.prize(prize_ns, how, more)
        return Finding(name, share, text, tries, self.scope.name, evidence, prize)

    def longest_ns(self, column: str) -> int:
        """Of each operator the longest that any thread stood still so, summed."""
        return scopes.longest_ns(self.trace, self.scope.selection, column)


def case_of(scope: Scope) -> Case | None:
    """The numbers of a scope, None if the scheduler's events or the operators are missing."""
    trace = scope.trace
    if not trace.has_sched or not len(trace.ops):
        return None
    sums = per_thread(trace, scope.selection)
    return Case(scope, sums, int(sums["op_ns"].sum()), scopes.cpus(trace))


def percent(share: float) -> str:
    """As the scheduler's findings print it: one digit below 10 %."""
    return f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"
