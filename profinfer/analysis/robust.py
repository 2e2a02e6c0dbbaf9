"""Layer 6: slopes and levels that a few wild values do not move. Pure arithmetic over arrays.

Must not import the model, rich or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

F64 = npt.NDArray[np.float64]

BLOCKS = 200  # values that are left for the pairs; each is the median of its neighbours
_Z95 = 1.959964  # of the normal distribution, two-sided 95 %
_MAD = 1.4826  # median absolute deviation -> standard deviation of a normal distribution


@dataclass(frozen=True)
class Line:
    """A straight line and how sure its slope is.

    Attributes:
        slope: units of y per unit of x.
        low: lower end of its 95 % confidence interval.
        high: upper end.
        at_zero: value at x = 0.
    """

    slope: float
    low: float
    high: float
    at_zero: float

    @property
    def certain(self) -> bool:
        """The interval leaves out 0."""
        return self.low > 0 or self.high < 0

    def at(self, x: float) -> float:
        """Value of the line."""
        return self.at_zero + self.slope * x


def theil_sen(x: F64, y: F64) -> Line | None:
    """Median of the slopes between all pairs of points, None for fewer than three places.

    Of more than ``BLOCKS`` points, medians of neighbours are taken first. Interval: Sen,
    "Estimates of the regression coefficient based on Kendall's tau", JASA 63 (1968), without the
    correction for ties.

    Args:
        x: places, shape (N,).
        y: values there, shape (N,).
    """
    order = np.argsort(x, kind="stable")
    x, y = x[order].astype(np.float64), y[order].astype(np.float64)
    if len(x) > BLOCKS:
        parts = np.array_split(np.arange(len(x)), BLOCKS)
        x = np.array([np.median(x[p]) for p in parts])
        y = np.array([np.median(y[p]) for p in parts])
    n = len(x)
    first, second = np.triu_indices(n, 1)
    apart = x[second] - x[first]
    use = apart > 0
    if len(np.unique(x)) < 3:
        return None
    slopes = np.sort((y[second] - y[first])[use] / apart[use])
    slope = float(np.median(slopes))
    spread = _Z95 * np.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    low = max(int((len(slopes) - spread) // 2), 0)
    high = min(int((len(slopes) + spread) // 2) + 1, len(slopes) - 1)
    at_zero = float(np.median(y - slope * x))
    return Line(slope, float(slopes[low]), float(slopes[high]), at_zero)


def level(values: F64, window: int = 51) -> F64:
    """What each value's neighbours are like: the median of a window around it, itself included."""
    rolling = pd.Series(values).rolling(window, center=True, min_periods=1)
    return rolling.median().to_numpy(np.float64)


def band(values: F64, q: float, window: int = 51) -> F64:
    """The q-quantile of a window around each value."""
    rolling = pd.Series(values).rolling(window, center=True, min_periods=1)
    return rolling.quantile(q).to_numpy(np.float64)


def deviation(values: F64) -> float:
    """Standard deviation of the bulk, by the median absolute deviation; 0 without values."""
    if not len(values):
        return 0.0
    return float(_MAD * np.median(np.abs(values - np.median(values))))
