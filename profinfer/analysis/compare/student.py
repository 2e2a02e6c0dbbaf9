"""Layer 6: Student's t distribution and Holm's correction, which is all that a verdict needs.

Must not import the model or anything above.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]


def within(t: float, df: int) -> float:
    """Probability that a t variable of ``df`` degrees of freedom lies in [-t, t].

    Abramowitz & Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4: a finite sum for
    whole numbers of degrees of freedom.

    Args:
        t: at least 0; may be infinite.
        df: at least 1.
    """
    if math.isinf(t):
        return 1.0
    angle = math.atan2(t, math.sqrt(df))
    sin, cos = math.sin(angle), math.cos(angle)
    odd = df % 2
    term = cos if odd else 1.0
    total = term if df > 1 else 0.0
    for k in range(2 + odd, df - 1, 2):
        term *= cos * cos * (k - 1) / k
        total += term
    if odd:
        return 2 / math.pi * (angle + sin * total)
    return sin * total


def quantile(inside: float, df: int) -> float:
    """The t for which ``within(t, df)`` is ``inside``, to 1e-6.

    Args:
        inside: in [0, 1).
        df: at least 1.
    """
    low, high = 0.0, 1.0
    while within(high, df) < inside:
        high *= 2
    while high - low > 1e-6 * max(high, 1.0):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle, df) < inside else (low, middle)
    return (low + high) / 2


def two_sided(z: F64, df: int) -> F64:
    """P of each |z| under t of ``df`` degrees of freedom; NaN stays NaN."""
    return np.array([math.nan if math.isnan(v) else 1 - within(abs(v), df) for v in z.tolist()])


def holm(p: F64, at_least: int = 0) -> F64:
    """P adjusted for as many comparisons as there are (not NaN), by Holm's step-down method.

    A view of few groups of the same operators is granted no more than one of many: ``at_least`` is
    the number of comparisons that it counts as.

    S. Holm, A simple sequentially rejective multiple test procedure, Scand. J. Statist. 6 (1979):
    the chance of even one false alarm among all comparisons stays below the level.
    """
    out = np.full(len(p), np.nan)
    known = np.flatnonzero(~np.isnan(p))
    order = known[np.argsort(p[known], kind="stable")]
    scaled = p[order] * (max(len(order), at_least) - np.arange(len(order)))
    out[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return out
