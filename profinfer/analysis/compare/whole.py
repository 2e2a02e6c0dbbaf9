"""Layer 6: the whole time per token of both sides: how much it differs, and if that is b's doing.

Must not import rich or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from profinfer.analysis.compare import student
from profinfer.analysis.compare.noise import LEVEL
from profinfer.analysis.compare.runs import Comparison

ENOUGH = 3  # runs of each side that it takes to tell from the runs how much runs differ
DRIFT = 0.60  # by which undisturbed runs of one program on one machine have been seen to differ


@dataclass(frozen=True)
class Whole:
    """Logarithms of b / a of the time per token.

    Attributes:
        change: of the means over runs.
        low: end of the two-sided 95 % interval.
        high: the other end.
        at_least: what it is more than, with 95 % (one-sided).
        by_runs: the interval is that of runs; else only that of the tokens within them.
        drift: what the machine may differ by between runs; None if the traces do not tell that it
            was left alone.
    """

    change: float
    low: float
    high: float
    at_least: float
    by_runs: bool
    drift: float | None

    @property
    def sure(self) -> bool:
        """There is a difference, and it is not the machine's."""
        if self.by_runs:
            return self.low > 0 or self.high < 0
        if self.drift is None:
            return False
        return self.low > self.drift or self.high < -self.drift

    def worse_than(self, ratio: float) -> bool:
        """Whether b takes longer by more than ``ratio``, with confidence."""
        limit = float(np.log1p(ratio))
        if self.by_runs:
            return self.at_least > limit
        return self.drift is not None and self.at_least - self.drift > limit


def measure(of: Comparison, drift: float | None) -> Whole:
    """Compare the time per token.

    With ``ENOUGH`` runs a side, Student's t on the logarithms of the runs' times. With fewer,
    nobody knows how much runs differ: the interval is that of the tokens, and the machine is
    granted a drift.

    Args:
        of: the runs.
        drift: ratio that the machine is granted; None for the usual one, where the scheduler's
            events say that nothing else took the CPUs.
    """
    logs = [np.log(side) for side in of.totals()]
    change = float(np.log(of.totals()[1].mean() / of.totals()[0].mean()))
    spread = [
        np.array([np.nan_to_num(run.spread(run.samples.total[:, None])[0]) for run in side])
        for side in (of.a, of.b)
    ]
    inside = sum(float((s**2).mean()) / len(s) for s in spread)
    counts = [len(side) for side in logs]
    if min(counts) >= ENOUGH:
        df = sum(counts) - 2
        pooled = sum(float(((x - x.mean()) ** 2).sum()) for x in logs) / df
        error = float(np.sqrt(max(pooled * sum(1 / n for n in counts), inside)))
        width, one = (error * student.quantile(1 - k * LEVEL, df) for k in (1, 2))
        return Whole(change, change - width, change + width, change - one, True, 0.0)
    # Within a run there are many tokens: the normal distribution is near enough.
    error = float(np.sqrt(inside))
    granted = float(np.log1p(DRIFT)) if drift is None else float(np.log1p(drift))
    alone = drift is not None or all(
        run.held_up is not None and not run.disturbed for run in of.runs
    )
    return Whole(change, change - 1.96 * error, change + 1.96 * error, change - 1.645 * error,
                 False, granted if alone else None)  # fmt: skip
