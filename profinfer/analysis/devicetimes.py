"""Layer 6: device times that an engine's own profiler wrote, next to what was recorded on the host.

Owns the readers of those texts; a new one is a function from text to ``DeviceTimes`` and a line in
``READERS`` (docs/backends.md). Must not import rich or anything above.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from profinfer.analysis import notes
from profinfer.analysis.backends import chosen
from profinfer.analysis.backendwork import of_selection
from profinfer.analysis.result import Column, Note, Result
from profinfer.analysis.shapes import with_problem
from profinfer.errors import UsageProblem
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace
from profinfer.units import format_things

COLUMNS = ("block", "label", "op", "problem", "types", "tensor", "runs", "time_ns")


@dataclass(frozen=True)
class DeviceTimes:
    """What a profiler's text says.

    Attributes:
        backend: name of the backend, as in the trace's splits.
        source: what the text is, for people.
        rows: ``COLUMNS``: block (number of the graph that it was printed after, 0 where it is not
            told), label (as printed), op, problem and types as in the views of operators, tensor
            (name; all of these empty where not told), runs, time_ns of all runs.
        skipped: lines that look like times and could not be read.
    """

    backend: str
    source: str
    rows: pd.DataFrame
    skipped: int


_TIMING = re.compile(r"^(?P<label>\S.*): (?P<runs>\d+) x \S+ us = (?P<total>\S+) us")
_PRODUCT = re.compile(
    r"(?P<op>MUL_MAT(?:_ID)?)(?:_VEC)? (?P<types>\w+) m=(?P<m>\d+) n=(?P<n>\d+) k=(?P<k>\d+)"
    r"(?: n_expert=\d+)?(?: batch=(?P<batch>\d+))?$"
)
_ATTENTION = re.compile(r"FLASH_ATTN_EXT dst\((?P<dst>[\d,]+)\).* k\(\d+,(?P<kv>\d+),")
_PLAIN = re.compile(r"(?P<op>[A-Z][A-Z0-9_]*)(?:\((?P<ne>[\d,]+)\))?$")


def _shape(ne: str) -> str:
    dims = ne.split(",")
    while len(dims) > 1 and dims[-1] == "1":
        dims.pop()
    return "x".join(dims)


def _of_label(label: str) -> tuple[str, str, str]:
    """Operator, problem and types of a label; a fusion's name stands before it."""
    if told := _PRODUCT.search(label):
        size = f"{told['m']}x{told['k']}x{told['n']}"
        batch = f" *{told['batch']}" if told["batch"] else ""
        return told["op"], size + batch, told["types"]
    if told := _ATTENTION.search(label):
        return "FLASH_ATTN_EXT", f"{_shape(told['dst'])} kv {told['kv']}", ""
    if told := _PLAIN.search(label):
        return told["op"], _shape(told["ne"]) if told["ne"] else "", ""
    return "", "", ""


def read_vulkan(text: str) -> DeviceTimes | None:
    """What ``GGML_VK_PERF_LOGGER=1`` prints to stderr, after each graph (ggml 0.25.3)."""
    if "Vulkan Timings:" not in text:
        return None
    rows, block, skipped, inside = [], -1, 0, False
    for line in text.splitlines():
        if line.startswith("Vulkan Timings:"):
            block, inside = block + 1, True
        elif line.startswith("Total time:"):
            inside = False
        elif inside:
            told = _TIMING.match(line)
            try:
                assert told is not None
                time_ns = round(float(told["total"]) * 1000)
                rows.append((block, told["label"], *_of_label(told["label"]), "",
                             int(told["runs"]), time_ns))  # fmt: skip
            except (AssertionError, ValueError):
                skipped += 1
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return DeviceTimes("Vulkan", "the Vulkan backend's perf logger", frame, skipped)


def read_opencl(text: str) -> DeviceTimes | None:
    """``cl_profiling.csv`` of a build with GGML_OPENCL_PROFILING: one line a kernel, in order."""
    lines = text.splitlines()
    if not lines or not lines[0].startswith("op name,"):
        return None
    rows, skipped = [], 0
    for fields in csv.reader(lines[1:]):
        try:
            name, kernel, milliseconds = fields[0].strip(), fields[1].strip(), float(fields[2])
            output = fields[-1].strip().replace("x", ",")
            rows.append((0, kernel, "", _shape(output), "", name, 1, round(milliseconds * 1e6)))
        except (IndexError, ValueError):
            skipped += 1
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    return DeviceTimes("OpenCL", "the OpenCL backend's profile", frame, skipped)


READERS: tuple[Callable[[str], DeviceTimes | None], ...] = (read_vulkan, read_opencl)


def read(text: str, path: str) -> DeviceTimes:
    """Whatever profile ``text`` is.

    Raises:
        UsageProblem: no reader knows it, or it holds no times.
    """
    for reader in READERS:
        found = reader(text)
        if found is not None and len(found.rows):
            return found
    raise UsageProblem(
        f"{path} holds no device times that profinfer knows",
        "GGML_VK_PERF_LOGGER=1 writes them to stderr; see docs/backends.md",
    )


_COLUMNS = (
    Column("op", "operator", "text", "Operator type; of a fusion the one that it is called by."),
    Column("problem", "problem", "text", "MxKxN of a matrix product, else the output's shape."),
    Column("types", "type", "text", "Type of the weights."),
    Column("runs", "runs", "count", "How often it ran."),
    Column("time_ns", "device", "ns", "On the device, as the engine's profiler says.", like="time"),
    Column("share", "share", "ratio", "Part of the device's time in this view.", bar=True),
    Column("mean_ns", "mean", "ns", "One run on the device."),
    Column("host_ns", "host", "ns", "Recording its commands on the host.", like="time"),
    Column("label", "label", "text", "As the profiler calls it.", detail=True),
)


def device_times(
    trace: Trace, selection: Selection, times: DeviceTimes, top: int | None = None
) -> Result:
    """Operators by their time on the device, with what the host spent on them."""
    rows, scope, told = of_selected(trace, selection, times)
    rows = _named(trace, rows)
    keys = ["op", "problem", "types"]
    frame = (
        rows.groupby(keys, sort=False)
        .agg(runs=("runs", "sum"), time_ns=("time_ns", "sum"), label=("label", "first"))
        .reset_index()
        .sort_values("time_ns", ascending=False, kind="stable")
        .reset_index(drop=True)
    )
    whole = int(frame["time_ns"].sum())
    frame["share"] = frame["time_ns"] / whole if whole else np.nan
    frame["mean_ns"] = frame["time_ns"] / frame["runs"]
    host = of_selection(trace, selection).astype({"op": str})
    spent = host.groupby(keys, observed=True)["time_ns"].sum().to_dict()
    of_op = host.groupby("op", observed=True)["time_ns"].sum().to_dict()
    once = frame["op"].value_counts()
    frame["host_ns"] = [
        # Some operators are printed without their size: then all sizes of them are one row.
        spent.get((op, problem, types), of_op.get(op) if once[op] == 1 else None)
        for op, problem, types in frame[keys].itertuples(index=False)
    ]
    frame["host_ns"] = frame["host_ns"].astype("Float64").astype("Int64")
    shown = frame.head(top) if top else frame
    extra = [Note("info", text) for text in told]
    if times.skipped:
        extra.append(
            Note("warning", f"{format_things(times.skipped, 'line')} of the profile not understood")
        )
    return Result(
        "device_times",
        f"On the device, by {times.source}",
        scope,
        _COLUMNS,
        shown[[c.name for c in _COLUMNS]],
        (*notes.losses(trace), *extra, *notes.cut(len(shown), len(frame))),
        {"runs": int(frame["runs"].sum()), "time_ns": whole, "share": 1.0 if whole else None},
    )


def of_selected(
    trace: Trace, selection: Selection, times: DeviceTimes
) -> tuple[pd.DataFrame, str, list[str]]:
    """The rows of selected splits, where the text has a part for each split; what they cover."""
    splits = trace.splits
    mine = splits[(splits["backend"] == times.backend).to_numpy() & splits["outermost"].to_numpy()]
    blocks = int(times.rows["block"].max()) + 1
    if blocks == len(mine):
        kept = np.isin(mine["split_id"], chosen(trace, mine, selection)["split_id"])
        return times.rows[kept[times.rows["block"].to_numpy()]], selection.description, []
    text = (
        f"the profile has {format_things(blocks, 'part')} and the recording "
        f"{format_things(len(mine), f'{times.backend} split')}: "
        "they cannot be told apart by call, so this is the whole profile"
    )
    return times.rows, f"the whole profile: {format_things(blocks, 'part')}", [text]


def _named(trace: Trace, rows: pd.DataFrame) -> pd.DataFrame:
    """Operators of rows that name a tensor only."""
    unnamed = (rows["op"] == "") & (rows["tensor"] != "")
    if not unnamed.any():
        return rows
    nodes = with_problem(trace.nodes).drop_duplicates("name").set_index("name")
    found = nodes.reindex(rows["tensor"])
    rows = rows.copy()
    for column in ("op", "problem", "types"):
        told = pd.Series(found[column].astype(object).to_numpy(), rows.index)
        rows[column] = told.where(unnamed & told.notna(), rows[column])
    return rows


def on_device(trace: Trace, selection: Selection, times: DeviceTimes) -> pd.DataFrame:
    """op, problem, types, runs, time_ns and backend of the selected splits' operators.

    Types are those of the trace's own nodes: a profile may leave them out.

    Raises:
        UsageProblem: the profile covers other splits than the selected ones.
    """
    rows, _, told = of_selected(trace, selection, times)
    if told:
        raise UsageProblem(told[0], "the profile of this very recording, or no --against")
    rows = _named(trace, rows)
    rows = rows[(rows["op"] != "").to_numpy()]
    nodes = with_problem(trace.nodes)[["op", "problem", "types"]].astype(str)
    kinds = nodes[nodes["types"] != ""].drop_duplicates()
    once = kinds[~kinds.duplicated(["op", "problem"], keep=False)].set_index(["op", "problem"])
    at = pd.MultiIndex.from_frame(rows[["op", "problem"]])
    known = pd.Series(once["types"].reindex(at).to_numpy(), rows.index)
    types = rows["types"].where(rows["types"] != "", known).fillna("")
    out = rows[["op", "problem", "runs", "time_ns"]]
    return out.assign(types=types, backend=times.backend)
