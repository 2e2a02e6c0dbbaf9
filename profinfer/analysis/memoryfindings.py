"""Layer 6: what memory and disk did to a run, as sentences with numbers, and what to try.

Each says nothing in a run whose model lies in memory. Must not import rich or anything above.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from profinfer.analysis.finding import Finding, Number, Prize
from profinfer.analysis.scopes import Scope
from profinfer.model.memory import read_by_tensor
from profinfer.model.trace import Trace
from profinfer.units import format_byte_rate, format_bytes, format_ns, format_percent, format_things

# Below these a disturbance is not worth a line.
COLD_SHARE = 0.05  # of the weights or of a file, read from disk
AGAIN_SHARE = 0.10  # of the weights, read a second time


def findings(trace: Trace) -> list[Finding]:
    """Everything that is wrong, the dearest first."""
    if not trace.has_faults or not len(trace.calls):
        return []
    again, start = _evicted(trace), _cold_start(trace)
    if again is None:
        if start is not None:
            start = replace(start, text=f"{start.text}; a second start finds it in memory")
        again = _cold_weights(trace)
    return [f for f in (again, start) if f is not None]


def _weight_reads(trace: Trace) -> pd.DataFrame:
    """Parts of reads on weights, with the time and the graph of each read."""
    tensors = trace.residents.tensors
    parts = read_by_tensor(trace.reads, trace.residents)
    for column in ("ts_ns", "graph_id"):
        parts[column] = trace.reads[column].to_numpy()[parts["read"].to_numpy()]
    return parts[parts["tensor"].isin(tensors["name"][tensors["kind"] == "weight"])]


def _weight_bytes(trace: Trace) -> int:
    tensors = trace.residents.tensors
    return int(tensors["size"][tensors["kind"] == "weight"].sum())


def _model_file(trace: Trace) -> str:
    """The file that most weights are mapped from."""
    tensors = trace.residents.tensors
    of = tensors[tensors["file"] != ""].groupby("file")["size"].sum()
    return str(of.idxmax()) if len(of) else ""


def _cold_start(trace: Trace) -> Finding | None:
    """A file read from disk before the first call."""
    reads = trace.reads
    loading = reads[reads["ts_ns"] < int(trace.calls["begin_ns"].min())]
    model = _model_file(trace) or _largest(trace)
    mine = loading[(loading["file"] == model).to_numpy()] if model else loading[:0]
    size = int(trace.residents.files.set_index("path")["size"].get(model, 0)) if model else 0
    read = int(mine["bytes"].sum())
    if not size or read < COLD_SHARE * size:
        return None
    # A read's time is when it was asked for: what ends the load is the first call.
    span = int(mine["ts_ns"].max() - mine["ts_ns"].min())
    part = (
        format_percent(read / size)
        if read <= size + AGAIN_SHARE * size
        else (f"{read / size:.1f} times its size")
    )
    text = f"cold start: {format_bytes(read)} of {Path(model).name} ({part}) "
    text += "came from disk before the first call"
    if span > 0:
        text += f", within {format_ns(span)} ({format_byte_rate(read * 1e9 / span)})"
    evidence = {
        "file": Number(Path(model).name, "text", "The model's file."),
        "read_bytes": Number(read, "bytes", "Read from disk before the first call."),
        "file_bytes": Number(size, "bytes", "Size of the file."),
        "span_ns": Number(span, "ns", "From the first of these reads to the last."),
    }
    prize = Prize(span, 0, 0, "from the first read to the last one") if span > 0 else None
    return Finding("cold_start", None, text, "", "before the first call", evidence, prize)


def _cold_weights(trace: Trace) -> Finding | None:
    """Major faults on weights inside graphs, without anything being read twice."""
    faults = trace.faults
    hit = faults[((faults["kind"] == "weight") & (faults["graph_id"] >= 0)).to_numpy()]
    majors = hit[hit["major"]]
    if not len(majors):
        return None
    took = int(majors["held_ns"].sum())
    graphs = np.unique(majors["graph_id"].to_numpy())
    last = int(graphs.max())
    where = f"graph {int(graphs[0])}" if len(graphs) == 1 else f"{len(graphs)} graphs"
    text = f"cold weights: {len(majors):,} major faults in {where} held threads up for "
    text += format_ns(took)
    if last + 1 < len(trace.graphs):
        text += f"; the {len(trace.graphs) - last - 1:,} graphs after them had none"
    worst = majors.groupby("tensor")["held_ns"].sum().idxmax()
    evidence = {
        "majors": Number(len(majors), "count", "Major faults on weights inside graphs."),
        "held_ns": Number(took, "ns", "Time of threads inside them."),
        "graphs": Number(len(graphs), "count", "Graphs that had any."),
        "worst": Number(str(worst), "text", "Tensor that held threads up longest."),
    }
    text = f"{text}; most on {worst}"
    prize = Prize(_held_up(majors), 0, 0, _HELD_UP)
    tries = "a warm-up run (llama.cpp makes one unless --no-warmup), or --mlock"
    return Finding("cold_weights", None, text, tries, "graphs", evidence, prize)


_HELD_UP = "of each graph the longest that any thread was held up in faults on weights, summed"


def _held_up(faults: pd.DataFrame) -> int:
    """Threads are held up at the same time: of each graph the one that was longest, ns."""
    held = faults.groupby(["graph_id", "tid"])["held_ns"].sum()
    return int(held.groupby(level=0).max().sum())


def _evicted(trace: Trace) -> Finding | None:
    """Weights that are read again: they did not stay in memory."""
    whole = _weight_bytes(trace)
    parts = _weight_reads(trace)
    read = int(parts["bytes"].sum())
    again = _read_again(trace)
    begin = int(trace.calls["begin_ns"].min())
    if not whole or again < AGAIN_SHARE * whole or not (parts["ts_ns"] >= begin).any():
        return None
    # A warm-up's graphs are no part of the tokens and the time that the prize is shared out to.
    scope = Scope(trace, trace.select(unsampled=True))
    chosen = np.flatnonzero(scope.selection.graphs)
    later = int(parts["bytes"][np.isin(parts["graph_id"].to_numpy(), chosen)].sum())
    faults = trace.faults
    inside = (faults["kind"] == "weight").to_numpy() & np.isin(faults["graph_id"], chosen)
    hit = faults[inside]
    held = int(hit["held_ns"].sum())
    text = "weights are read from disk again: "
    text += f"{format_bytes(later)} in {format_things(len(chosen), 'graph')}, "
    text += f"{read / whole:.1f} times the weights' {format_bytes(whole)} in all"
    text += f", and threads were held up for {format_ns(held)}"
    limit = trace.meta.memory.get("limit_bytes")
    memory = trace.meta.host.memory_bytes
    if limit and limit < _need(trace):
        place = trace.meta.memory.get("limit_from")
        text += f"; the model does not fit into the memory limit of {format_bytes(limit)} ({place})"
    elif memory and memory < _need(trace):
        text += f"; the model does not fit into this machine's {format_bytes(memory)}"
    else:
        text += "; something else took the memory that they were in"
    evidence = {
        "read_bytes": Number(read, "bytes", "Weights read from disk, in all."),
        "again_bytes": Number(again, "bytes", "Of the model's file, read a second time or more."),
        "later_bytes": Number(later, "bytes", "Weights read in these graphs."),
        "weight_bytes": Number(whole, "bytes", "Size of the weights."),
        "need_bytes": Number(_need(trace), "bytes", "Weights and the process's own memory."),
        "held_ns": Number(held, "ns", "Time of threads in faults on weights in these graphs."),
    }
    tries = "a larger limit or a smaller quantisation"
    prize = scope.prize(_held_up(hit), _HELD_UP)
    return Finding("evicted", None, text, tries, scope.name, evidence, prize)


def _need(trace: Trace) -> int:
    """Weights, KV cache and what else the process has of its own."""
    sizes = trace.residence
    own = int(sizes["anon"].max()) if len(sizes) else 0
    return _weight_bytes(trace) + own


def _read_again(trace: Trace) -> int:
    """Bytes of files with weights that were read more than once."""
    reads, again = trace.reads, 0
    for number in trace.residents.by_offset:
        path = str(trace.residents.files["path"].iloc[number])
        mine = reads[(reads["file"] == path).to_numpy()]
        begin = mine["file_offset"].to_numpy()
        order = np.argsort(begin, kind="stable")
        begin = begin[order]
        end = begin + mine["bytes"].to_numpy()[order]
        reach = np.maximum.accumulate(np.r_[0, end])[:-1]
        fresh = np.maximum(end - np.maximum(begin, reach), 0)
        again += int(mine["bytes"].sum() - fresh.sum())
    return again


def _largest(trace: Trace) -> str:
    """The largest data file: a model that was read and not mapped."""
    files = trace.residents.files
    return str(files["path"].iloc[int(files["size"].to_numpy().argmax())]) if len(files) else ""
