"""Layer 6: where the whole run went: each nanosecond from exec to exit is in one row.

``overview.ledger`` is the same for the calls of one phase. Must not import rich or above.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.analysis import notes
from profinfer.analysis.hosttime import away
from profinfer.analysis.result import Column, Note, Result
from profinfer.model.trace import Trace
from profinfer.units import format_ns

I64 = npt.NDArray[np.int64]
Spans = tuple[I64, I64]

COLUMNS = (
    Column("part", "part", "id", "Stable key of the row.", detail=True),
    Column("label", "where the run went", "text", "What was going on."),
    Column("time_ns", "time", "ns", "Wall time; the rows sum to the whole."),
    Column("share", "share", "ratio", "Part of the run.", bar=True),
)
_ORDER = ("warmup", "encode", "prefill", "mixed", "decode", "verify", "other")
_NAMES = {"warmup": "warm-up", "other": "other graphs"}
# Zones outside of calls, and what the calling thread does there.
_LOAD, _BETWEEN, _AFTER = range(3)
_BETWEEN_WORK = "tokenising, printing, its own work"
_WORK, _RUNNABLE, _FAULTS, _ASLEEP, _DISK = range(5)


@dataclass(frozen=True)
class _Layer:
    """Stretches of time of one kind; later layers hide earlier ones."""

    key: str
    spans: Spans


def ledger(trace: Trace) -> Result:
    """Loading, calls by phase, sampling, what lies between, and what comes after.

    At each moment one thing is counted: profinfer's own work before graphs, graphs before what
    other backends take or are waited for, that before calls, calls before samplers, and outside of
    all these what the thread does that makes the calls. If several graphs run at once, their
    operators share the time in proportion.
    """
    life = trace.life
    layers, states = _layers(trace), _states(trace)
    edges = np.unique(
        np.concatenate(
            [
                np.array([life.begin_ns, life.end_ns], np.int64),
                *(np.clip(e, life.begin_ns, life.end_ns) for ly in layers for e in ly.spans),
                np.array(_ends(trace), np.int64),
                *(np.clip(e, life.begin_ns, life.end_ns) for sp in states.values() for e in sp),
            ]
        )
    )
    length = np.diff(edges)
    owner = np.full(len(length), -1, np.int64)
    for number, layer in enumerate(layers):
        owner[_covered(edges, layer.spans)] = number
    taken = np.bincount(owner[owner >= 0], length[owner >= 0], len(layers)).astype(np.int64)
    time = {layer.key: int(taken[n]) for n, layer in enumerate(layers)}
    outside = _outside(trace, edges, owner, states)
    loading = "before the first call" if trace.excerpt else "loading"
    rows = [
        *_state_rows("load", loading, outside[_LOAD], "mapping, repacking, its own work"),
        ("load.held", "profinfer: program held to attach probes", time["held"]),
    ]
    for phase in _ORDER:
        rows += _phase_rows(trace, phase, time)
    rows += [
        ("sampling", "sampling", time["sampling"]),
        ("walk", "profinfer: reading the graphs", time["walk"]),
        ("lost", "not recorded: calls were lost", time["lost"]),
        ("torn", "not recorded: graphs of calls were lost", time["torn"]),
        *_state_rows("between", "between calls", outside[_BETWEEN], _BETWEEN_WORK),
        *_state_rows("after", "after the last call", outside[_AFTER], "freeing, its own work"),
    ]
    rows = [row for row in rows if row[2]]
    whole = life.end_ns - life.begin_ns
    frame = pd.DataFrame(rows, columns=["part", "label", "time_ns"])
    frame["share"] = frame["time_ns"] / whole if whole else np.nan
    if life.whole:
        scope = f"from exec to exit, {format_ns(whole)}"
    else:
        scope = f"the stretch that was recorded, {format_ns(whole)}"
    return Result(
        "run_ledger",
        "Whole run",
        scope,
        COLUMNS,
        frame[[c.name for c in COLUMNS]],
        (*notes.losses(trace), *_remarks(trace)),
        {"time_ns": whole, "share": 1.0 if whole else None},
    )


def _remarks(trace: Trace) -> Iterator[Note]:
    if trace.life.doubt:
        text = f"{trace.life.doubt} of the run were not noted: the recording's are taken instead"
        yield Note("info", text)
    if not trace.has_sched:
        yield Note("info", "without thread states, waiting for disks and sleeping are not told")


# --- time inside ------------------------------------------------------------------------------


def _spans(table: pd.DataFrame) -> Spans:
    return table["begin_ns"].to_numpy(np.int64), table["end_ns"].to_numpy(np.int64)


def _layers(trace: Trace) -> list[_Layer]:
    """Lowest first."""
    calls, graphs = trace.calls, trace.graphs
    lost = trace.lost_calls
    out = [_Layer("lost", (lost.begin, lost.end)), _Layer("sampling", _spans(trace.samples))]
    out += [_Layer(f"call.{p}", _spans(calls[(calls["phase"] == p).to_numpy()])) for p in _ORDER]
    out.append(_Layer("torn", _spans(calls[calls["torn"].to_numpy()])))
    out += _away(trace)
    begin, walk = graphs["begin_ns"].to_numpy(np.int64), graphs["walk_ns"].to_numpy(np.int64)
    out.append(_Layer("walk", (begin - walk, begin)))
    for phase in _ORDER:
        mine = (graphs["phase"] == phase).to_numpy()
        out.append(_Layer(f"graph.{phase}", _spans(graphs[mine])))
    held = np.array(trace.life.held, np.int64).reshape(-1, 2)
    out.append(_Layer("held", (held[:, 0], held[:, 1])))
    return out


def _away(trace: Trace) -> list[_Layer]:
    """What calls spend on backends that compute by themselves, waits after their end included."""
    found = away(trace)
    if found is None:
        return []
    phases = trace.calls["phase"].astype(str).to_numpy(str)
    out = []
    for what, table in (("waits", found.waits), ("backends", found.work), ("copies", found.copies)):
        of = phases[table["call_id"].to_numpy()]
        out += [_Layer(f"{what}.{phase}", _spans(table[of == phase])) for phase in _ORDER]
    return out


def _covered(edges: I64, spans: Spans) -> npt.NDArray[np.bool_]:
    """Which stretches between edges lie inside any of the spans, all of whose ends are edges."""
    step = np.zeros(len(edges), np.int64)
    for ends, sign in zip(spans, (1, -1), strict=True):
        at = np.clip(ends, edges[0], edges[-1])
        np.add.at(step, np.searchsorted(edges, at), sign)
    return np.asarray(np.cumsum(step)[:-1] > 0)


def _phase_rows(trace: Trace, phase: str, time: dict[str, int]) -> list[tuple[str, str, int]]:
    name = _NAMES.get(phase, phase)
    inside, around = time[f"graph.{phase}"], time[f"call.{phase}"]
    rows = []
    if inside and len(trace.op_walls):
        compute, wait, unseen = _operators(trace, phase, inside)
        rest = inside - compute - wait - unseen
        rows = [
            ("compute", f"{name}: operators computing", compute),
            ("wait", f"{name}: operators waiting for threads", wait),
            ("gaps", f"{name}: graphs, outside of operators", rest),
            ("unseen", f"{name}: graphs without operators recorded", unseen),
        ]
    elif inside:
        rows = [("graphs", f"{name}: graphs", inside)]
    rows += [
        ("backends", f"{name}: other backends taking work", time.get(f"backends.{phase}", 0)),
        ("copies", f"{name}: copies to and from other backends", time.get(f"copies.{phase}", 0)),
        ("waits", f"{name}: waiting for other backends", time.get(f"waits.{phase}", 0)),
    ]
    what = "building and scheduling graphs" if len(trace.graphs) else "calls"
    rows.append(("build", f"{name}: {what}", around))
    return [(f"{phase}.{key}", label, ns) for key, label, ns in rows]


def _operators(trace: Trace, phase: str, inside: int) -> tuple[int, int, int]:
    """Computing and waiting of the operators of a phase, and graphs without any, ns of ``inside``.

    Torn operators are in neither.
    """
    graphs, walls = trace.graphs, trace.op_walls
    mine = (graphs["phase"] == phase).to_numpy()
    spent = (graphs["end_ns"] - graphs["begin_ns"]).to_numpy()
    rows = mine[walls["graph_id"].to_numpy()] & walls["complete"].to_numpy()
    wall = int((walls["release_ns"] - walls["begin_ns"]).to_numpy()[rows].sum())
    each = walls["compute_sum"].to_numpy()[rows] // walls["threads"].to_numpy()[rows]
    compute = int(each.sum())
    unseen = int(spent[mine & ~graphs["sampled"].to_numpy()].sum())
    total = int(spent[mine].sum())
    if total > inside:  # several at once, or cut off by the end
        compute, wall, unseen = (n * inside // total for n in (compute, wall, unseen))
    return compute, wall - compute, unseen


# --- time outside -----------------------------------------------------------------------------


def _ends(trace: Trace) -> tuple[int, int]:
    """Begin of the first call; when the last call or sample was done; of graphs without calls."""
    tables = [trace.calls] if len(trace.calls) else [trace.graphs]
    tables.append(trace.samples)
    begins = [int(t["begin_ns"].min()) for t in tables if len(t)]
    ends = [int(t["done_ns" if "done_ns" in t else "end_ns"].max()) for t in tables if len(t)]
    life = trace.life
    first = min(begins, default=life.end_ns)
    last = max(ends, default=life.end_ns)
    return (
        min(max(first, life.begin_ns), life.end_ns),
        min(max(last, life.begin_ns), life.end_ns),
    )


def _caller(trace: Trace) -> int:
    """The thread that makes most calls."""
    tids = (trace.calls if len(trace.calls) else trace.graphs)["tid"].to_numpy()
    if not len(tids):
        return trace.meta.target.pid or -1
    each, calls = np.unique(tids, return_counts=True)
    return int(each[calls.argmax()])


def _states(trace: Trace) -> dict[int, Spans]:
    """What the calling thread does, by state, where it does anything else than its work."""
    tid = _caller(trace)
    out: dict[int, Spans] = {}
    faults = trace.faults if trace.has_faults else None
    if faults is not None and len(faults):
        # A run of minor faults is not one stretch: only major ones are.
        mine = faults[((faults["tid"] == tid) & faults["major"]).to_numpy()]
        out[_FAULTS] = (mine["ts_ns"].to_numpy(np.int64), mine["end_ns"].to_numpy(np.int64))
    if trace.has_sched:
        sched = trace.sched
        asleep = ((sched["tid"] == tid) & (sched["state"] == "blocked")).to_numpy()
        disk = asleep & (sched["reason"] == "uninterruptible").to_numpy()
        out[_RUNNABLE] = _spans(sched[((sched["tid"] == tid) & (sched["state"] == "runnable"))])
        out[_ASLEEP] = _spans(sched[asleep & ~disk])
        out[_DISK] = _spans(sched[disk])
    return out


def _outside(trace: Trace, edges: I64, owner: I64, states: dict[int, Spans]) -> I64:
    """Time outside of all layers by zone and by what the calling thread does: [zone, state]."""
    first, last = _ends(trace)
    begin, length = edges[:-1], np.diff(edges)
    zone = np.where(begin < first, _LOAD, np.where(begin < last, _BETWEEN, _AFTER))
    state = np.full(len(length), _WORK, np.int64)
    for number, spans in sorted(states.items()):
        state[_covered(edges, spans)] = number
    out = np.zeros((3, 5), np.int64)
    free = owner < 0
    np.add.at(out, (zone[free], state[free]), length[free])
    return out


def _state_rows(zone: str, name: str, times: I64, work: str) -> list[tuple[str, str, int]]:
    labels = {
        _DISK: ("disk", "waiting for the disk"),
        _FAULTS: ("faults", "major page faults"),
        _ASLEEP: ("asleep", "asleep, waiting for something else"),
        _RUNNABLE: ("runnable", "waiting for a CPU"),
        _WORK: ("work", work),
    }
    return [
        (f"{zone}.{key}", f"{name}: {label}", int(times[state]))
        for state, (key, label) in labels.items()
    ]
