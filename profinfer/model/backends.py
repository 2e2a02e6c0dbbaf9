"""Layer 5: what goes on between backends, as tables: copies, waits, and backends' own functions.

Loops over distinct backends and functions, never over records. Must not import the analyses or
above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.engine.catalog import backend_facts
from profinfer.model import tensors
from profinfer.model.backendnames import HOST, BackendNames
from profinfer.model.decode import Records, Rows, int64
from profinfer.model.holes import find as find_holes
from profinfer.model.spans import outermost, pair, parents
from profinfer.tracefile import schema
from profinfer.tracefile.metadata import Engine, Layout, TraceMetadata
from profinfer.tracefile.schema import Kind

I64 = npt.NDArray[np.int64]

COPIES = ("", "set", "get", "copy", "fill")
_PLAIN = {"_ZN8socket_t9send_dataEPKvm": "send_data", "_ZN8socket_t9recv_dataEPvm": "recv_data"}


@dataclass(frozen=True)
class BackendTables:
    """What the model knows of backends beside their splits.

    Attributes:
        copies: one row per copy to, from or between tensors.
        syncs: one row per wait for a backend.
        work: one row per call of a backend's own functions that are probed.
        unmatched: records without a partner, by what they are.
        cut: spans that were still open when the recording ended, by what they are.
    """

    copies: pd.DataFrame
    syncs: pd.DataFrame
    work: pd.DataFrame
    unmatched: dict[str, int]
    cut: dict[str, int]


@dataclass(frozen=True)
class _Spans:
    rows: Rows
    tid: I64
    begin: I64
    end: I64
    cut: npt.NDArray[np.bool_]
    call: npt.NDArray[np.int32]
    ids: npt.NDArray[np.int32]


def build(
    records: Records, meta: TraceMetadata, names: BackendNames, calls: pd.DataFrame
) -> BackendTables:
    """The tables of one trace."""
    probes = {p.id: p for p in meta.plan.probes}
    ends = records.rows[Kind.BACKEND_END]
    begun = {k: records.rows[k] for k in (Kind.SYNC_BEGIN, Kind.WORK_BEGIN)}
    begun[Kind.COPY_BEGIN] = records.copies
    parts = dict(zip((*begun, Kind.BACKEND_END), find_holes(*begun.values(), ends)[1], strict=True))
    unmatched: dict[str, int] = {}
    cut: dict[str, int] = {}

    def spans(kind: Kind, what: str) -> _Spans:
        begins = begun[kind]
        roles = {p.id for p in probes.values() if (p.role or "").partition(".")[0] == what}
        fits = np.isin(ends["probe"], list(roles))
        mine = ends[fits]
        keys = [int64(r["tid"]) << 32 | int64(r["probe"]) for r in (begins, mine)]
        part = parts[kind], parts[Kind.BACKEND_END][fits]
        pairs = pair(int64(begins["ts"]), keys[0], int64(mine["ts"]), keys[1], *part)
        rows = begins[pairs.begin]
        end = np.full(len(rows), records.last_ns, np.int64)
        closed = pairs.end >= 0
        end[closed] = int64(mine["ts"])[pairs.end[closed]]
        unmatched[what], cut[what] = pairs.unmatched, int((~closed).sum())
        tid, begin = int64(rows["tid"]), int64(rows["ts"])
        owner = parents(tid, begin, *(calls[c].to_numpy(np.int64) for c in _SPAN))
        ids = np.arange(len(rows), dtype=np.int32)
        return _Spans(rows, tid, begin, end, ~closed, owner, ids)

    functions = {p.id: _PLAIN.get(p.function, p.function) for p in meta.plan.probes}
    roles = {p.id: (p.role or "").partition(".")[2] for p in meta.plan.probes}
    syncs = spans(Kind.SYNC_BEGIN, "sync")
    copies = spans(Kind.COPY_BEGIN, "copy")
    work = spans(Kind.WORK_BEGIN, "work")
    return BackendTables(
        _copies(copies, meta.engine, names, functions),
        _syncs(syncs, names),
        _work(work, functions, roles),
        unmatched,
        cut,
    )


_SPAN = ("tid", "begin_ns", "end_ns")


def _copies(
    spans: _Spans, engine: Engine, names: BackendNames, functions: dict[int, str]
) -> pd.DataFrame:
    rows = spans.rows
    layout = engine.layout or Layout()
    fields = tensors.parse(tensors.raw_bytes(rows), layout.tensor)
    whole = rows["bytes"] == np.uint64(schema.COPY_WHOLE)
    size = np.where(whole, tensors.spanned(fields, engine.types), int64(rows["bytes"]))
    sides = [_owners(rows[f"{side}_owner"], names) for side in ("src", "dst")]
    types = [
        t.name if 0 <= k < len(engine.types) and (t := engine.types[k]) else f"type#{k}"
        for k in fields.type.tolist()
    ]
    return pd.DataFrame(
        {
            "copy_id": spans.ids,
            "tid": spans.tid.astype(np.int32),
            "function": pd.Categorical([functions.get(p, "?") for p in rows["probe"].tolist()]),
            "kind": pd.Categorical([COPIES[w % len(COPIES)] for w in rows["what"].tolist()]),
            "tensor": pd.Categorical([tensors.text(n) for n in fields.name.tolist()]),
            "type": pd.Categorical(types),
            "bytes": size.astype(np.int64),
            "source": pd.Categorical(sides[0]),
            "target": pd.Categorical(sides[1]),
            "crosses": np.array(
                [_space(a) != _space(b) for a, b in zip(*sides, strict=True)], bool
            ),
            "is_async": (rows["flags"] & schema.COPY_ASYNC) != 0,
            "begin_ns": spans.begin,
            "end_ns": spans.end,
            "call_id": spans.call,
            "outermost": outermost(spans.tid, spans.begin, spans.end),
            "cut": spans.cut,
        }
    )


def _owners(addresses: npt.NDArray[np.uint64], names: BackendNames) -> list[str]:
    """Backend of each buffer; ``host`` for none."""
    return [names.owner(a) if a else HOST for a in addresses.tolist()]


def _space(owner: str) -> str:
    """Which memory a backend's buffers are in."""
    return HOST if owner in backend_facts().host else owner


def _syncs(spans: _Spans, names: BackendNames) -> pd.DataFrame:
    rows = spans.rows
    guids = [bytes(g).hex() for g in np.ascontiguousarray(rows["guid"]).tolist()]
    named = [names.backend(g, a) for g, a in zip(guids, rows["get_name"].tolist(), strict=True)]
    return pd.DataFrame(
        {
            "sync_id": spans.ids,
            "tid": spans.tid.astype(np.int32),
            "backend": pd.Categorical(named),
            "address": rows["backend"],
            "event": (rows["flags"] & schema.SYNC_EVENT) != 0,
            "begin_ns": spans.begin,
            "end_ns": spans.end,
            "call_id": spans.call,
            "cut": spans.cut,
        }
    )


def _work(spans: _Spans, functions: dict[int, str], roles: dict[int, str]) -> pd.DataFrame:
    rows = spans.rows
    kind = np.array([roles.get(p, "") for p in rows["probe"].tolist()], object)
    function = [functions.get(p, "?") for p in rows["probe"].tolist()]
    value = int64(rows["value"]).reshape(len(rows), 4)
    wire = (kind == "send") | (kind == "recv")
    commands = backend_facts().rpc_commands
    alone = _command_bytes(kind == "send", spans.tid, spans.begin, value[:, 0])
    told = [
        (commands[v] if v < len(commands) else f"command {v}") if a else ""
        for a, v in zip(alone.tolist(), value[:, 1].tolist(), strict=True)
    ]
    served = (kind == "serve").tolist()
    told = [served_command(f) if s else t for f, s, t in zip(function, served, told, strict=True)]
    gemm = kind == "gemm"
    return pd.DataFrame(
        {
            "work_id": spans.ids,
            "tid": spans.tid.astype(np.int32),
            "kind": pd.Categorical(kind),
            "function": pd.Categorical(function),
            "command": pd.Categorical(told),
            "bytes": np.where(wire, value[:, 0], 0),
            "m": np.where(gemm, value[:, 0] & 0xFFFFFFFF, -1),
            "n": np.where(gemm, value[:, 1] & 0xFFFFFFFF, -1),
            "k": np.where(gemm, value[:, 2] & 0xFFFFFFFF, -1),
            "node": np.where(kind == "node", value[:, 1] & 0xFFFFFFFF, -1).astype(np.int64),
            "socket": np.where(wire, rows["value"].reshape(len(rows), 4)[:, 2], 0),
            "begin_ns": spans.begin,
            "end_ns": spans.end,
            "call_id": spans.call,
            "cut": spans.cut,
        }
    )


def _command_bytes(
    sent: npt.NDArray[np.bool_], tid: I64, begin: I64, size: I64
) -> npt.NDArray[np.bool_]:
    """Messages of one byte that name a command: the thread sends a length of 8 bytes next."""
    out = np.zeros(len(sent), bool)
    rows = np.flatnonzero(sent)
    rows = rows[np.lexsort((begin[rows], tid[rows]))]
    follows = (size[rows][1:] == 8) & (tid[rows][1:] == tid[rows][:-1])
    out[rows[:-1][follows & (size[rows][:-1] == 1)]] = True
    return out


def served_command(function: str) -> str:
    """``GRAPH_COMPUTE`` of the C++ name of ``rpc_server::graph_compute``."""
    rest = function.removeprefix("_ZN10rpc_server")
    digits = rest[: len(rest) - len(rest.lstrip("0123456789"))]
    return rest[len(digits) : len(digits) + int(digits)].upper() if digits else ""


def with_done(splits: pd.DataFrame, syncs: pd.DataFrame) -> pd.DataFrame:
    """The splits with ``instance`` and ``done_ns``.

    instance: which of several backends of the same name in its context it is, from 1. done_ns: when
    its work was known to be done: at its own end where the backend computes before it returns, else
    at the end of the first wait for that backend that ends after it; -1 where none was seen.
    """
    done = splits["end_ns"].to_numpy(np.int64).copy()
    later = np.flatnonzero(~splits["backend"].isin(backend_facts().synchronous).to_numpy())
    done[later] = waited_for(splits.iloc[later], syncs)[0]
    return splits.assign(instance=_instances(splits), done_ns=done)


def waited_for(splits: pd.DataFrame, syncs: pd.DataFrame) -> tuple[I64, npt.NDArray[np.bool_]]:
    """The end of the first wait for each split's backend that ends after it, -1 if none was seen.

    Returns:
        It, ns; and whether that wait was cut off by the end of the recording. Shape (splits,).
    """
    end, address = splits["end_ns"].to_numpy(np.int64), splits["address"].to_numpy()
    done, cut = np.full(len(splits), -1, np.int64), np.zeros(len(splits), bool)
    ordered = syncs.sort_values("end_ns", kind="stable")
    waited = ordered["address"].to_numpy()
    for one in np.unique(address):
        mine, theirs = np.flatnonzero(address == one), ordered[waited == one]
        at = np.searchsorted(theirs["end_ns"].to_numpy(), end[mine])
        done[mine] = np.append(theirs["end_ns"].to_numpy(np.int64), -1)[at]
        cut[mine] = np.append(theirs["cut"].to_numpy(bool), False)[at]
    return done, cut


def _instances(splits: pd.DataFrame) -> npt.NDArray[np.int32]:
    """Only backends that one call uses side by side are several: contexts come and go."""
    out = np.ones(len(splits), np.int32)
    for _, rows in splits.groupby(["ctx", "backend"], observed=True, sort=False):
        if rows.groupby("call_id")["address"].nunique().max() > 1:
            out[rows["split_id"].to_numpy()] = pd.factorize(rows["address"])[0] + 1
    return out
