"""Layer 6: a phase of one run as samples: calls in order, their time and that of each operator.

Must not import rich or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from profinfer.analysis import latency
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

MOST = 512  # samples; in a longer run consecutive calls are taken together
DISTURBED = 0.05  # of the operators' thread time without a CPU that another process had
CALM = 0.25  # of the samples: with fewer undisturbed ones, the run is a disturbed one


@dataclass(frozen=True)
class Samples:
    """Calls of a phase, or graphs where a program makes no calls; in order of time.

    Attributes:
        owner: sample of each graph of the trace, -1 for none.
        owner_of_call: likewise of each call.
        tokens: of each sample.
        total: ns of each sample, without profinfer's own reading of graphs.
        position: of each sample in the KV cache, mean over its sequences; NaN if not known.
        of_tokens: tokens of the phase in the trace, those that are no samples included.
        torn: calls left out because operator records of them are missing.
        unsampled: tokens left out because operators were not recorded then, by intention.
    """

    owner: I64
    owner_of_call: I64
    tokens: F64
    total: F64
    position: F64
    of_tokens: int
    torn: int
    unsampled: int

    @property
    def n(self) -> int:
        """How many."""
        return len(self.tokens)

    @property
    def n_tokens(self) -> int:
        """Tokens of all samples."""
        return round(float(self.tokens.sum()))


def take(trace: Trace, selection: Selection) -> Samples:
    """The calls of a selection, or its graphs where it has no calls."""
    graphs = trace.graphs
    whole = graphs["complete"].to_numpy()
    parent = graphs["call_id"].to_numpy()
    walk = graphs["walk_ns"].to_numpy()
    if not len(trace.calls):
        kept = selection.graphs & whole
        spent = (graphs["end_ns"] - graphs["begin_ns"]).to_numpy()[kept]
        ones = np.ones(len(spent))
        unknown = np.full(len(spent), np.nan)
        torn = int((selection.graphs & ~whole).sum())
        return Samples(_numbered(kept), _numbered(selection.calls), ones, spent.astype(float),
                       unknown, selection.n_graphs, torn, 0)  # fmt: skip
    calls = trace.calls
    kept = selection.calls & (calls["n_tokens"].to_numpy() > 0)
    asked = int(kept.sum())
    kept &= ~calls["torn"].to_numpy()
    if len(trace.ops):
        kept = kept.copy()
        kept[parent[~whole & (parent >= 0)]] = False
    row = np.r_[_numbered(kept), -1]
    reading = np.zeros(len(calls))
    np.add.at(reading, parent[parent >= 0], walk[parent >= 0])
    total = latency.call_times(trace) - reading
    seqs = trace.sequences
    place = seqs["pos_first"].astype(float).where(seqs["pos_first"] >= 0)
    mean = place.groupby(seqs["call_id"]).mean().reindex(range(len(calls)))
    position = np.asarray(mean, float)
    return Samples(
        owner=np.where(selection.graphs, row[parent], -1),
        owner_of_call=row[:-1],
        tokens=calls["n_tokens"].to_numpy()[kept].astype(float),
        total=total[kept],
        position=position[kept],
        of_tokens=selection.of_tokens,
        torn=asked - int(kept.sum()),
        unsampled=selection.of_tokens - selection.n_tokens,
    )


def _numbered(kept: Mask) -> I64:
    """0, 1, 2, ... where kept, -1 elsewhere."""
    return np.where(kept, np.cumsum(kept) - 1, -1)


def inside(samples: Samples, low: float, high: float) -> Samples:
    """Those at positions in [low, high]."""
    return _some(samples, (samples.position >= low) & (samples.position <= high))


def _some(samples: Samples, kept: Mask) -> Samples:
    return replace(
        samples,
        owner=np.r_[_numbered(kept), -1][samples.owner],
        owner_of_call=np.r_[_numbered(kept), -1][samples.owner_of_call],
        tokens=samples.tokens[kept],
        total=samples.total[kept],
        position=samples.position[kept],
    )


def calm(trace: Trace, samples: Samples) -> tuple[Samples, bool]:
    """Samples during which no other process had the CPUs of the operators' threads.

    Returns:
        Them, and True; or all of them and False, if hardly any are left.
    """
    ops, n = trace.ops, samples.n
    of = samples.owner[ops["graph_id"].to_numpy()]
    at = np.flatnonzero(of >= 0)
    spent = (ops["release_ns"].to_numpy() - ops["begin_ns"].to_numpy())[at]
    behind = trace.disturbed.values_at(at, "behind_other")
    whole, lost = (np.bincount(of[at], values, n) for values in (spent, behind))
    kept = np.asarray(lost <= DISTURBED * whole, bool)
    if kept.sum() < max(CALM * n, 1):
        return samples, False
    return _some(samples, kept), True


def thinned(samples: Samples) -> Samples:
    """At most ``MOST`` samples: consecutive calls added up."""
    step = -(-samples.n // MOST)
    if step <= 1:
        return samples
    group = np.arange(samples.n) // step
    n = int(group[-1]) + 1
    return replace(
        samples,
        owner=np.r_[group, -1][samples.owner],
        owner_of_call=np.r_[group, -1][samples.owner_of_call],
        tokens=np.bincount(group, samples.tokens, n).astype(float),
        total=np.bincount(group, samples.total, n).astype(float),
        position=np.bincount(group, samples.position, n) / np.bincount(group, minlength=n),
    )
