"""Layer 6: the runs of both sides, their operators aligned, the same tokens taken of each.

Must not import rich or anything above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.analysis import scheduling
from profinfer.analysis.compare import optimes, resampling, samples, slots
from profinfer.analysis.compare.align import Alignment, align
from profinfer.analysis.compare.optimes import OperatorTimes
from profinfer.analysis.compare.samples import Samples
from profinfer.analysis.correction import probe_cost_ns
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

_COMMON = 0.25  # of a run's samples: fewer at the positions that all have, and all are taken


@dataclass(frozen=True, eq=False)
class Run:
    """One run's part in a comparison of a phase.

    Attributes:
        trace: the run.
        selection: its calls.
        taken: its samples before the positions of the other runs were asked for.
        samples: those that are compared.
        times: of each sample and unit.
        disturbed: other processes had its CPUs, nearly all the time.
        held_back: tokens left out because other processes had its CPUs.
    """

    trace: Trace
    selection: Selection
    taken: Samples
    samples: Samples
    times: OperatorTimes
    disturbed: bool
    held_back: int

    @cached_property
    def kept(self) -> I64:
        """Samples that are averaged over."""
        return resampling.kept(self.samples.total / self.samples.tokens)

    @cached_property
    def draws(self) -> F64:
        """How often each sample is kept in each resample."""
        return resampling.draws(self.samples.total / self.samples.tokens)

    @property
    def total_ns(self) -> float:
        """Time in calls per token."""
        return float(self.per_token(self.samples.total[:, None])[0])

    def per_token(self, values: F64) -> F64:
        """Mean per token over the kept samples; ``values`` has shape (samples, k)."""
        return np.asarray(
            values[self.kept].sum(axis=0) / self.samples.tokens[self.kept].sum(), float
        )

    def spread(self, values: F64) -> F64:
        """Standard error of the logarithm of ``per_token`` within the run, shape (k,); NaN if 0."""
        tokens = self.draws @ self.samples.tokens
        means = (self.draws @ values) / tokens[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where((means > 0).all(axis=0), np.log(means).std(axis=0), np.nan)

    @cached_property
    def held_up(self) -> float | None:
        """Part of the threads' time in operators without a CPU that others had; None: unknown."""
        if not self.trace.has_sched:
            return None
        sums = scheduling.per_thread(self.trace, self.selection)
        whole = int(sums["op_ns"].sum())
        return float(sums["behind_other_ns"].sum()) / whole if whole else None


@dataclass(frozen=True, eq=False)
class Comparison:
    """Two sides of a phase.

    Attributes:
        phase: decode, prefill, ...; "graphs" of programs that make no calls.
        a: runs of the first side that are compared, disturbed ones left out if others are there.
        b: of the second.
        left_out: disturbed runs.
        units: the operators of both sides; see ``Alignment``; and away_a, away_b: another backend
            ran it on that side, and its time is not known.
        window: first and last position compared; None if positions were not looked at.
        why_all: why the positions were not restricted, or None.
        corrected: what probes cost was taken from operators.
    """

    phase: str
    a: list[Run]
    b: list[Run]
    left_out: list[Run]
    units: pd.DataFrame
    window: tuple[int, int] | None
    why_all: str | None
    corrected: bool

    @property
    def runs(self) -> list[Run]:
        """All that are compared, a's first."""
        return [*self.a, *self.b]

    def totals(self) -> tuple[F64, F64]:
        """Ns per token of each run, by side."""
        return np.array([r.total_ns for r in self.a]), np.array([r.total_ns for r in self.b])


def select(trace: Trace, phase: str, tokens: tuple[int, int] | None = None) -> Selection:
    """The part of a run that is compared; without operators, everything."""
    return trace.select(
        phase=None if phase == "graphs" else phase, tokens=tokens, unsampled=not len(trace.ops)
    )


def phases(trace: Trace) -> list[str]:
    """Phases that a trace has, those that matter most first."""
    if not len(trace.calls):
        return ["graphs"] if len(trace.graphs) else []
    have = set(trace.calls["phase"][trace.calls["n_tokens"] > 0].astype(str))
    return [p for p in ("decode", "prefill", "mixed", "encode") if p in have]


def compare(
    a: Sequence[Trace], b: Sequence[Trace], phase: str, *,
    tokens: tuple[int, int] | None = None, corrected: bool = False,
) -> Comparison:  # fmt: skip
    """Bring the runs of both sides together.

    Args:
        a: runs of the first side.
        b: of the second.
        phase: which calls.
        tokens: decoded tokens [a, b) of each generation; None takes all.
        corrected: take what the probes cost from the operators.
    """
    traces = [*a, *b]
    selections = [select(t, phase, tokens) for t in traces]
    taken = [samples.take(t, s) for t, s in zip(traces, selections, strict=True)]
    window, why_all = _window(taken, phase)
    used = [samples.inside(s, *window) for s in taken] if window else taken
    quiet = [
        samples.calm(t, s) if t.has_sched and len(t.ops) else (s, True)
        for t, s in zip(traces, used, strict=True)
    ]
    held_back = [s.n_tokens - q.n_tokens for s, (q, _) in zip(used, quiet, strict=True)]
    used = [samples.thinned(s) for s, _ in quiet]
    found, gone = [], []
    with_operators = all(len(t.ops) for t in traces)  # else calls can be compared, and no more
    for trace, chosen in zip(traces, used, strict=True):
        ran = np.zeros(len(trace.nodes), bool)
        walls = trace.op_walls
        if with_operators:
            ran[walls["node_id"].to_numpy()[chosen.owner[walls["graph_id"].to_numpy()] >= 0]] = True
            ran[optimes.others_ops(trace, chosen)[0]["node_id"].to_numpy()] = True
        elsewhere = optimes.away(trace, chosen) & ~ran & with_operators
        found.append(slots.find(trace, ran | elsewhere))
        gone.append(np.flatnonzero(elsewhere))
    aligned = align(found[: len(a)], found[len(a) :])
    units = aligned.units
    for side, numbers in (("a", range(len(a))), ("b", range(len(a), len(traces)))):
        units[f"away_{side}"] = False
        for number in numbers:
            units.loc[aligned.of_node[number][gone[number]], f"away_{side}"] = True
    runs = []
    for number, (t, s, whole, part) in enumerate(zip(traces, selections, taken, used, strict=True)):
        times = _times(t, part, aligned, number, corrected)
        less = replace(part, total=part.total - times.removed)
        runs.append(Run(t, s, whole, less, times, not quiet[number][1], held_back[number]))
    sides = [[r for r in runs[: len(a)] if r.samples.n], [r for r in runs[len(a) :] if r.samples.n]]
    calm = [[r for r in side if not r.disturbed] or side for side in sides]
    kept = {id(r) for side in calm for r in side}
    left_out = [r for side in sides for r in side if id(r) not in kept]
    return Comparison(phase, calm[0], calm[1], left_out, units, window, why_all, corrected)


def _times(
    trace: Trace, part: Samples, aligned: Alignment, number: int, corrected: bool
) -> OperatorTimes:
    cost = (probe_cost_ns(trace) or 0) if corrected else 0
    return optimes.operator_times(trace, part, aligned.of_node[number], len(aligned.units), cost)


def _window(taken: list[Samples], phase: str) -> tuple[tuple[int, int] | None, str | None]:
    """Positions that all runs have, for decode; else why all are taken."""
    if phase != "decode" or any(not s.n for s in taken):
        return None, None
    if any(np.isnan(s.position).any() for s in taken):
        return None, "positions in the KV cache are not known"
    low = max(float(s.position.min()) for s in taken)
    high = min(float(s.position.max()) for s in taken)
    inside = [((s.position >= low) & (s.position <= high)).sum() / s.n for s in taken]
    if min(inside) < _COMMON:
        return (
            None,
            "the runs have hardly any KV positions in common, and attention grows with them",
        )
    return (int(low), int(high)), None
