"""Layer 6: how often each expert is chosen, how evenly, and after how long again.

Owns the numbers of one layer's experts; ``experts`` makes tables of them. Vectorised over passes
and experts, with a loop over layers. Must not import rich or anything above.

Words: a *pass* is one graph's way through a layer; an *access* is an expert that a pass needs,
once, for whichever number of tokens. The engine takes the experts of a pass in the order of their
numbers (``ggml_compute_forward_mul_mat_id``), so accesses have an order in time.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.model.trace import Trace

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

FIRST = -1  # gap and distance of an expert that was not needed before
_CELLS = 1 << 22  # of one matrix


@dataclass(frozen=True)
class Spread:
    """How a layer's choices spread over its experts.

    Attributes:
        used: experts that were chosen at all.
        entropy: of the choices, bits: -sum f log2 f, f = choices of an expert / all (Shannon 1948).
        evenness: entropy / log2(experts), 1 if all are chosen alike (Pielou 1966).
        busiest: most choices / mean choices; minus 1 it is MaxVio of Wang et al. 2024
            (arXiv 2408.15664).
        variation: standard deviation / mean of the choices; its square is the importance loss of
            Shazeer et al. 2017 (arXiv 1701.06538).
        half: least number of experts that get half of the choices.
        most: the same for 90 %.
        excess: how far chance alone is from it: (chi2 - d) / sqrt(2 d) against equal choices,
            d = experts - 1; large: no accident.
    """

    used: int
    entropy: float
    evenness: float
    busiest: float
    variation: float
    half: int
    most: int
    excess: float


def spread(choices: I64) -> Spread:
    """The spread of the choices of one layer's experts, shape (experts,)."""
    n, total = len(choices), int(choices.sum())
    if not total:
        return Spread(0, np.nan, np.nan, np.nan, np.nan, 0, 0, np.nan)
    part = choices[choices > 0] / total
    entropy = float(-(part * np.log2(part)).sum()) + 0.0
    mean = total / n
    chi2 = float(((choices - mean) ** 2).sum() / mean)
    freedom = max(n - 1, 1)
    return Spread(
        used=int((choices > 0).sum()),
        entropy=entropy,
        evenness=entropy / np.log2(n) if n > 1 else 1.0,
        busiest=float(choices.max() / mean),
        variation=float(choices.std() / mean),
        half=covering(choices, 0.5),
        most=covering(choices, 0.9),
        excess=(chi2 - freedom) / float(np.sqrt(2 * freedom)),
    )


def covering(choices: I64, share: float) -> int:
    """Least number of experts that get at least this share of the choices."""
    most_first = np.cumsum(np.sort(choices)[::-1])
    return int(np.searchsorted(most_first, share * most_first[-1] - 1e-9)) + 1


_kept: WeakKeyDictionary[Trace, pd.DataFrame] = WeakKeyDictionary()


def accesses(trace: Trace) -> pd.DataFrame:
    """One row per pass and expert that it needs, of the whole recording, in order of time.

    Columns: ``graph_id``, ``layer``, ``expert``, ``tokens`` that go to it, ``gap`` (passes since
    the one that needed it before; 1 is the pass before), ``distance`` (other experts of the layer
    needed since then: the LRU stack distance of Mattson et al. 1970). Both are FIRST where it was
    not needed before.
    """
    if trace not in _kept:
        _kept[trace] = _accesses(trace)
    return _kept[trace]


def _accesses(trace: Trace) -> pd.DataFrame:
    table = trace.experts
    keys = ["layer", "graph_id", "expert"]
    begin = trace.graphs["begin_ns"].to_numpy()
    order = np.empty(len(begin), np.int64)
    order[np.argsort(begin, kind="stable")] = np.arange(len(begin))
    out = table.groupby(keys, sort=False).size().rename("tokens").reset_index()
    out["at"] = order[out["graph_id"].to_numpy()]
    out = out.sort_values(["layer", "at", "expert"], kind="stable", ignore_index=True)
    gap, distance = np.full(len(out), FIRST, np.int64), np.full(len(out), FIRST, np.int64)
    layer = out["layer"].to_numpy()
    edges = np.flatnonzero(np.r_[True, layer[1:] != layer[:-1], True]) if len(out) else [0]
    for a, b in pairwise(edges):
        step = np.unique(out["at"].to_numpy()[a:b], return_inverse=True)[1]
        gap[a:b], distance[a:b] = distances(step, out["expert"].to_numpy(np.int64)[a:b])
    out["gap"], out["distance"] = gap, distance
    return out.drop(columns="at")


def distances(step: I64, expert: I64) -> tuple[I64, I64]:
    """Gap and stack distance of one layer's accesses.

    Args:
        step: number of each access' pass, 0, 1, 2, ..., ascending, shape (n,).
        expert: its expert, ascending within a pass, shape (n,).
    """
    n, wide = len(step), int(expert.max(initial=0)) + 1
    gap, distance = np.full(n, FIRST, np.int64), np.full(n, FIRST, np.int64)
    # When each expert was needed last: pass * experts + expert, which orders accesses in time.
    before: I64 = np.full(wide, FIRST, np.int64)
    every = np.arange(wide)
    count = max(1, _CELLS // wide)
    for a in range(0, int(step.max(initial=-1)) + 1, count):
        i, j = np.searchsorted(step, [a, a + count])
        row, mine = step[i:j] - a, expert[i:j]
        now = np.full((int(row.max(initial=-1)) + 2, wide), FIRST, np.int64)
        now[0] = before
        now[row + 1, mine] = step[i:j] * wide + mine
        last = np.maximum.accumulate(now, axis=0)
        before = last[-1]
        for k in range(i, j, count):
            part = slice(k, min(k + count, j))
            at, which = step[part] - a, expert[part]
            # Of smaller numbers the same pass counts, of larger ones the passes before.
            seen = np.where(every < which[:, None], last[at + 1], last[at])
            own = last[at, which]
            new = own == FIRST
            gap[part] = np.where(new, FIRST, step[part] - own // wide)
            distance[part] = np.where(new, FIRST, (seen > own[:, None]).sum(axis=1))
    return gap, distance
