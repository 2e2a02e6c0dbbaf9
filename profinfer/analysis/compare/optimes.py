"""Layer 6: operators' times of each sample, those that other backends computed included.

Must not import rich or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.analysis.compare.samples import Samples
from profinfer.model.trace import Trace

F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class OperatorTimes:
    """ns of each sample and unit, shape (samples, units): wall, and mean compute and wait.

    ``removed`` is what was taken from the operators of each sample, ns, shape (samples,).
    """

    wall: F64
    compute: F64
    wait: F64
    removed: F64


def operator_times(
    trace: Trace, samples: Samples, unit: I64, n_units: int, probe_ns: int
) -> OperatorTimes:
    """Sum the operators.

    Args:
        trace: the run.
        samples: of it.
        unit: of each node_id, -1 for none.
        n_units: how many units there are.
        probe_ns: taken from each operator's time, which does not become negative by it.
    """
    walls = trace.op_walls
    of = samples.owner[walls["graph_id"].to_numpy()]
    node = walls["node_id"].to_numpy()
    at = np.flatnonzero((of >= 0) & (unit[node] >= 0))
    flat = of[at] * n_units + unit[node[at]]
    threads = walls["threads"].to_numpy()[at].clip(min=1)
    size = samples.n * n_units

    def summed(values: F64) -> F64:
        sums = np.bincount(flat, values, size).astype(float)
        return sums.reshape(samples.n, n_units)

    others = _computed(trace, samples, unit, n_units)

    wall = (walls["release_ns"].to_numpy()[at] - walls["begin_ns"].to_numpy()[at]).astype(float)
    compute = walls["compute_sum"].to_numpy()[at] / threads
    wait = walls["wait_sum"].to_numpy()[at] / threads
    less = np.minimum(wall, probe_ns)
    compute = np.maximum(compute - probe_ns, 0.0)
    removed = np.bincount(of[at], less, samples.n).astype(float)
    return OperatorTimes(
        summed(wall - less) + others, summed(compute) + others, summed(wait), removed
    )


def others_ops(trace: Trace, samples: Samples) -> tuple[pd.DataFrame, I64]:
    """Operators that other backends computed on the host, and the sample of each."""
    ops = trace.backend_ops
    ops = ops[(ops["how"] == "computed").to_numpy()]
    of = _sample_of(trace, samples, ops["split_id"].to_numpy())
    return ops[of >= 0], of[of >= 0]


def away(trace: Trace, samples: Samples) -> Mask:
    """Which nodes other backends ran whose operators have no times: those of their splits."""
    splits, nodes = trace.splits, trace.nodes
    mine = _sample_of(trace, samples, splits["split_id"].to_numpy()) >= 0
    theirs = nodes["def_id"].isin(splits["def_id"][mine & (splits["def_id"] >= 0).to_numpy()])
    out: Mask = theirs.to_numpy() & ~nodes["empty"].to_numpy()
    out[others_ops(trace, samples)[0]["node_id"].to_numpy()] = False
    return out


def _sample_of(trace: Trace, samples: Samples, split: I64) -> I64:
    """Sample of each split, -1 for none."""
    call = trace.splits["call_id"].to_numpy()[split]
    return np.asarray(np.r_[samples.owner_of_call, -1][call], np.int64)


def _computed(trace: Trace, samples: Samples, unit: I64, n_units: int) -> F64:
    """Time of the operators that other backends computed, ns, shape (samples, units)."""
    ops, of = others_ops(trace, samples)
    spent = (ops["end_ns"] - ops["begin_ns"]).to_numpy()
    at = unit[ops["node_id"].to_numpy()]
    flat = (of * n_units + at)[at >= 0]
    sums = np.bincount(flat, spent[at >= 0], samples.n * n_units).astype(float)
    return sums.reshape(samples.n, n_units)
