"""Layer 5: the records of a trace file as arrays, one set per kind, in stream order.

Owns nothing but the hand-over from the reader. Must not import pandas or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from profinfer.tracefile.reader import TraceReader
from profinfer.tracefile.schema import OPS, Kind

Rows = npt.NDArray[np.void]
I64 = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Records:
    """Every record of a trace but the operators' own clocks is used as the kernel wrote it.

    Attributes:
        rows: structured rows per kind, in stream order.
        order: place of each row in the stream, per kind.
        tensors: TENSOR rows with their ``raw`` bytes.
        buffers: BUFFER rows with their ``raw`` bytes.
        copies: COPY_BEGIN rows with the ``raw`` bytes of their tensor.
        batches: ``schema.OPS`` rows, thread by thread, each thread's in stream order.
        ops: ``schema.OP`` rows, the operator records of all batches end to end.
        first_ns: earliest time of any record, 0 without records.
        last_ns: latest time of any record.
    """

    rows: dict[Kind, Rows]
    order: dict[Kind, I64]
    tensors: Rows
    buffers: Rows
    copies: Rows
    batches: Rows
    ops: Rows
    first_ns: int
    last_ns: int


_FIXED = (
    Kind.CALL_BEGIN,
    Kind.CALL_END,
    Kind.SAMPLE_BEGIN,
    Kind.SAMPLE_END,
    Kind.SPLIT_BEGIN,
    Kind.SPLIT_END,
    Kind.GRAPH_BEGIN,
    Kind.GRAPH_END,
    Kind.PTRS,
    Kind.THREAD,
    Kind.WARMUP,
    Kind.SEQS,
    Kind.FAULT,
    Kind.READ,
    Kind.SYNC_BEGIN,
    Kind.WORK_BEGIN,
    Kind.BACKEND_END,
    Kind.REQUEST,
)


def decode(reader: TraceReader, since_ns: int | None = None) -> Records:
    """Take every record out of ``reader``.

    Args:
        reader: the open file.
        since_ns: when the recording of a running process began. A graph whose nodes were being
            read at that moment began before, and what was read of it is not whole: its begin is
            left out.
    """
    rows: dict[Kind, Rows] = {}
    order: dict[Kind, I64] = {}
    for kind in _FIXED:
        order[kind], rows[kind] = reader.fixed(kind)
    if since_ns is not None:
        graphs = rows[Kind.GRAPH_BEGIN]
        later = int64(graphs["ts"]) - int64(graphs["walk_ns"]) >= since_ns
        rows[Kind.GRAPH_BEGIN] = graphs[later]
        order[Kind.GRAPH_BEGIN] = order[Kind.GRAPH_BEGIN][later]
    order[Kind.TENSOR], tensors = reader.tensors()
    order[Kind.BUFFER], buffers = reader.buffers()
    ops = reader.ops(by_thread=True)
    order[Kind.OPS] = ops.order
    batches = ops.batches.copy()
    batches["n"] = ops.counts
    # Faults and reads are of the whole process, also of what it did before and after inference.
    index = reader.records()
    times = index.ts[~np.isin(index.kind, (Kind.FAULT, Kind.READ))]
    last = int(times.max()) if len(times) else 0
    if len(ops.ops):
        ends = (np.cumsum(ops.counts) - 1)[ops.counts > 0]
        tail = batches["ts"][ops.counts > 0].astype(np.int64) + ops.ops["dt"][ends]
        last = max(last, int(tail.max()))
    return Records(
        rows=rows,
        order=order,
        tensors=tensors,
        buffers=buffers,
        copies=reader.copies().rows,
        batches=batches if len(batches) else np.zeros(0, OPS),
        ops=ops.ops,
        first_ns=int(times.min()) if len(times) else 0,
        last_ns=last,
    )


def int64(values: npt.NDArray[Any]) -> I64:
    """Unsigned times and ids as int64, which all arithmetic of the model uses."""
    return values.astype(np.int64)
