"""What a recording left behind: how much, how fast, and what it lost."""

from __future__ import annotations

from pathlib import Path

from profinfer.tracefile.reader import TraceReader
from profinfer.tracefile.schema import CNT_LOST, CNT_NO_SLOT, CNT_OP_LOST, CNT_OP_RECORDS


def written(path: Path, seconds: float) -> dict[str, float]:
    """Size, records and losses of a trace of a target that ran for so long."""
    trailer = TraceReader(path).trailer
    counters = trailer.counters if trailer else [0] * 40
    size, records = path.stat().st_size, counters[CNT_OP_RECORDS]
    lost = sum(counters[CNT_LOST : CNT_LOST + 16])
    return {
        "bytes": size,
        "op_records": records,
        "bytes_per_op_record": size / records if records else 0.0,
        "mb_per_s": size / seconds / 1e6,
        "op_records_per_s": records / seconds,
        "lost": lost + counters[CNT_OP_LOST] + counters[CNT_NO_SLOT],
    }
