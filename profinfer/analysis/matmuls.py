"""Layer 6: matrix products over their size: what is static (weights) and what grows (attention).

Owns the table of ``report --by matmul``. Must not import rich or anything above.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.analysis import notes, shapes
from profinfer.analysis.result import Column, Note, Result
from profinfer.analysis.robust import theil_sen
from profinfer.analysis.work import MATMUL, executed
from profinfer.model.operands import WEIGHT
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace

# The fused one computes two products over the KV cache.
PRODUCTS = (*MATMUL, "FLASH_ATTN_EXT")
STATIC, DYNAMIC = "static", "dynamic"
POINTS_MIN = 4  # sizes below which no exponent is given

COLUMNS = (
    Column("role", "role", "text", "Part that the product plays in the transformer."),
    Column("op", "operator", "text", "Operator type.", detail=True),
    Column("problem", "shape", "text", "MxKxN; of attention its output and the KV cells read."),
    Column("types", "type", "text", "Type of the weights, else of the output.", detail=True),
    Column("kind", "kind", "text", "static: weights; dynamic: both factors are computed."),
    Column("macs", "MNKH", "count", "Multiplications of one execution: M x N x K x heads."),
    Column("moved", "bytes", "bytes", "Least bytes that one execution reads and writes."),
    Column("calls", "calls", "count", "How often it ran."),
    Column("median_ns", "median", "ns", "Time of one execution, median.", like="each"),
    Column("mean_ns", "mean", "ns", "Likewise, mean.", like="each", detail=True),
    Column("flop_per_s", "rate", "flop_per_s", "2 x multiplications / median time."),
    Column("wall_ns", "time", "ns", "Time of all executions.", detail=True),
)


def matmuls(trace: Trace, selection: Selection, top: int | None = None) -> Result:
    """One row per role, size and type of matrix product, largest first."""
    nodes = shapes.with_problem(trace.nodes)
    work, sums, operands = executed(trace, selection), trace.sums(selection), trace.operands
    at = operands.of_node
    weights = (operands.kind == WEIGHT).any(axis=1) if operands.kind.size else np.zeros(0, bool)
    static = np.r_[weights, False][at]
    # A fused operator did more than its product; its time is no measure of it.
    use = nodes["op"].isin(PRODUCTS).to_numpy() & (sums.calls > 0) & (sums.covered == 0)
    keys = ["role", "op", "problem", "types", "kind"]
    frame = pd.DataFrame({
        "role": nodes["role"].astype(str),
        "op": nodes["op"].astype(str),
        "problem": nodes["problem"].astype(str),
        "types": nodes["types"],
        "kind": np.where(static, STATIC, DYNAMIC),
        "macs": work.flops / 2,
        "moved": work.moved,
        "calls": sums.calls,
        "wall_ns": sums.wall,
    })[use].dropna()  # fmt: skip
    out = frame.groupby(keys, sort=True).sum().reset_index()
    out["macs"] = (out["macs"] / out["calls"]).round()
    out["moved"] = (out["moved"] / out["calls"]).round()
    out["mean_ns"] = out["wall_ns"] / out["calls"]
    out["median_ns"] = medians(trace, selection, frame[keys], out[keys])
    out["flop_per_s"] = 2e9 * out["macs"] / out["median_ns"].where(out["median_ns"] > 0)
    out = out.sort_values(["macs", "wall_ns"], ascending=False, kind="stable")
    extra = _exponents(out)
    skipped = int((nodes["op"].isin(PRODUCTS).to_numpy() & (sums.covered > 0)).sum())
    if skipped:
        extra.append(Note("info", f"{skipped:,} fused products are left out"))
    rows = len(out)
    out = out.head(top) if top else out
    return Result(
        "matmuls",
        "Matrix products by size",
        selection.description,
        COLUMNS,
        out[[c.name for c in COLUMNS]].reset_index(drop=True),
        (
            *notes.of(trace, selection),
            *notes.elsewhere(trace, selection),
            *extra,
            *notes.cut(len(out), rows, "largest"),
        ),
    )


def medians(
    trace: Trace, selection: Selection, nodes: pd.DataFrame, groups: pd.DataFrame
) -> npt.NDArray[np.float64]:
    """Median time of one execution in each group of nodes.

    Args:
        trace: what was recorded.
        selection: the part of it.
        nodes: keys of nodes, by node_id; others count to no group.
        groups: the same keys, one row a group.
    """
    index = pd.MultiIndex.from_frame(groups)
    code = np.full(len(trace.nodes), -1, np.int64)
    code[nodes.index.to_numpy()] = index.get_indexer(pd.MultiIndex.from_frame(nodes))
    walls = selection.rows(trace.op_walls)
    at = code[walls["node_id"].to_numpy()]
    length = (walls["release_ns"] - walls["begin_ns"])[at >= 0]
    middle = length.groupby(at[at >= 0]).median().reindex(range(len(groups)))
    return np.asarray(middle, np.float64)


def _exponents(out: pd.DataFrame) -> list[Note]:
    """How time goes with size: the slope of log time over log size, per kind."""
    said = []
    for kind, rows in out.groupby("kind", sort=False):
        known = rows[(rows["macs"] > 0) & (rows["median_ns"] > 0)]
        if known["macs"].nunique() < POINTS_MIN:
            continue
        size, took = (np.log10(known[c].to_numpy(np.float64)) for c in ("macs", "median_ns"))
        line = theil_sen(size, took)
        if line is None:
            continue
        text = f"{kind}: time goes with MNKH to the power of {line.slope:.2f}"
        if line.low <= 1 <= line.high:
            text += ", which is not told from proportional"
        said.append(Note("info", f"{text} ({len(known)} sizes)"))
    return said
