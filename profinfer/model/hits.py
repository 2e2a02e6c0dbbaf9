"""Layer 5: what the kernel counted of its own work: hits of probes, time spent on thread states.

Must not import the analyses or above.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from profinfer.tracefile.reader import TraceReader
from profinfer.tracefile.schema import (
    CNT_OP_PASSED,
    CNT_OP_RECORDS,
    CNT_SCHED_NS,
    CNT_SENT,
    Kind,
)


def _counter(reader: TraceReader, slot: int) -> int:
    counters = reader.counters
    return counters[slot] if slot < len(counters) else 0


def hits_passed(reader: TraceReader) -> int:
    """Hits of the operators' probes that were asked to leave no record, all threads."""
    return _counter(reader, CNT_OP_PASSED)


def hits(reader: TraceReader) -> int:
    """Hits of the operators' probes, ENTER and LEAVE among them, all threads."""
    return _counter(reader, CNT_OP_RECORDS) + hits_passed(reader)


def sched_records(reader: TraceReader) -> tuple[npt.NDArray[np.int64], float]:
    """When records of thread states were made, in order, and ns that one took; 0: not known."""
    seen = np.sort(reader.fixed(Kind.SCHED).rows["ts"].astype(np.int64))
    made = max(_counter(reader, CNT_SENT + Kind.SCHED), len(seen), 1)
    return seen, _counter(reader, CNT_SCHED_NS) / made
