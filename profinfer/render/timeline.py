"""Layer 7: the part of a trace that is drawn on a timeline, as tables.

Owns which rows are drawn and what the timeline says of the recording. Knows no output format.
May import numpy and pandas; must not import perfetto or the command line.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from profinfer.analysis import counters, latency
from profinfer.analysis.work import per_execution
from profinfer.model.windows import Window
from profinfer.render.trackevent import Ints

COUNTED = "counted:"  # before the name of a counter, in the columns of the nodes

if TYPE_CHECKING:
    from profinfer.model.selection import Selection
    from profinfer.model.trace import Trace
    from profinfer.render.backendtracks import BackendEvents


@dataclass(frozen=True)
class Recording:
    """What the recording says of itself.

    Attributes:
        pid: process id of the target, 0 if unknown.
        process: name of the target.
        argv: its command line.
        monotonic_ns: the clock of every timestamp, read together with realtime_ns.
        realtime_ns: wall clock, ns since 1970; None if unknown.
        boottime_ns: CLOCK_BOOTTIME at that moment; None if unknown.
        facts: what to show of the recording: engine, version, ...
        losses: counter name -> how many, only those that are not zero.
    """

    pid: int
    process: str
    argv: tuple[str, ...] = ()
    monotonic_ns: int = 0
    realtime_ns: int | None = None
    boottime_ns: int | None = None
    facts: dict[str, str | int] = field(default_factory=dict)
    losses: dict[str, int] = field(default_factory=dict)


def _no_states() -> pd.DataFrame:
    """A ``sched`` table without rows."""
    names = "tid begin_ns end_ns state reason cpu by_name by_pid by_prio".split()
    return pd.DataFrame({name: [] for name in names})


@dataclass(frozen=True)
class Timeline:
    """The tables to draw, with the columns of ``profinfer.model``; any may be empty."""

    calls: pd.DataFrame
    samples: pd.DataFrame
    splits: pd.DataFrame
    graphs: pd.DataFrame
    nodes: pd.DataFrame
    ops: pd.DataFrame
    threads: pd.DataFrame
    generations: pd.DataFrame
    recording: Recording
    windows: tuple[Window, ...] = ()
    sched: pd.DataFrame = field(default_factory=_no_states)
    residence: pd.DataFrame | None = None
    faults: pd.DataFrame | None = None
    backends: BackendEvents | None = None

    @property
    def empty(self) -> bool:
        """Whether there is nothing to draw."""
        return not any(map(len, (self.calls, self.samples, self.splits, self.graphs)))

    @classmethod
    def of_trace(cls, trace: Trace, selection: Selection | None = None) -> Self:
        """The timeline of a trace, or of the calls and graphs that are selected of it.

        Only whole graphs can be drawn: a selection of operators or layers is not looked at.
        """
        recording = _recording(trace, selection)
        work, _ = per_execution(trace)
        nodes = trace.nodes.assign(flops=work.flops, moved=work.moved, written=work.written)
        nodes = pd.concat([nodes, counters.means(trace).add_prefix(COUNTED)], axis=1)
        if selection is None:
            return cls(
                trace.calls,
                trace.samples,
                trace.splits,
                trace.graphs,
                nodes,
                _operators(trace),
                trace.threads,
                latency.generations(trace),
                recording,
                tuple(trace.windows),
                trace.sched,
                trace.residence,
                trace.faults,
            )
        calls, graphs = trace.calls, trace.graphs
        kept_splits = np.zeros(len(trace.splits), np.bool_)
        kept_splits[ints(trace.splits, "call_id") >= 0] = True
        kept_splits &= np.append(selection.calls, False)[ints(trace.splits, "call_id")]
        ops = _operators(trace)
        of_graph = ints(graphs[selection.graphs], "split_id")
        kept_splits |= np.isin(ints(trace.splits, "split_id"), of_graph[of_graph >= 0])
        return cls(
            calls[selection.calls],
            trace.samples[_sampled(trace, selection)],
            trace.splits[kept_splits],
            graphs[selection.graphs],
            nodes,
            ops[selection.graphs[ints(ops, "graph_id")]],
            trace.threads,
            _begun(trace, selection),
            recording,
            tuple(trace.windows),
            trace.sched,
            trace.residence,
            trace.faults,
        )


def _operators(trace: Trace) -> pd.DataFrame:
    """Operators, and empty nodes with a barrier after them (older engines): their fused is 0."""
    if not len(trace.empty_ops):
        return trace.ops
    return pd.concat([trace.ops, trace.empty_ops], ignore_index=True)


def _sampled(trace: Trace, selection: Selection) -> NDArray[np.bool_]:
    """Samplings that belong to a selected call: the last one that began before on the thread."""
    calls, samples = trace.calls, trace.samples
    kept = np.zeros(len(samples), np.bool_)
    begin, tid = ints(samples, "begin_ns"), ints(samples, "tid")
    call_begin, call_tid = ints(calls, "begin_ns"), ints(calls, "tid")
    for one in np.unique(tid).tolist():
        theirs = np.flatnonzero(call_tid == one)
        theirs = theirs[np.argsort(call_begin[theirs], kind="stable")]
        mine = np.flatnonzero(tid == one)
        at = np.searchsorted(call_begin[theirs], begin[mine], side="right") - 1
        kept[mine[at >= 0]] = selection.calls[theirs[at[at >= 0]]]
    return kept


def _begun(trace: Trace, selection: Selection) -> pd.DataFrame:
    """Generations whose first call is selected, up to the last selected call."""
    table = latency.generations(trace)
    calls = trace.calls[selection.calls]
    first = set(zip(calls["ctx"].tolist(), calls["begin_ns"].tolist(), strict=True))
    keys = zip(table["ctx"].tolist(), table["begin_ns"].tolist(), strict=True)
    table = table[np.array([key in first for key in keys], bool)]
    last = int(calls["end_ns"].max()) if len(calls) else 0
    return table.assign(end_ns=table["end_ns"].clip(upper=last))


def _recording(trace: Trace, selection: Selection | None) -> Recording:
    meta = trace.meta
    argv = meta.target.argv
    trailer = trace.reader.trailer
    program = meta.target.exe or (argv[0] if argv else "")
    ended = trailer.reason if trailer and trailer.reason else "the recording did not finish"
    facts: dict[str, str | int | None] = {
        "engine": " ".join(filter(None, (meta.engine.name, meta.engine.version))),
        "profinfer_version": meta.profinfer,
        "recorded": meta.created_utc,
        "exe": meta.target.exe,
        "cwd": meta.target.cwd,
        "kernel": meta.host.kernel,
        "machine": meta.host.machine,
        "cpu": meta.host.cpu_model,
        "cpus_online": meta.host.cpus_online,
        "operators": meta.plan.ops.mode,
        "probes": len(meta.plan.probes),
        "probes_skipped": len(meta.plan.skipped),
        "ended": ended,
        "exit_code": trailer.exit_code if trailer else None,
        "problems": "; ".join(trace.problems),
        "covers": selection.description if selection else "the whole recording",
    }
    return Recording(
        pid=meta.target.pid or 0,
        process=program.rsplit("/", 1)[-1] or "unknown",
        argv=argv,
        monotonic_ns=meta.clock.monotonic_ns,
        realtime_ns=meta.clock.realtime_ns,
        boottime_ns=meta.clock.boottime_ns,
        facts={key: fact for key, fact in facts.items() if fact is not None and fact != ""},
        losses={name: n for name, n in trace.losses.items() if n},
    )


def ints(frame: pd.DataFrame, column: str) -> Ints:
    """A column as int64; missing values become -1."""
    if not len(frame):
        return np.empty(0, np.int64)
    return np.asarray(frame[column].to_numpy(dtype=np.int64, na_value=-1), np.int64)


def first_and_last(timeline: Timeline) -> tuple[int, int]:
    """The times between which everything lies, ns."""
    first, last = [], []
    tables = (timeline.calls, timeline.samples, timeline.splits, timeline.graphs)
    for table in (*tables, timeline.generations, timeline.ops):
        if len(table):
            begin = ints(table, "begin_ns")
            ends = ints(table, "release_ns" if table is timeline.ops else "end_ns")
            first.append(int(begin.min()))
            last.append(max(int(begin.max()), int(ends.max())))
    now = timeline.recording.monotonic_ns
    return min(first, default=now), max(last, default=now)
