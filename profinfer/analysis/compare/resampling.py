"""Layer 6: a run's time per token, without its disturbed calls, and how sure it is within the run.

Must not import rich or anything above.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

TRIM = 0.25  # of the samples left out at each end, by their time per token
DRAWS = 200


def kept(per_token: F64) -> I64:
    """Samples in the middle: a quarter of the slowest and of the fastest are left out.

    The mean over them is the interquartile mean of the whole; since all operators are averaged over
    the same samples, their means add up to it.

    Args:
        per_token: time per token of each sample.
    """
    cut = int(len(per_token) * TRIM)
    order = np.argsort(per_token, kind="stable")
    return np.sort(order[cut : len(order) - cut])


def draws(per_token: F64, n: int = DRAWS) -> F64:
    """How often each sample is kept in each of ``n`` resamples, shape (n, samples).

    The circular block bootstrap (Politis & Romano 1992) with blocks of the cube root of the number
    of samples (the rate of Hall, Horowitz & Jing 1995): consecutive tokens are disturbed together,
    and a bootstrap of single tokens would take that for more evidence than it is. Each resample
    is trimmed anew. The same numbers every time.
    """
    count = len(per_token)
    if count < 2:
        return np.ones((n, count))
    length = max(1, round(count ** (1 / 3)))
    rng = np.random.default_rng(0)
    starts = rng.integers(0, count, (n, -(-count // length)))
    drawn = (starts[:, :, None] + np.arange(length)) % count
    drawn = drawn.reshape(n, -1)[:, :count]
    order = np.argsort(per_token[drawn], axis=1, kind="stable")
    cut = int(count * TRIM)
    middle = np.take_along_axis(drawn, order[:, cut : count - cut], axis=1)
    flat = (np.arange(n)[:, None] * count + middle).ravel()
    return np.bincount(flat, minlength=n * count).reshape(n, count).astype(float)
