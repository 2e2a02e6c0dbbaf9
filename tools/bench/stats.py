"""Statistics for a machine that others use too: pairs, medians, and how sure they are."""

from __future__ import annotations

import numpy as np


def summary(values: list[float]) -> dict[str, float]:
    """Median, quartiles and best of some numbers."""
    low, middle, high = np.percentile(values, (25, 50, 75))
    return {"median": float(middle), "iqr": float(high - low), "best": float(min(values))}


def interval(values: list[float], *, rounds: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the median. The generator is seeded: same numbers, same answer."""
    data = np.asarray(values)
    rng = np.random.default_rng(1)
    medians = np.median(data[rng.integers(0, len(data), (rounds, len(data)))], axis=1)
    low, high = np.percentile(medians, (2.5, 97.5))
    return float(low), float(high)


def paired(traced: list[float], plain: list[float]) -> dict[str, float]:
    """Cost of tracing from runs made side by side.

    Args:
        traced: time a token of every traced run.
        plain: of the untraced run of the same round.

    Returns:
        ``ratio`` (median of the pairs' ratios, minus 1) with its interval ``low``..``high``,
        ``delta`` (median of the differences) and ``best`` (best traced over best plain, minus 1).
    """
    ratios = [a / b - 1 for a, b in zip(traced, plain, strict=True)]
    low, high = interval(ratios)
    deltas = [a - b for a, b in zip(traced, plain, strict=True)]
    return {
        "ratio": float(np.median(ratios)),
        "low": low,
        "high": high,
        "delta": float(np.median(deltas)),
        "best": min(traced) / min(plain) - 1,
        "best_delta": min(traced) - min(plain),
    }
