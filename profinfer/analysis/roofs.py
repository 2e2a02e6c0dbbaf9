"""Layer 6: a calibration as a Result, and the calibration that belongs to a trace.

Must not import rich or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from profinfer.analysis.result import Column, Note, Result
from profinfer.machine import store
from profinfer.machine.roofs import BadCalibration, Calibration, Machine
from profinfer.model.trace import Trace

COLUMNS = (
    Column("threads", "threads", "count", "Threads that did it together."),
    Column("read", "read", "bytes_per_s", "Bytes a second read from memory: the memory roof."),
    Column("triad", "triad", "bytes_per_s", "Bytes a second of a[i] = b[i] + s c[i] (STREAM)."),
    Column("fp32", "FP32", "flop_per_s", "32-bit multiply-adds, 2 operations each: the roof."),
    Column("int8", "int8", "flop_per_s", "8-bit dot products, 2 operations a pair of numbers."),
    Column("ridge", "ridge", "flop_per_byte", "FP32 / read: with less a byte, memory is the roof."),
    Column("spread", "spread", "ratio", "Largest (90th - 10th percentile) / median of the four."),
    Column("medians", "medians", "text", "Medians of the repeats.", detail=True),
)


def table(calibration: Calibration) -> Result:
    """One row per number of threads, with what is to be doubted as notes."""
    rows, notes = [], []
    for threads in calibration.threads:
        found = {r.kind: r for r in calibration.roofs if r.threads == threads}
        read, fp32 = found["read"], found["fp32"]
        rows.append(
            {
                "threads": threads,
                **{k: found[k].best if k in found else None for k in ("read", "triad", "fp32")},
                "int8": found["int8"].best if "int8" in found else None,
                "ridge": fp32.best / read.best,
                "spread": max(r.spread for r in found.values()),
                "medians": " ".join(f"{k} {r.median / 1e9:.1f}" for k, r in found.items()),
            }
        )
        for roof in found.values():
            if roof.doubt:
                s = "" if threads == 1 else "s"
                notes.append(Note("warning", f"{roof.kind}, {threads} thread{s}: {roof.doubt}"))
    notes.append(Note("info", f"best of the repeats; {calibration.method}"))
    frame = pd.DataFrame(rows, columns=[c.name for c in COLUMNS])
    scope = f"{calibration.machine.key}, {calibration.created_utc[:10]}"
    return Result("calibration", "Roofs", scope, COLUMNS, frame, tuple(notes))


@dataclass(frozen=True)
class Found:
    """The calibration of a trace's machine.

    Attributes:
        calibration: None if there is none.
        source: "trace" or "machine": where it was found; else what to do, one line.
    """

    calibration: Calibration | None
    source: str


def of_trace(trace: Trace) -> Found:
    """The calibration that the trace carries, else the one kept here for the same machine."""
    host = trace.meta.host
    machine = Machine(host.cpu_model, host.cpus_online, host.memory_bytes)
    if trace.meta.calibration:
        try:
            carried = Calibration.from_json(trace.meta.calibration)
        except BadCalibration:
            carried = None
        if carried and carried.machine.key == machine.key:
            return Found(carried, "trace")
    kept = store.load(machine)
    if kept:
        return Found(kept, "machine")
    others = store.others(machine)
    if others:
        return Found(
            None,
            f"no roofs: recorded on {machine.key}, calibrated here is {others[0]}; run "
            "profinfer calibrate there and record again",
        )
    return Found(None, f"no roofs of {machine.key}: profinfer calibrate, run there, measures them")
