"""Layer 6: what the machine does to operators by itself, and what is beyond that.

Two runs of one program differ by more than their tokens tell: where a process' memory happens to
lie, what else the machine does. ``Noise`` learns it from the runs themselves, by three means that
``docs/diff.md`` describes. Must not import the model, rich or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from profinfer.analysis.compare import student

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

LEVEL = 0.05  # chance of one false alarm in a table
MATERIAL = 0.003  # of the time per token: operators below it are not judged
# A change of less than this part of the time per token is not named. With one run a side nothing
# tells how much runs differ: where memory lay moved GLU by 0.6 % between runs of one program.
NAMED = 0.01
NAMED_RUNS = 0.001  # with several
PRIOR_DF = 4  # weight of the other operators' variance in that of one, as degrees of freedom
FACTORS = 2  # ways at most in which runs of one side differ in all operators together
FLOOR = 0.005  # of an operator's time; no comparison of single runs is finer than that
FLOOR_RUNS = 0.001  # likewise of several runs
FEWEST = 5  # operators that it takes to tell what they share
_MAD = 1.4826  # median absolute deviation of a normal distribution to its standard deviation


@dataclass(frozen=True)
class Sample:
    """Logarithms of ns per token of some groups of operators.

    Attributes:
        a: shape (groups, runs of a).
        b: shape (groups, runs of b).
        spread_a: standard error of each within its run; NaN if not known.
        spread_b: likewise.
    """

    a: F64
    b: F64
    spread_a: F64
    spread_b: F64

    @property
    def difference(self) -> F64:
        """Mean of b less mean of a."""
        return np.asarray(self.b.mean(axis=1) - self.a.mean(axis=1), float)

    @property
    def around(self) -> F64:
        """Each run less the mean of its side, a's first."""
        sides = [x - x.mean(axis=1, keepdims=True) for x in (self.a, self.b)]
        return np.concatenate(sides, axis=1)

    @property
    def inside(self) -> F64:
        """Variance of the difference that the runs' own tokens explain."""
        parts = [np.nan_to_num(s**2).mean(axis=1) / s.shape[1]
                 for s in (self.spread_a, self.spread_b)]  # fmt: skip
        return np.asarray(parts[0] + parts[1], float)

    def of(self, groups: Mask) -> Sample:
        """Some of the groups."""
        return Sample(self.a[groups], self.b[groups], self.spread_a[groups], self.spread_b[groups])


@dataclass(frozen=True)
class Judged:
    """What is said of each group; arrays have one value a group.

    Attributes:
        shared: logarithm of the factor by which it should have changed with all others.
        own: logarithm of the factor that is left.
        error: standard error of ``own``; NaN if nothing tells.
        p: chance of as much by noise alone, for one comparison.
        df: degrees of freedom of the t distribution that ``p`` comes from.
    """

    shared: F64
    own: F64
    error: F64
    p: F64
    df: int

    @property
    def half(self) -> F64:
        """Half the width of the 95 % interval of ``own``."""
        return np.asarray(self.error * student.quantile(1 - LEVEL, self.df), float)


@dataclass(frozen=True)
class Noise:
    """What all operators share, and how far they scatter around it.

    Attributes:
        common: logarithm of the factor that all operators share.
        directions: how much each run has of each factor, orthonormal rows, shape (r, runs).
        amounts: by how much the sides differ in each factor, shape (r,).
        scatter: standard deviation of an operator's difference around what it shares, by the
            operators themselves; None if there are too few.
        inflation: by how much the operators scatter more than the runs of a side tell, at least 1.
        prior: median variance of an operator between runs of a side; NaN if not known.
        df: degrees of freedom that the runs of a side leave; 0 with a run on each side.
        count: operators that it was learned from.
    """

    common: float
    directions: F64
    amounts: F64
    scatter: float | None
    inflation: float
    prior: float
    df: int
    count: int

    @property
    def material(self) -> float:
        """Part of the time per token from which on a change is named."""
        return NAMED_RUNS if self.df else NAMED

    def judge(self, sample: Sample) -> Judged:
        """Judge groups of operators, or the whole."""
        loads = sample.around @ self.directions.T
        shared = self.common + loads @ self.amounts
        own = sample.difference - shared
        inside = sample.inside
        if self.df > 0:
            error = np.sqrt(np.maximum(inside, self._between(sample, loads))) * self.inflation
        elif self.scatter is None:
            error = np.full(len(own), np.nan)
        else:
            error = np.hypot(max(self.scatter, FLOOR), np.sqrt(inside))
        df = PRIOR_DF + self.df
        with np.errstate(divide="ignore", invalid="ignore"):
            p = student.two_sided(own / error, df)
        return Judged(shared, own, error, p, df)

    def _between(self, sample: Sample, loads: F64) -> F64:
        """Variance of each difference by what runs of a side differ, the factors taken away.

        Moderated: a few runs tell little of one operator's variance, and all others tell what is
        usual (Smyth 2004).
        """
        rest = sample.around - loads @ self.directions
        own = (rest**2).sum(axis=1)
        runs = 1 / sample.a.shape[1] + 1 / sample.b.shape[1]
        variance = (PRIOR_DF * self.prior + own) / (PRIOR_DF + self.df) + FLOOR_RUNS**2
        return np.asarray(variance * runs, float)


def learn(sample: Sample) -> Noise:
    """Learn from operators that should not have changed: the same work on both sides.

    Args:
        sample: of them; each a type of operator with a role, of all layers together.
    """
    count, runs = len(sample.a), sample.a.shape[1] + sample.b.shape[1]
    if count < FEWEST:
        return Noise(0.0, np.zeros((0, runs)), np.zeros(0), None, 1.0, np.nan, 0, count)
    left = runs - 2
    r = min(FACTORS, max(left // 2, 1)) if left > 0 else 0
    around = sample.around
    directions = np.linalg.svd(around, full_matrices=False)[2][:r]
    loads = around @ directions.T
    df = max(left - r, 0)
    inside = sample.inside
    noise = Noise(0.0, directions, np.zeros(r), None, 1.0, np.nan, df, count)
    error = np.asarray(np.hypot(FLOOR, np.sqrt(inside)), float)
    if df > 0:
        rest = around - loads @ directions
        prior = float(np.median((rest**2).sum(axis=1) / df))
        noise = Noise(0.0, directions, np.zeros(r), None, 1.0, prior, df, count)
        error = np.asarray(np.sqrt(np.maximum(inside, noise._between(sample, loads))), float)
    terms = np.concatenate([np.ones((count, 1)), loads], axis=1)
    difference = sample.difference
    weights = error if df > 0 else np.ones(count, float)
    found = least_absolute(terms, difference, weights)
    off = difference - terms @ found
    fitted = np.sqrt(count / max(count - terms.shape[1], 1))
    scatter = float(_MAD * np.median(np.abs(off)) * fitted)
    inflation = max(1.0, float(_MAD * np.median(np.abs(off / error)) * fitted)) if df > 0 else 1.0
    return Noise(float(found[0]), directions, found[1:], scatter, inflation, noise.prior, df,
                 count)  # fmt: skip


def least_absolute(terms: F64, values: F64, error: F64, rounds: int = 50) -> F64:
    """Coefficients of ``terms`` that make the sum of |values - terms @ c| / error least.

    By iteratively reweighted least squares: a few operators that really changed pull at a mean, not
    at this. Shapes: (n, k), (n,), (n,) -> (k,).
    """
    scale = error.mean()
    weight: F64 = np.asarray(1 / error, float)
    out: F64 = np.zeros(terms.shape[1])
    for _ in range(rounds):
        scaled = (terms * weight[:, None]).T
        out = np.asarray(np.linalg.pinv(scaled @ terms) @ (scaled @ values), float)
        off = np.abs(values - terms @ out)
        weight = 1 / (error * np.maximum(off, 1e-3 * scale))
    return out
