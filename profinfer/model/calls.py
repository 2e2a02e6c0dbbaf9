"""Layer 5: calls, samples, splits and graphs as tables, with their parents.

Loops over calls, never over operators. Must not import the analyses or above.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.model.backendnames import BackendNames
from profinfer.model.decode import Records, int64
from profinfer.model.edges import SPANS, Loose
from profinfer.model.holes import Holes
from profinfer.model.holes import find as find_holes
from profinfer.model.partly import lost_before, torn_calls
from profinfer.model.phases import PHASES, with_phases
from profinfer.model.sequences import sequences
from profinfer.model.spans import Pairs, outermost, pair, parents
from profinfer.tracefile import schema
from profinfer.tracefile.metadata import TraceMetadata
from profinfer.tracefile.schema import Kind

I64 = npt.NDArray[np.int64]
_READ = ("n_tokens", "pos_first", "pos_last", "n_seqs", "seq")


@dataclass(frozen=True)
class Spans:
    """Everything that has a begin and an end, but the operators.

    Attributes:
        calls: outermost calls into the model.
        sequences: the sequences of each call's batch.
        torn_batches: calls whose sequences were not recorded to the end.
        samples: outermost sampler calls.
        splits: graph splits handed to backends.
        split_row: SPLIT_BEGIN record of each split.
        graphs: graphs computed by the CPU backend; the index is the graph_id.
        graph_row: GRAPH_BEGIN record of each graph.
        unmatched: records without a partner, by what they are.
        cut: spans that were still open when the recording ended, by what they are.
        loose: all of these in time, by what they are.
        holes: where begins and ends were lost, by what they are of.
    """

    calls: pd.DataFrame
    sequences: pd.DataFrame
    torn_batches: int
    samples: pd.DataFrame
    splits: pd.DataFrame
    split_row: I64
    graphs: pd.DataFrame
    graph_row: I64
    unmatched: dict[str, int]
    cut: dict[str, int]
    loose: dict[str, Loose]
    holes: dict[str, Holes]


def _paired(records: Records, what: str) -> tuple[Pairs, Holes, I64, I64, I64]:
    """Pair one kind per thread and probe.

    Returns:
        The pairs, where records were lost, and tid, begin and end of each span.
    """
    b, e = (records.rows[kind] for kind in SPANS[what])
    keys = [int64(r["tid"]) << 32 | int64(r["probe"]) for r in (b, e)]
    holes, parts = find_holes(b, e)
    pairs = pair(int64(b["ts"]), keys[0], int64(e["ts"]), keys[1], *parts)
    begins = int64(b["ts"])[pairs.begin]
    ends = np.full(len(pairs.begin), records.last_ns, np.int64)
    closed = pairs.end >= 0
    ends[closed] = int64(e["ts"])[pairs.end[closed]]
    return pairs, holes, int64(b["tid"])[pairs.begin], begins, ends


def _loose(records: Records, what: str, pairs: Pairs) -> Loose:
    """Begins and ends without a partner, those cut off by the end of the recording included."""
    b, e = (records.rows[kind] for kind in SPANS[what])
    begins = np.r_[pairs.open, pairs.begin[pairs.end < 0]]
    tid, probe, ts = (
        np.r_[int64(b[c][begins]), int64(e[c][pairs.stray])] for c in ("tid", "probe", "ts")
    )
    return Loose(tid, probe, ts, np.arange(len(ts)) < len(begins))


def build(
    records: Records, meta: TraceMetadata, names: BackendNames, *, graphs_lost: bool
) -> Spans:
    """All spans but the operators.

    Args:
        records: of the trace.
        meta: its metadata.
        names: of its backends.
        graphs_lost: begins or ends of graphs are known to be lost.
    """
    unmatched: dict[str, int] = {}
    cut: dict[str, int] = {}
    loose: dict[str, Loose] = {}
    functions = {p.id: p.function for p in meta.plan.probes}

    holes: dict[str, Holes] = {}

    def note(what: str, pairs: Pairs, lost: Holes) -> None:
        holes[what] = lost
        unmatched[what] = pairs.unmatched
        cut[what] = int((pairs.end < 0).sum())
        loose[what] = _loose(records, what, pairs)

    pairs, lost, tid, begin, end = _paired(records, "calls")
    note("calls", pairs, lost)
    calls = _calls(records, pairs, tid, begin, end, functions)
    calls = calls.assign(lost_before=lost_before(calls, lost))
    seqs, torn = sequences(records, calls)
    calls, seqs = with_phases(_with_sequences(calls, seqs), seqs)

    pairs, lost, tid, begin, end = _paired(records, "samples")
    note("samples", pairs, lost)
    top = outermost(tid, begin, end)
    probes = records.rows[Kind.SAMPLE_BEGIN]["probe"][pairs.begin][top]
    samples = pd.DataFrame(
        {
            "sample_id": np.arange(int(top.sum()), dtype=np.int32),
            "tid": tid[top].astype(np.int32),
            "function": _named(probes, functions),
            "begin_ns": begin[top],
            "end_ns": end[top],
        }
    )

    pairs, lost, tid, begin, end = _paired(records, "splits")
    note("splits", pairs, lost)
    splits = _splits(records, pairs, tid, begin, end, names, calls)
    split_row = pairs.begin

    pairs, lost, tid, begin, end = _paired(records, "graphs")
    note("graphs", pairs, lost)
    rows = records.rows[Kind.GRAPH_BEGIN][pairs.begin]
    call = _parents(tid, begin, calls)
    graphs = pd.DataFrame(
        {
            "graph_id": np.arange(len(rows), dtype=np.int32),
            "tid": tid.astype(np.int32),
            "cgraph": rows["cgraph"],
            "def_id": np.full(len(rows), -1, np.int32),
            "n_nodes": rows["n_nodes"].astype(np.int32),
            "n_threads": rows["n_threads"].astype(np.int32),
            "threads_seen": np.zeros(len(rows), np.int32),
            "begin_ns": begin,
            "end_ns": end,
            "call_id": call,
            "split_id": _parents(tid, begin, splits[splits["outermost"]]),
            "phase": _phase_of(call, calls),
            "walk_ns": int64(rows["walk_ns"]),
            "wanted": (rows["flags"] & schema.GRAPH_NO_OPS) == 0,
            "partial": (rows["flags"] & schema.GRAPH_PARTIAL) != 0,
            "cut": pairs.end < 0,
            "complete": pairs.end >= 0,
        }
    )
    calls = calls.assign(
        torn=torn_calls(calls, graphs, holes["graphs"], loose["graphs"], graphs_lost)
    )
    return Spans(
        calls, seqs, torn, samples, splits, split_row, graphs, pairs.begin, unmatched, cut, loose,
        holes,
    )  # fmt: skip


def _named(probes: npt.NDArray[np.uint32], functions: dict[int, str]) -> pd.Categorical[Any]:
    return pd.Categorical([functions.get(p, f"probe {p}") for p in probes.tolist()])


def _parents(tid: I64, begin: I64, table: pd.DataFrame) -> npt.NDArray[np.int32]:
    """Id (first column) of the row of ``table`` that contains each begin, -1 if none."""
    at = parents(
        tid,
        begin,
        table["tid"].to_numpy(np.int64),
        table["begin_ns"].to_numpy(),
        table["end_ns"].to_numpy(),
    )
    ids = np.r_[table.iloc[:, 0].to_numpy(np.int32), np.int32(-1)]
    return np.asarray(ids[at], np.int32)


def _phase_of(call: npt.NDArray[np.int32], calls: pd.DataFrame) -> pd.Categorical[Any]:
    codes = np.r_[calls["phase"].cat.codes.to_numpy(), PHASES.index("other")][call]
    return pd.Categorical.from_codes(codes, categories=pd.Index(PHASES))


def _calls(
    records: Records, pairs: Pairs, tid: I64, begin: I64, end: I64, functions: dict[int, str]
) -> pd.DataFrame:
    rows = records.rows[Kind.CALL_BEGIN][pairs.begin]
    top = outermost(tid, begin, end)
    tokens = {k: rows[k].astype(np.int64) for k in _READ}
    # A newer entry may wrap an older one: one call, and what either of them could read.
    inner = np.flatnonzero(~top)
    outer = np.flatnonzero(top)
    owner = parents(tid[inner], begin[inner], tid[outer], begin[outer], end[outer])
    for row, at in zip(inner.tolist(), owner.tolist(), strict=True):
        for values in tokens.values():
            if at >= 0 and values[outer[at]] < 0:
                values[outer[at]] = values[row]
    ends = records.rows[Kind.CALL_END]["value"]
    ret = np.array([ends[e] if e >= 0 else 0 for e in pairs.end.tolist()], np.int64)
    function = _named(rows["probe"][top], functions)
    encode = (rows["flags"][top] & schema.CALL_ENCODE) != 0
    encode |= np.array([f.endswith("_encode") for f in function], bool)
    return pd.DataFrame(
        {
            "call_id": np.arange(len(outer), dtype=np.int32),
            "tid": tid[top].astype(np.int32),
            "ctx": rows["ctx"][top],
            "function": function,
            "begin_ns": begin[top],
            "end_ns": end[top],
            **{k: v[top] for k, v in tokens.items()},
            "encode": encode,
            "warmup": _in_warmup(records, rows["ctx"][top], begin[top], end[top]),
            "cut": (pairs.end < 0)[top],
            "ret": ret[top],
        }
    )


def _with_sequences(calls: pd.DataFrame, seqs: pd.DataFrame) -> pd.DataFrame:
    """n_seqs: to how many sequences a call's tokens belong; seq: to which; -1 where not known."""
    n = np.bincount(seqs["call_id"], minlength=len(calls))
    first = np.full(len(calls), -1, np.int64)
    owner, seq = seqs["call_id"].to_numpy(), seqs["seq"].to_numpy(np.int64)
    first[owner] = seq
    known = first >= 0
    return calls.assign(
        n_seqs=np.where(known, n, -1).astype(np.int32),
        seq=np.where(known & (n == 1), first, -1).astype(np.int32),
    )


def _in_warmup(
    records: Records, ctx: npt.NDArray[np.uint64], begin: I64, end: I64
) -> npt.NDArray[np.bool_]:
    """Calls that only warm the context up.

    They lie between llama_set_warmup(on) and (off), or before a reset of the context's own
    performance counters without its thread having sampled anything since the reset before.
    """
    marks = records.rows[Kind.WARMUP]
    samples = records.rows[Kind.SAMPLE_BEGIN]
    out = np.zeros(len(ctx), bool)
    for one in np.unique(marks["ctx"]):
        mine = np.sort(marks[marks["ctx"] == one], order="ts")
        reset = mine["value"] == schema.WARMUP_RESET
        switches = mine[~reset]
        if len(switches):
            at = np.searchsorted(int64(switches["ts"]), begin, side="right") - 1
            out |= (ctx == one) & (at >= 0) & (switches["value"][at] == schema.WARMUP_ON)
        since = 0
        for tid, ts in zip(mine["tid"][reset].tolist(), mine["ts"][reset].tolist(), strict=True):
            # Other contexts may sample meanwhile, on threads of their own.
            sampled = np.sort(int64(samples["ts"][samples["tid"] == tid]))
            if np.searchsorted(sampled, since) == np.searchsorted(sampled, ts):
                out |= (ctx == one) & (begin >= since) & (end <= ts)
            since = ts
    return out


def _splits(
    records: Records,
    pairs: Pairs,
    tid: I64,
    begin: I64,
    end: I64,
    names: BackendNames,
    calls: pd.DataFrame,
) -> pd.DataFrame:
    rows = records.rows[Kind.SPLIT_BEGIN][pairs.begin]
    guid = [bytes(g).hex() for g in np.ascontiguousarray(rows["guid"]).tolist()]
    named = [names.backend(g, a) for g, a in zip(guid, rows["get_name"].tolist(), strict=True)]
    return pd.DataFrame(
        {
            "split_id": np.arange(len(rows), dtype=np.int32),
            "tid": tid.astype(np.int32),
            "backend": pd.Categorical(named),
            "address": rows["backend"],
            "guid": pd.Categorical(guid),
            "cgraph": rows["cgraph"],
            "n_nodes": rows["n_nodes"].astype(np.int32),
            "begin_ns": begin,
            "end_ns": end,
            "call_id": _parents(tid, begin, calls),
            "outermost": outermost(tid, begin, end),
            "cut": pairs.end < 0,
        }
    )
