"""Layer 6: page faults and disk reads: when, on which tensors, and what they cost.

Owns the tables of ``report --faults``. Must not import rich or anything above.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.analysis import memoryfindings, notes
from profinfer.analysis.finding import as_notes
from profinfer.analysis.memoryevents import Events, events, with_rest
from profinfer.analysis.memorygroups import groups
from profinfer.analysis.result import Column, Note, Result, Unit
from profinfer.model.trace import Trace
from profinfer.units import format_ns

KEYS = ("role", "layer", "tensor", "op", "node")
OTHER, _FILES = "(other memory)", "(other files)"
_READINGS = 12  # rows of memory over time when a person reads it
_COUNTS = (
    Column("faults", "faults", "count", "Page faults; one maps up to 64 KiB of a file."),
    Column("majors", "major", "count", "Those that had to read, or to wait for a read."),
    Column("held_ns", "held up", "ns", "Time of threads inside faults, summed over threads."),
    Column("read", "read", "bytes", "Bytes that the target made disks read."),
)
_SIZES = (
    Column("size", "size", "bytes", "Bytes of the tensors."),
    Column("of_size", "of size", "ratio", "Bytes read / bytes of the tensors."),
)


def overview(trace: Trace) -> Result:
    """One row: sizes, faults and reads of the whole recording."""
    told = events(trace)
    sizes, residents, memory = trace.residence, trace.residents, trace.meta.memory
    peak = sizes.iloc[int(sizes["rss"].to_numpy().argmax())] if len(sizes) else None
    weights = residents.tensors[residents.tensors["kind"] == "weight"]
    kv = residents.tensors[residents.tensors["kind"] == "kv"]
    majors = told.faults[told.faults["major"]]

    def column(name: str, title: str, unit: Unit, what: str) -> Column:
        return Column(name, title, unit, what)

    fields: list[tuple[Column, Any]] = [
        (column("rss_peak", "RSS peak", "bytes", "Most memory resident at a reading of /proc."),
         _int(peak, "rss")),
        (column("rss_anon", "of it own", "bytes", "Anonymous memory then."), _int(peak, "anon")),
        (column("rss_file", "of files", "bytes", "Mapped files and shared memory then."),
         _int(peak, "file")),
        (column("limit", "limit", "bytes", "Lowest memory limit of the target's cgroups."),
         memory.get("limit_bytes")),
        (column("weights", "weights", "bytes", "All weights that graphs read."),
         int(weights["size"].sum()) if len(weights) else None),
        (column("kv", "KV cache", "bytes", "The KV cache as it was allocated."),
         int(kv["size"].sum()) if len(kv) else None),
        (column("faults", "faults", "count", "Page faults, those of system calls left out."),
         int(told.faults["faults"].sum())),
        (column("majors", "major", "count", "Major ones."), len(majors)),
        (column("held_ns", "held up", "ns", "Time of threads inside faults, summed."),
         int(told.faults["held_ns"].sum())),
        (column("read", "read", "bytes", "Bytes that the target made disks read."),
         int(told.reads["bytes"].sum()) if _has_reads(trace) else None),
    ]  # fmt: skip
    columns = tuple(c for c, _ in fields)
    frame = pd.DataFrame([[v for _, v in fields]], columns=[c.name for c in columns], dtype=object)
    found = [*as_notes(memoryfindings.findings(trace))]
    if not _has_reads(trace):
        why = memory.get("reads", {}).get("why")
        found.append(Note("info", f"disk reads were not recorded: {why}"))
    found += _held_operators(trace, told)
    extra = (*found, *notes.losses(trace))
    return Result("faults", "Memory", "the whole recording", columns, frame, extra, layout="record")


def by_when(trace: Trace) -> Result:
    """One row a phase, in order of time."""
    told = events(trace)
    keys = pd.unique(np.r_[told.faults["when"].to_numpy(), told.reads["when"].to_numpy()])
    sums = _sums(told, "when").reindex(keys, fill_value=0)
    first = told.faults.groupby("when")["ts_ns"].min()
    reads = told.reads.groupby("when")["ts_ns"].agg(["min", "max"])
    span = (reads["max"] - reads["min"]).reindex(keys)
    sums["span_ns"] = span.to_numpy()
    sums["rate"] = sums["read"] * 1e9 / span.where(span > 0)
    order = first.reindex(keys).fillna(reads["min"].reindex(keys)).argsort(kind="stable")
    frame = sums.iloc[order.to_numpy()].rename_axis("when").reset_index()
    columns = (
        Column("when", "when", "text", "Before the first call, inside calls by phase, between."),
        *_COUNTS,
        Column("span_ns", "within", "ns", "From the first read to the last one."),
        Column("rate", "rate", "bytes_per_s", "Bytes read / time from the first to the last read."),
    )
    return _table("faults_when", "Faults and reads", "the whole recording", columns, frame)


def by(trace: Trace, key: str, phase: str | None, top: int | None) -> Result:
    """One row a role, layer or tensor that was hit, or an operator or node that was held up.

    Args:
        trace: what was recorded.
        key: one of ``KEYS``.
        phase: only calls of this phase, or ``loading``; None for the whole recording.
        top: rows, the most read or the longest held up first; None for all.
    """
    told = events(trace, phase)
    if key in ("op", "node"):
        names = trace.nodes["op" if key == "op" else "name"].astype(str).to_numpy(dtype=object)
        label: npt.NDArray[np.object_] = np.array([*names, "(no operator)"], dtype=object)
        faults, reads = told.faults, told.reads
        faults = faults.assign(key=label[faults["node_id"].to_numpy()])
        reads = reads.assign(key=label[reads["node_id"].to_numpy()])
        sums = _sums(Events(faults, reads, told.parts), "key")
        sizes: tuple[Column, ...] = ()
    else:
        known = groups(trace, key)
        faults = told.faults.assign(
            key=known.label(told.faults).fillna(told.faults["file"].map(_file_label))
        )
        parts = with_rest(told).assign(key=lambda t: known.label(t))
        parts["key"] = parts["key"].fillna(parts["file"].map(_file_label).replace(OTHER, _FILES))
        sums = _sums(Events(faults, parts, parts), "key")
        sums["size"] = known.sizes.reindex(sums.index).to_numpy()
        sums["of_size"] = sums["read"] / sums["size"]
        sizes = _SIZES
    frame = sums.rename_axis(key).reset_index()
    order = ["held_ns", "read"] if key in ("op", "node") else ["read", "held_ns"]
    frame = frame.sort_values(order, ascending=False, kind="stable")
    if key == "layer":
        number = pd.to_numeric(frame["layer"], errors="coerce").fillna(1 << 30)
        frame = frame.iloc[number.argsort(kind="stable")]
    rows = len(frame)
    frame = frame.head(top) if top else frame
    title = Column(key, "operator" if key == "op" else key, "text", "What was hit or held up.")
    extra = (Note("info", f"{len(frame)} of {rows:,}; more: --top N"),) if len(frame) < rows else ()
    name = "Held up" if key in ("op", "node") else "Faults and reads"
    scope = phase or "the whole recording"
    columns = (title, *_COUNTS, *sizes)
    return _table(f"faults_by_{key}", f"{name} by {key}", scope, columns, frame, extra)


def over_time(trace: Trace, rows: int | None = _READINGS) -> Result:
    """Sizes of the target's memory, from its first reading on."""
    sizes = trace.residence
    if rows and len(sizes) > rows:
        sizes = sizes.iloc[np.unique(np.linspace(0, len(sizes) - 1, rows).astype(int))]
    start = int(sizes["ts_ns"].iloc[0]) if len(sizes) else 0
    frame = sizes.assign(at_ns=sizes["ts_ns"] - start).replace(-1, pd.NA)
    columns = (
        Column("at_ns", "after", "ns", "Time since the first reading."),
        Column("rss", "RSS", "bytes", "Resident memory."),
        Column("anon", "own", "bytes", "Of it anonymous."),
        Column("file", "of files", "bytes", "Of it mapped files and shared memory."),
        Column("read", "read", "bytes", "Read from disks so far, by /proc."),
        Column("minor", "minor", "count", "Minor faults so far, those of system calls included."),
        Column("major", "major", "count", "Major faults so far, likewise."),
    )
    return _table("residence", "Memory over time", "the whole recording", columns, frame)


def _table(
    name: str, title: str, scope: str, columns: tuple[Column, ...], frame: pd.DataFrame,
    extra: tuple[Note, ...] = (),
) -> Result:  # fmt: skip
    frame = frame[[c.name for c in columns]].reset_index(drop=True)
    return Result(name, title, scope, columns, frame, extra)


def _sums(told: Events, key: str) -> pd.DataFrame:
    """Faults, majors, time held up and bytes read of each group."""
    majors = told.faults["faults"].where(told.faults["major"], 0)
    faults = told.faults.assign(majors=majors).groupby(key)[["faults", "majors", "held_ns"]].sum()
    read = told.reads.groupby(key)["bytes"].sum().rename("read")
    return pd.concat([faults, read], axis=1).fillna(0).astype(np.int64)


def _file_label(path: str) -> str:
    return f"({path.rpartition('/')[2]})" if path else OTHER


def _held_operators(trace: Trace, told: Events) -> list[Note]:
    """How long operators with a major fault took, against the same ones without."""
    hit = told.faults[told.faults["major"] & (told.faults["node_id"] >= 0)]
    if not len(hit):
        return []
    walls = trace.op_walls
    took = (walls["release_ns"] - walls["begin_ns"]).to_numpy()
    name = trace.nodes["name"].astype(str).to_numpy(dtype=object)[walls["node_id"].to_numpy()]
    pair = pd.MultiIndex.from_frame(walls[["graph_id", "node_id"]])
    slow = pair.isin(pd.MultiIndex.from_frame(hit[["graph_id", "node_id"]]))
    same = ~slow & np.isin(name.astype(str), np.unique(name[slow].astype(str)))
    if not slow.any() or not same.any():
        return []
    text = f"operators with a major fault: {int(slow.sum()):,}, {format_ns(took[slow].mean())} each"
    text += f"; the same ones without: {format_ns(float(np.median(took[same])))} (median)"
    return [Note("info", text)]


def _has_reads(trace: Trace) -> bool:
    return trace.meta.memory.get("reads", {}).get("recorded") is True


def _int(row: Any, name: str) -> int | None:
    return None if row is None else int(row[name])
