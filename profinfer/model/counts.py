"""Layer 5: what counters read becomes counts per operator and thread.

Each operator record has the values of its thread's counters at that moment. An operator's counts
are what they grew by up to its end: since the record before (mode "site": where the thread reached
the barrier before, so that the wait there is in it), or since the operator's begin (mode "pair").
Vectorised over operator records. Must not import pandas or above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from profinfer.model.oprows import Rows
from profinfer.tracefile.metadata import Counter as Counter  # analyses know it from here
from profinfer.tracefile.opbatches import OpRecords
from profinfer.tracefile.ringindex import CountRecords
from profinfer.tracefile.schema import NOT_COUNTED

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Counts:
    """Counts per operator and thread, aligned with ``Rows``.

    Attributes:
        values: scaled to the whole time, NaN where it is not known, shape (rows, counters).
        since_ns: when counting for the row began, -1 if not known, shape (rows,).
        running: part of the time that each counter was counted, shape (counters,); below 1 where
            counters had to take turns.
        missing: rows without counts, shape (counters,).
    """

    values: F64
    since_ns: I64
    running: F64
    missing: I64


@dataclass(frozen=True)
class _Flat:
    """Records of all threads, ordered by thread and then as they were written.

    Attributes:
        tid, ts: of each record, shape (n,).
        batch: place of each record's batch, ordered likewise, shape (n,).
        follows: nothing is missing between this record and the one before it, shape (n,).
        values: shape (n, counters).
        known: the values were read, shape (n, counters).
        scale: what counts of a batch are multiplied by, NaN if nothing was counted, shape (b, k).
        running: as in ``Counts``.
    """

    tid: I64
    ts: I64
    batch: I64
    follows: npt.NDArray[np.bool_]
    values: npt.NDArray[np.uint64]
    known: npt.NDArray[np.bool_]
    scale: F64
    running: F64


def build(ops: OpRecords, counts: CountRecords, rows: Rows, counters: int, *, pair: bool) -> Counts:
    """Counts of every operator and thread.

    Args:
        ops: the operator records.
        counts: what counters read at them.
        rows: the operators.
        counters: how many counters there are.
        pair: operators have a record where they begin.
    """
    if not len(rows.tid) or not counters:
        empty = np.full((len(rows.tid), counters), np.nan)
        return Counts(empty, np.full(len(rows.tid), -1), np.zeros(counters), _missing(empty))
    flat = _flatten(ops, counts, counters)
    end, found = _places(flat, rows.tid, rows.end)
    if pair:
        since, begun = _places(flat, rows.tid, rows.begin)
        found &= begun
    else:
        since = np.maximum(end - 1, 0)
        found &= (end > 0) & flat.follows[end]
    grown = (flat.values[end] - flat.values[since]).view(np.int64).astype(np.float64)
    known = flat.known[end] & flat.known[since] & found[:, None] & (grown >= 0)
    values = np.where(known, grown, np.nan) * flat.scale[flat.batch[end]]
    since_ns = np.where(found, flat.ts[since], -1)
    return Counts(values, since_ns, flat.running, _missing(values))


def _missing(values: F64) -> I64:
    missing: I64 = np.isnan(values).sum(axis=0).astype(np.int64)
    return missing


def _flatten(ops: OpRecords, counts: CountRecords, k: int) -> _Flat:
    """Bring batches and what was counted in them together, in the order of the threads."""
    head = ops.batches
    order = np.argsort(head["tid"], kind="stable")
    order = order[ops.counts[order] > 0]
    n = ops.counts[order]
    first = np.cumsum(ops.counts) - ops.counts
    total = int(n.sum())
    at = np.repeat(first[order] - (np.cumsum(n) - n), n) + np.arange(total)
    tid = head["tid"].astype(np.int64)[order]
    seq = head["seq"].astype(np.int64)[order]
    batch = np.repeat(np.arange(len(order)), n)
    ts = ops.ops["dt"][at].astype(np.int64) + head["ts"].astype(np.int64)[order][batch]

    mine = _partners(ops, counts)[order]
    held = [
        counts.values[m] if m >= 0 and counts.values[m].shape == (c, k) else _nothing(c, k)
        for m, c in zip(mine.tolist(), n.tolist(), strict=True)
    ]
    values = np.concatenate(held) if held else _nothing(0, k)
    follows = np.ones(total, bool)
    opens = np.cumsum(n) - n
    follows[opens] = np.r_[False, (tid[1:] == tid[:-1]) & (np.diff(seq) == 1)]
    scale, running = _scales(counts, mine, tid, k)
    known = values != NOT_COUNTED
    return _Flat(np.repeat(tid, n), ts, batch, follows, values, known, scale, running)


def _nothing(n: int, k: int) -> npt.NDArray[np.uint64]:
    return np.full((n, k), NOT_COUNTED, np.uint64)


def _partners(ops: OpRecords, counts: CountRecords) -> I64:
    """COUNTS record of each batch, the one with its thread, number and time; -1 if it is lost."""
    out = np.full(len(ops.batches), -1, np.int64)
    if not len(counts.heads):
        return out
    names = ["tid", "seq", "ts"]
    both = np.concatenate([_keys(counts.heads, names), _keys(ops.batches, names)])
    _, ids = np.unique(both, return_inverse=True)
    ids = ids.reshape(-1)
    place = np.full(int(ids.max()) + 1, -1, np.int64)
    place[ids[: len(counts.heads)]] = np.arange(len(counts.heads))
    return place[ids[len(counts.heads) :]]


def _keys(rows: npt.NDArray[np.void], names: list[str]) -> npt.NDArray[np.void]:
    out = np.empty(len(rows), [(name, np.uint64) for name in names])
    for name in names:
        out[name] = rows[name]
    return out


def _scales(counts: CountRecords, mine: I64, tid: I64, k: int) -> tuple[F64, F64]:
    """What counts of each batch are to be multiplied by: enabled / running, as perf(1) scales.

    Returns:
        Factors, NaN for a batch in which nothing was counted, and the running part of the whole.
    """
    shape = (len(mine), k)
    enabled, running = np.zeros(shape), np.zeros(shape)
    there = mine >= 0
    for name, out in (("enabled", enabled), ("running", running)):
        out[there] = counts.heads[name][mine[there], :k].astype(np.float64)
    follows = np.r_[False, (tid[1:] == tid[:-1]) & there[1:] & there[:-1]][: len(mine)]
    on = np.where(follows[:, None], np.diff(enabled, axis=0, prepend=0.0), enabled)
    ran = np.where(follows[:, None], np.diff(running, axis=0, prepend=0.0), running)
    # Times that did not move: nothing ran in between, so nothing had to take turns.
    still = there[:, None] & (on <= 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = np.where(still, 1.0, np.where(ran > 0, on / ran, np.nan))
        whole = np.where(on.sum(axis=0) > 0, ran.sum(axis=0) / on.sum(axis=0), np.nan)
    return np.maximum(scale, 1.0), np.minimum(whole, 1.0)


def _places(flat: _Flat, tid: npt.NDArray[np.int32], ts: I64) -> tuple[I64, npt.NDArray[np.bool_]]:
    """Index of the record of each thread at each time, and whether there is one."""
    out = np.zeros(len(tid), np.int64)
    good = np.zeros(len(tid), bool)
    edges = np.flatnonzero(np.r_[True, flat.tid[1:] != flat.tid[:-1], True])
    for first, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):  # by thread
        rows = np.flatnonzero(tid == flat.tid[first])
        times = flat.ts[first:stop]
        at = np.searchsorted(times, ts[rows])
        ok = at < len(times)
        ok[ok] = times[at[ok]] == ts[rows][ok]
        out[rows], good[rows] = np.where(ok, first + at, 0), ok
    return out, good
