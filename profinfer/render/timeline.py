"""Layer 7: the part of a trace that is drawn on a timeline, as tables.

Owns which rows of a trace are drawn. Knows no output format.
May import numpy and pandas; must not import perfetto or the command line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from profinfer.analysis import counters, latency
from profinfer.analysis.work import per_execution
from profinfer.model.counts import Counter
from profinfer.model.windows import Window
from profinfer.render import opdetails
from profinfer.render.about import Recording, about
from profinfer.render.series import Series
from profinfer.render.series import of_trace as series_of
from profinfer.render.trackevent import Ints

COUNTED = "counted:"  # before the name of a counter, in the columns of the nodes

if TYPE_CHECKING:
    from profinfer.model.selection import Selection
    from profinfer.model.trace import Trace
    from profinfer.render.backendtracks import BackendEvents


def _no_states() -> pd.DataFrame:
    """A ``sched`` table without rows."""
    names = "tid begin_ns end_ns state reason cpu by_name by_pid by_prio".split()
    return pd.DataFrame({name: [] for name in names})


@dataclass(frozen=True)
class OpCounts:
    """What counters counted in each row of the ``ops`` of a timeline.

    Attributes:
        counters: which.
        values: NaN where it is not known, shape (ops, counters).
        since_ns: when counting for the row began, -1 if not known, shape (ops,).
    """

    counters: tuple[Counter, ...]
    values: NDArray[np.float64]
    since_ns: Ints

    def take(self, rows: NDArray[np.bool_]) -> OpCounts:
        """A part of the rows."""
        return OpCounts(self.counters, self.values[rows], self.since_ns[rows])


@dataclass(frozen=True)
class Timeline:
    """The tables to draw, with the columns of ``profinfer.model``; any may be empty.

    Attributes:
        counted: what was counted at the rows of ``ops``.
        series: counters of the process.
        quota: the target's cgroup limits its CPU time.
        details: arguments of single executions: columns graph_id and node_id, and a text column
            for each argument.
        producers: nodes that each node waits for, by node_id, if flows are to be drawn.
        min_ns: operators and waits that are shorter are left out.
        backends: what backends other than the CPU did, if it is to be drawn.
    """

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
    faults: pd.DataFrame | None = None
    reads: pd.DataFrame | None = None
    counted: OpCounts | None = None
    series: tuple[Series, ...] = ()
    quota: bool = False
    details: pd.DataFrame | None = None
    producers: Mapping[int, tuple[int, ...]] | None = None
    min_ns: int = 0
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
        whole = cls(
            trace.calls,
            trace.samples,
            trace.splits,
            trace.graphs,
            _nodes(trace),
            _operators(trace),
            trace.threads,
            latency.generations(trace),
            about(trace, selection),
            tuple(trace.windows),
            trace.sched,
            trace.faults,
            trace.reads,
            _counted(trace),
            series_of(trace),
            details=opdetails.of_trace(trace),
            quota=bool((trace.meta.limits.get("cgroup") or {}).get("quota_us")),
        )
        if selection is None:
            return whole
        calls, graphs = trace.calls, trace.graphs
        kept_splits = np.zeros(len(trace.splits), np.bool_)
        kept_splits[ints(trace.splits, "call_id") >= 0] = True
        kept_splits &= np.append(selection.calls, False)[ints(trace.splits, "call_id")]
        of_graph = ints(graphs[selection.graphs], "split_id")
        kept_splits |= np.isin(ints(trace.splits, "split_id"), of_graph[of_graph >= 0])
        part = replace(
            whole,
            calls=calls[selection.calls],
            samples=trace.samples[_sampled(trace, selection)],
            splits=trace.splits[kept_splits],
            graphs=graphs[selection.graphs],
            generations=_begun(trace, selection),
        )
        return part.with_ops(selection.graphs[ints(whole.ops, "graph_id")])

    def with_ops(self, rows: NDArray[np.bool_]) -> Self:
        """With these operators only."""
        if rows.all():
            return self
        counted = None if self.counted is None else self.counted.take(rows)
        return replace(self, ops=self.ops[rows], counted=counted)


def _nodes(trace: Trace) -> pd.DataFrame:
    """The nodes, with their work, and what an execution took and counted in the mean."""
    work = per_execution(trace)
    walls = trace.op_walls
    node, n = ints(walls, "node_id"), len(trace.nodes)
    took = np.bincount(node, ints(walls, "release_ns") - ints(walls, "begin_ns"), n)
    with np.errstate(invalid="ignore"):
        mean = took / np.bincount(node, minlength=n)
    nodes = trace.nodes.assign(
        flops=work.flops, moved=work.moved, written=work.written, mean_ns=mean
    )
    return pd.concat([nodes, counters.means(trace).add_prefix(COUNTED)], axis=1)


def _counted(trace: Trace) -> OpCounts | None:
    """What was counted, aligned with ``_operators``."""
    names = trace.meta.plan.counters
    if not names or not len(trace.ops):
        return None
    more = len(trace.empty_ops)
    return OpCounts(
        tuple(names),
        np.vstack([trace.counted.values, np.full((more, len(names)), np.nan)]),
        np.r_[trace.counted.since_ns, np.full(more, -1, np.int64)],
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
    last = int(calls["done_ns"].max()) if len(calls) else 0
    return table.assign(end_ns=table["end_ns"].clip(upper=last))


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
