"""Layer 5: what an excerpt may lack: only what was under way when it began, or when it ended.

Owns the rule, which is of time and not of numbers. An end without a begin is forgiven if its thread
recorded nothing before it but what can lie inside it: then it may have begun before the recording.
A begin without an end is forgiven if its thread recorded nothing after it but what can lie inside.
Everything else is missing from the middle. Must not import pandas or above.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from profinfer.model.decode import Records, int64
from profinfer.model.opmarks import Orphans
from profinfer.model.visits import Visits
from profinfer.tracefile.schema import Kind

I64 = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

SPANS = {
    "calls": (Kind.CALL_BEGIN, Kind.CALL_END),
    "samples": (Kind.SAMPLE_BEGIN, Kind.SAMPLE_END),
    "splits": (Kind.SPLIT_BEGIN, Kind.SPLIT_END),
    "graphs": (Kind.GRAPH_BEGIN, Kind.GRAPH_END),
}
# What can lie inside a span of its thread. Calls wrap older calls, samplers wrap samplers.
_INSIDE = {
    "calls": {"calls", "splits", "graphs"},
    "samples": {"samples"},
    "splits": {"graphs"},
    "graphs": set(),
}
_SIBLINGS = {"llama_decode", "llama_encode"}  # neither calls the other, or itself
_RECURSIVE = "llama_sampler_apply"  # a chain of samplers calls it for each of them


@dataclass(frozen=True)
class Loose:
    """Begins without an end, and ends without a begin, of one kind of span.

    Attributes:
        tid: thread, shape (n,).
        probe: its probe, shape (n,).
        ts: nanoseconds, shape (n,).
        begins: it is a begin, shape (n,).
    """

    tid: I64
    probe: I64
    ts: I64
    begins: Mask


@dataclass(frozen=True)
class Edges:
    """The two ends of a recording.

    Attributes:
        middle: loose begins and ends that neither end of the recording explains, by kind.
        orphans: operator records without a graph that neither explains.
    """

    middle: Mapping[str, int]
    orphans: int


@dataclass(frozen=True)
class _Seen:
    """First and last record of each thread, kind and probe."""

    tid: I64
    kind: list[str]
    probe: I64
    first: I64
    last: I64


def find(
    records: Records,
    loose: Mapping[str, Loose],
    functions: Mapping[int, str],
    visits: Visits,
    orphans: Orphans,
    *,
    joined: bool,
    left: bool,
) -> Edges:
    """Hold what is loose against the two ends of the recording.

    Args:
        records: the decoded trace.
        loose: what has no partner, by kind of span.
        functions: name of each probe's function.
        visits: who passed through which graph.
        orphans: operator records of visits that no graph fits.
        joined: the target ran when the recording began.
        left: the target went on when the recording ended.
    """
    seen = _seen(records)
    middle: dict[str, int] = {}
    for kind, these in loose.items():
        first, last = _outside(kind, these, seen, functions)
        early = ~these.begins & (these.ts <= first) & joined
        late = these.begins & (these.ts >= last) & left
        middle[kind] = int((~early & ~late).sum())
    torn = ~(_began_before(visits, orphans, seen) & joined)
    return Edges(middle, int(orphans.records[torn].sum()))


def _seen(records: Records) -> _Seen:
    tid, kind, probe, ts = [], [], [], []
    for number, (begin, end) in enumerate(SPANS.values()):
        for rows in (records.rows[begin], records.rows[end]):
            tid.append(int64(rows["tid"]))
            kind.append(np.full(len(rows), number, np.int64))
            probe.append(int64(rows["probe"]))
            ts.append(int64(rows["ts"]))
    keys = np.stack([np.concatenate(tid), np.concatenate(kind), np.concatenate(probe)])
    groups, group = np.unique(keys, axis=1, return_inverse=True)
    group, every = group.reshape(-1), np.concatenate(ts)
    first = np.full(groups.shape[1], np.iinfo(np.int64).max)
    last = np.full(groups.shape[1], np.iinfo(np.int64).min)
    np.minimum.at(first, group, every)
    np.maximum.at(last, group, every)
    names = list(SPANS)
    return _Seen(groups[0], [names[k] for k in groups[1].tolist()], groups[2], first, last)


def _outside(kind: str, loose: Loose, seen: _Seen, functions: Mapping[int, str]) -> tuple[I64, I64]:
    """Of each loose row: first and last record of its thread that cannot lie inside its span."""
    first = np.full(len(loose.ts), np.iinfo(np.int64).max)
    last = np.full(len(loose.ts), np.iinfo(np.int64).min)
    for tid, probe in sorted(set(zip(loose.tid.tolist(), loose.probe.tolist(), strict=True))):
        mine = (loose.tid == tid) & (loose.probe == probe)
        for at in np.flatnonzero(seen.tid == tid).tolist():
            other = functions.get(int(seen.probe[at]), "")
            if not _nests(kind, functions.get(probe, ""), seen.kind[at], other):
                first[mine] = np.minimum(first[mine], seen.first[at])
                last[mine] = np.maximum(last[mine], seen.last[at])
    return first, last


def _nests(kind: str, function: str, inner: str, inner_function: str) -> bool:
    """Whether a span of ``inner`` kind and function can lie inside one of ``kind``."""
    if inner not in _INSIDE[kind]:
        return False
    if kind != inner:
        return True
    if function == inner_function:
        return function == _RECURSIVE
    return not {function, inner_function} <= _SIBLINGS


def _began_before(visits: Visits, orphans: Orphans, seen: _Seen) -> Mask:
    """Orphaned visits of graphs that may have begun before the recording.

    The end of such a graph need not be seen: the kernel catches a return only of what was entered
    with the probes in place. So the thread must have passed no recorded graph before, and have
    entered this one before the recording too. If it came a little later, none of the threads in
    this graph (one of them computes it for its caller) may have begun or ended anything before.
    """
    mine = orphans.visit
    tid, graph = visits.tid[mine], visits.cgraph[mine]
    known = np.flatnonzero(visits.graph >= 0)
    threads, at = np.unique(visits.tid[known], return_index=True)
    # Visits are ordered by thread, then time.
    before = mine < _looked_up(threads, known[at], tid, len(visits.tid))
    threads, at = np.unique(seen.tid, return_inverse=True)
    first = np.full(len(threads), np.iinfo(np.int64).max)
    np.minimum.at(first, at, seen.first)
    begun = _looked_up(threads, first, tid, np.iinfo(np.int64).max)
    graphs, at = np.unique(graph, return_inverse=True)
    earliest = np.full(len(graphs), np.iinfo(np.int64).max)
    np.minimum.at(earliest, at, begun)
    out: Mask = before & ((visits.enter[mine] < 0) | (orphans.first_ns <= earliest[at]))
    return out


def _looked_up(keys: I64, values: I64, wanted: I64, default: int) -> I64:
    """Value of each wanted key; ``keys`` ascend."""
    at = np.searchsorted(keys, wanted)
    found = np.append(keys, -1)[at] == wanted
    return np.where(found, np.append(values, default)[at], default)
