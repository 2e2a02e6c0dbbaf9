"""Layer 5: a trace with meaning: metadata and tables, each built when it is first asked for.

Owns the tables' columns (``docs/metrics.md`` lists them). Times are int64 nanoseconds of
CLOCK_MONOTONIC. Must not import the analyses or anything above, nor bcc, elftools or capstone.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Self
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.engine.roles import role_rules
from profinfer.model import experts as moe
from profinfer.model import memory, schedtables, surroundings
from profinfer.model.backendnames import BackendNames
from profinfer.model.backendops import backend_operators
from profinfer.model.backends import BackendTables, with_done
from profinfer.model.backends import build as build_backends
from profinfer.model.calls import Spans
from profinfer.model.calls import build as build_spans
from profinfer.model.choose import Wish, choose
from profinfer.model.counts import Counts
from profinfer.model.counts import build as build_counts
from profinfer.model.decode import Records, decode
from profinfer.model.definitions import Definitions
from profinfer.model.definitions import build as build_definitions
from profinfer.model.dependencies import Dependencies, of_definition
from profinfer.model.edges import Edges
from profinfer.model.edges import find as find_edges
from profinfer.model.hits import hits_passed
from profinfer.model.holes import Holes
from profinfer.model.life import Life
from profinfer.model.life import life as find_life
from profinfer.model.losses import (
    EVERY_SPAN,
    GRAPHS,
    beyond_the_ends,
    operators_lost,
    spans_lost,
    tally,
)
from profinfer.model.nodes import NodeTables
from profinfer.model.nodes import build as build_nodes
from profinfer.model.operands import Operands
from profinfer.model.operands import build as build_operands
from profinfer.model.operators import Operators
from profinfer.model.operators import build as build_operators
from profinfer.model.opmarks import collect
from profinfer.model.oprows import piece
from profinfer.model.opsched import OpSched, per_operator
from profinfer.model.optables import rows_table, walls_table
from profinfer.model.requests import requests as find_requests
from profinfer.model.residents import Residents
from profinfer.model.residents import build as build_residents
from profinfer.model.results import with_results
from profinfer.model.schedule import Schedule
from profinfer.model.selection import Selection
from profinfer.model.sums import NodeSums, ThreadSums, per_node, per_thread
from profinfer.model.threadtable import threads_table
from profinfer.model.tokens import counted
from profinfer.model.tokentable import tokens_table
from profinfer.model.visits import Events, GraphSpans, Visits
from profinfer.model.visits import split as split_visits
from profinfer.model.wanted import Narrowed, wanted_nodes
from profinfer.model.windows import Window, inside, leave_out, limit_missed, windows
from profinfer.tracefile.metadata import TraceMetadata
from profinfer.tracefile.reader import TraceReader
from profinfer.tracefile.schema import Kind

TABLES = (
    "calls",
    "sequences",
    "tokens",
    "samples",
    "requests",
    "splits",
    "graphs",
    "nodes",
    "edges",
    "ops",
    "counters",
    "op_walls",
    "empty_ops",
    "empty_walls",
    "threads",
    "sched",
    "op_sched",
    "faults",
    "reads",
    "residence",
    "experts",
    "expert_weights",
    "system_counters",
    "frequency",
    "throttling",
    "copies",
    "syncs",
    "backend_work",
    "backend_ops",
)


# How a recording ends that ends before its target.
_EXCERPTS = ("duration over", "detached")


class Trace:
    """One recorded run.

    Attributes:
        path: the file.
        reader: the open file.
        meta: its metadata.
    """

    def __init__(self, reader: TraceReader) -> None:
        """Wrap an open reader; nothing is decoded yet."""
        self.path: Path = reader.path
        self.reader = reader
        self.meta: TraceMetadata = reader.meta
        self._dependencies: dict[int, Dependencies] = {}
        self._selections: dict[Wish, Selection] = {}
        self._sums: WeakKeyDictionary[Selection, NodeSums] = WeakKeyDictionary()
        self._thread_sums: WeakKeyDictionary[Selection, ThreadSums] = WeakKeyDictionary()

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Open a trace file.

        Raises:
            TraceError: the file is not a trace that this version can read.
        """
        return cls(TraceReader(path))

    # -- tables ------------------------------------------------------------------------------

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table by name, ``counters`` if any; builds those that are not built yet."""
        counted = bool(self.meta.plan.counters)
        return {name: getattr(self, name) for name in TABLES if counted or name != "counters"}

    @cached_property
    def calls(self) -> pd.DataFrame:
        """One row per call of llama_decode and its like; nested calls are folded."""
        spans = self._spans
        return with_results(spans.calls, spans.splits, lambda: self.syncs, self.lost_calls)

    @property
    def sequences(self) -> pd.DataFrame:
        """One row per call and sequence of its batch: whose tokens they are."""
        return self._spans.sequences

    @cached_property
    def tokens(self) -> pd.DataFrame:
        """One row per token of a call: its sequence and position, and how long it took."""
        return tokens_table(self.calls, self.sequences)

    @property
    def samples(self) -> pd.DataFrame:
        """One row per outermost sampler call."""
        return self._spans.samples

    @cached_property
    def requests(self) -> pd.DataFrame:
        """One row per task of a server: when it was queued, and given to which slot."""
        return find_requests(self._records)

    @cached_property
    def splits(self) -> pd.DataFrame:
        """One row per part of a graph handed to a backend."""
        spans = self._spans
        of_call = np.r_[spans.calls["ctx"].to_numpy(), np.uint64(0)]
        told = spans.splits.assign(
            ctx=of_call[spans.splits["call_id"].to_numpy()],
            def_id=self._definitions.of_split[spans.split_row],
        )
        return with_done(told, self.syncs)

    @property
    def copies(self) -> pd.DataFrame:
        """One row per copy to, from or between tensors; one may lie in another."""
        return self._backends.copies

    @property
    def syncs(self) -> pd.DataFrame:
        """One row per wait for a backend."""
        return self._backends.syncs

    @property
    def backend_work(self) -> pd.DataFrame:
        """One row per call of a backend's own functions: gemm, messages, command recording."""
        return self._backends.work

    @cached_property
    def backend_ops(self) -> pd.DataFrame:
        """One row per operator that another backend than the CPU computed node by node."""
        return backend_operators(self.splits, self.nodes, self.backend_work)

    @cached_property
    def graphs(self) -> pd.DataFrame:
        """One row per ggml_graph_compute, what its operators tell included."""
        told = self._operators.graphs
        graphs = self._spans.graphs
        has_ops = self.meta.plan.ops.mode != "none"
        complete = graphs["complete"].to_numpy() & ~graphs["partial"].to_numpy()
        if has_ops:
            fewer = told.threads < graphs["n_threads"].to_numpy()
            # OpenMP may give fewer threads than asked for; a loss may hide one.
            covered = told.covered & ~(fewer & self._ops_lost)
            complete = complete & (covered | ~self._sampled)
        return graphs.assign(
            threads_seen=told.threads.astype(np.int32),
            enter_ns=told.enter,
            release_ns=told.release,
            sampled=self._sampled if has_ops else False,
            complete=complete,
        )

    @property
    def nodes(self) -> pd.DataFrame:
        """One row per node of each distinct graph definition."""
        return self._nodes.nodes

    @property
    def edges(self) -> pd.DataFrame:
        """One row per source of each node."""
        return self._nodes.edges

    @cached_property
    def operands(self) -> Operands:
        """Shapes and bytes of what every node reads and writes, as arrays."""
        return build_operands(self._definitions, self.meta.engine)

    def dependencies(self, def_id: int) -> Dependencies:
        """Which node of a definition has to wait for which; indices are places in the graph."""
        if def_id not in self._dependencies:
            index = self._nodes.index
            base = int(index.base[def_id])
            works = index.works[base : base + int(index.count[def_id])]
            item = self._definitions.items[def_id]
            self._dependencies[def_id] = of_definition(item, works, self.operands, base)
        return self._dependencies[def_id]

    def producers(self, def_id: int) -> dict[int, tuple[int, ...]]:
        """Nodes with work that each node with work waits for, by node_id; views looked through."""
        index = self._nodes.index
        base = int(index.base[def_id])
        edges = self.dependencies(def_id).through(
            index.works[base : base + int(index.count[def_id])]
        )
        out: dict[int, tuple[int, ...]] = {}
        for src, dst in zip(edges.src.tolist(), edges.dst.tolist(), strict=True):
            out[base + dst] = (*out.get(base + dst, ()), base + src)
        return out

    @cached_property
    def ops(self) -> pd.DataFrame:
        """One row per operator and thread; compute is end - begin, wait is release - end."""
        return rows_table(self._operators.rows)

    @cached_property
    def counters(self) -> pd.DataFrame:
        """What was counted in each row of ``ops``: NaN where it is not known. See ``counted``."""
        names = [counter.name for counter in self.meta.plan.counters]
        return pd.DataFrame(self.counted.values, columns=names, index=self.ops.index)

    @cached_property
    def counted(self) -> Counts:
        """``counters`` as an array, with how far they can be trusted."""
        plan = self.meta.plan
        return build_counts(self.reader.ops(), self.reader.counts(), self._operators.rows,
                            len(plan.counters), pair=plan.ops.mode == "pair")  # fmt: skip

    @cached_property
    def op_walls(self) -> pd.DataFrame:
        """One row per operator of a graph, all threads together, in order of execution."""
        return walls_table(self._operators.walls)

    @cached_property
    def empty_ops(self) -> pd.DataFrame:
        """Like ``ops``, for empty nodes with a barrier after them (older engines); fused is 0."""
        return rows_table(self._operators.empty_rows)

    @cached_property
    def empty_walls(self) -> pd.DataFrame:
        """Like ``op_walls``, for empty nodes with a barrier after them (older engines)."""
        return walls_table(self._operators.empty_walls)

    @cached_property
    def threads(self) -> pd.DataFrame:
        """One row per thread that left any record of its own; the scheduler's are none."""
        return threads_table(self.reader.records(), self._operators, self._thread_names)

    @property
    def has_sched(self) -> bool:
        """Whether the scheduler's events were recorded."""
        return len(self.schedule) > 0

    @cached_property
    def sched(self) -> pd.DataFrame:
        """One row per stretch of a thread's time: running, runnable, blocked, and by whom."""
        return schedtables.stretches(self.schedule)

    @cached_property
    def op_sched(self) -> pd.DataFrame:
        """One row per row of ``ops``: what the scheduler did to it. Empty if not recorded."""
        rows = self._operators.rows
        told = rows if self.has_sched else piece(rows, slice(0))
        return schedtables.per_operator(told, self.disturbed)

    @cached_property
    def disturbed(self) -> OpSched:
        """Of ``op_sched``, as arrays, the rows of threads that were not on a CPU all the time."""
        operators = self._operators
        return per_operator(operators.rows, operators.tids, self.schedule)

    @cached_property
    def schedule(self) -> Schedule:
        """The stretches as arrays."""
        return schedtables.read(self.reader, self._records.last_ns)

    @cached_property
    def faults(self) -> pd.DataFrame:
        """One row per major page fault or run of minor ones, with tensor and operator."""
        return memory.faults(self._records, self.residents, self.graphs, self._operators)

    @cached_property
    def reads(self) -> pd.DataFrame:
        """One row per read that the target made a disk do, with file, tensor and operator."""
        return memory.reads(self._records, self.residents, self.graphs, self._operators)

    @cached_property
    def residence(self) -> pd.DataFrame:
        """One row per reading of the target's memory sizes."""
        return memory.residence(self.reader.notes)

    @cached_property
    def system_counters(self) -> pd.DataFrame:
        """One row per counter of the whole system and reading."""
        facts = self.meta.extra.get("surroundings")
        known = facts if isinstance(facts, dict) else {}
        return surroundings.system_counters(self.reader.notes, known)

    @cached_property
    def frequency(self) -> pd.DataFrame:
        """One row per CPU and change of its clock."""
        return surroundings.frequency(self.reader.notes)

    @cached_property
    def throttling(self) -> pd.DataFrame:
        """One row per reading that found the target's cgroup throttled anew."""
        return surroundings.throttling(self.reader.notes)

    @cached_property
    def residents(self) -> Residents:
        """Where weights, KV cache and data files lie in the target's memory."""
        return build_residents(self._records, self.meta.engine, self.meta.memory)

    @property
    def has_faults(self) -> bool:
        """Whether page faults were recorded."""
        return self.meta.memory.get("recorded") is True

    @property
    def experts(self) -> pd.DataFrame:
        """One row per token, layer and expert that the router chose for it."""
        return self.routing.table

    @cached_property
    def expert_weights(self) -> pd.DataFrame:
        """One row per expert and tensor of experts' weights: bytes and addresses."""
        return moe.weights(self.expert_places, self.nodes, self.residents)

    @property
    def has_experts(self) -> bool:
        """Whether the recorder read which experts tokens are routed to, if the model has any."""
        return self.meta.experts.get("recorded") is True

    @cached_property
    def routing(self) -> moe.Routing:
        """``experts``, and what is missing of it."""
        return moe.build(
            self.reader.experts(), self.expert_places, self._nodes, self.graphs, self.calls,
            self.sequences, recorded=self.has_experts, wanted=self._wanted_nodes,
        )  # fmt: skip

    @cached_property
    def expert_places(self) -> moe.Places:
        """The nodes that compute with experts, as arrays."""
        return moe.find_places(self._definitions, self._nodes, list(self.meta.engine.ops))

    @cached_property
    def losses(self) -> dict[str, int]:
        """What is missing or could not be understood, by kind; all zero for a sound trace."""
        return tally(self.reader, self._spans, self._definitions, self._nodes, self._operators,
                     self._visits, self.graphs, self.routing.lost_rows)  # fmt: skip

    @cached_property
    def missing(self) -> dict[str, int]:
        """``losses`` that are not zero, without what the two ends of an excerpt explain."""
        found = self.losses
        if self.excerpt:
            found = beyond_the_ends(found, self.excerpt_edges, self.graphs)
        return {name: n for name, n in found.items() if n}

    @property
    def problems(self) -> list[str]:
        """What is wrong with the file itself, as sentences."""
        out = list(self.reader.problems)
        if not self.reader.complete and not any("trailer" in p for p in out):
            out.append("the recording did not finish: the file has no trailer")
        return out

    @property
    def lost_calls(self) -> Holes:
        """When calls were lost, of which threads."""
        return self._spans.holes["calls"]

    @property
    def may_be_glued(self) -> bool:
        """Begins and ends were lost and had no numbers: two spans may have been taken for one."""
        numbered = all(holes.numbered for holes in self._spans.holes.values())
        return not numbered and spans_lost(self.reader, EVERY_SPAN)

    @cached_property
    def narrowed(self) -> Narrowed:
        """Operators and threads that the recording was narrowed to."""
        return Narrowed.of(self.meta.options)

    @property
    def hits_passed(self) -> int:
        """Hits of operators' probes that were asked to leave no record."""
        return hits_passed(self.reader)

    @property
    def tokens_from_graphs(self) -> int:
        """Calls whose number of tokens was not read, but taken from their graphs."""
        return self._counted[1]

    @property
    def op_health(self) -> Operators:
        """The operators as arrays, with the counts of what did not fit."""
        return self._operators

    @cached_property
    def windows(self) -> list[Window]:
        """When operators were recorded; empty if always, or never."""
        return windows(self.reader.notes)

    @property
    def limit_missed(self) -> str:
        """Why the recorder could not keep a limit, "" if it could."""
        return limit_missed(self.reader.notes)

    @cached_property
    def life(self) -> Life:
        """From when to when the target ran while it was recorded."""
        records = self._records
        return find_life(self.reader.notes, self.meta, self.reader.trailer, excerpt=self.excerpt,
                         first_ns=records.first_ns, last_ns=records.last_ns)  # fmt: skip

    @property
    def visits(self) -> Visits:
        """Each thread's passes through graphs."""
        return self._visits

    # -- selection ---------------------------------------------------------------------------

    @property
    def excerpt(self) -> bool:
        """The target ran before the recording began, or went on after it ended.

        What was under way at these two moments is left out of every selection; it is no loss.
        """
        return self._joined or self._left

    @cached_property
    def excerpt_edges(self) -> Edges:
        """What is missing elsewhere than at the two ends of an excerpt."""
        functions = {p.id: p.function or "" for p in self.meta.plan.probes}
        return find_edges(
            self._records,
            self._spans.loose,
            functions,
            self._visits,
            self._operators.orphans,
            joined=self._joined,
            left=self._left,
        )

    def select(
        self,
        *,
        phase: str | None = None,
        tokens: tuple[int, int] | None = None,
        op: str | None = None,
        layer: tuple[int, int] | None = None,
        warmup: bool = False,
        unsampled: bool = False,
    ) -> Selection:
        """The part of the trace that a view is to cover.

        Args:
            phase: only calls of this phase; None takes all.
            tokens: only calls that decode a token whose token_index lies in [a, b).
            op: only nodes of this operator type.
            layer: only nodes whose layer lies in [a, b).
            warmup: keep warm-up calls when ``phase`` is None.
            unsampled: keep calls without operators, where their probes were taken away for a
                while; otherwise only calls whose graphs were all recorded with operators.
        """
        wish = Wish(phase, tokens, op, layer, warmup, unsampled)
        # The same wish, the same object: what was summed for it is known to all who ask.
        if wish not in self._selections:
            self._selections[wish] = choose(self, wish, sampled=self._sampled, joined=self._joined)
        return self._selections[wish]

    def sums(self, selection: Selection) -> NodeSums:
        """The selected operators summed per node; kept as long as the selection is."""
        if selection not in self._sums:
            self._sums[selection] = per_node(self._operators.walls, selection)
        return self._sums[selection]

    def thread_sums(self, selection: Selection) -> ThreadSums:
        """The selected operators summed per thread; kept as long as the selection is."""
        if selection not in self._thread_sums:
            told = self._operators
            self._thread_sums[selection] = per_thread(told.rows, told.tids, selection)
        return self._thread_sums[selection]

    # -- inside ------------------------------------------------------------------------------

    @property
    def _joined(self) -> bool:
        """The target ran when the recording began."""
        return self.meta.options.get("attached") is True

    @property
    def _left(self) -> bool:
        """The target went on when the recording ended."""
        trailer = self.reader.trailer
        return trailer is not None and trailer.reason in _EXCERPTS

    @cached_property
    def _records(self) -> Records:
        since = self.meta.options.get("attached_ns")
        return decode(self.reader, since if isinstance(since, int) else None)

    @cached_property
    def _definitions(self) -> Definitions:
        return build_definitions(self._records, self.meta.engine)

    @cached_property
    def _nodes(self) -> NodeTables:
        return build_nodes(self._definitions, self.meta.engine, role_rules())

    @cached_property
    def _counted(self) -> tuple[Spans, int]:
        spans = build_spans(self._records, self.meta, self._names,
                            graphs_lost=spans_lost(self.reader, GRAPHS))  # fmt: skip
        def_id = self._definitions.of_graph[spans.graph_row]
        spans.graphs["def_id"] = def_id
        return counted(spans, self._nodes.nodes)

    @cached_property
    def _names(self) -> BackendNames:
        return BackendNames(self.meta, self.reader.trailer)

    @cached_property
    def _backends(self) -> BackendTables:
        return build_backends(self._records, self.meta, self._names, self._spans.calls)

    @property
    def _spans(self) -> Spans:
        return self._counted[0]

    @cached_property
    def _split(self) -> tuple[Events, Visits]:
        graphs = self._spans.graphs
        end = graphs["end_ns"].to_numpy().copy()
        end[graphs["cut"].to_numpy()] = np.iinfo(np.int64).max
        spans = GraphSpans(graphs["cgraph"].to_numpy(), graphs["begin_ns"].to_numpy(), end)
        events, visits = split_visits(self._records, spans)
        return leave_out(events, visits, self._sampled, self.windows)

    @cached_property
    def _sampled(self) -> npt.NDArray[np.bool_]:
        """Graphs during which the operators' probes were in place."""
        graphs = self._spans.graphs
        begin, end = graphs["begin_ns"].to_numpy(), graphs["end_ns"].to_numpy()
        wanted: npt.NDArray[np.bool_] = graphs["wanted"].to_numpy()
        return inside(begin, end, self.windows) & wanted

    @property
    def partly_sampled(self) -> bool:
        """Operators were recorded during some graphs only, by intention."""
        return not self._sampled.all()

    @property
    def _visits(self) -> Visits:
        return self._split[1]

    @cached_property
    def _operators(self) -> Operators:
        events, passes = self._split
        def_id: npt.NDArray[np.int32] = self._spans.graphs["def_id"].to_numpy()
        index = self._nodes.index
        # The flat events and what they were made of are large, and no table needs them again.
        nothing = Events(events.ts[:0], events.kind[:0], events.arg[:0], events.visit[:0])
        self.__dict__["_split"] = (nothing, passes)
        records = self._records
        self.__dict__["_records"] = replace(records, ops=np.zeros(0, records.ops.dtype))
        del records
        collected = collect(events, passes, def_id, index, self.meta.plan.ops)
        del events
        return build_operators(collected, passes, def_id, self._wanted_nodes)

    @property
    def _wanted_nodes(self) -> npt.NDArray[np.bool_] | None:
        """Nodes that records were left of, None for all."""
        return wanted_nodes(self.nodes, self.narrowed) if self.narrowed.by_node else None

    @cached_property
    def _ops_lost(self) -> bool:
        return self._visits.lost_batches > 0 or operators_lost(self.reader)

    @cached_property
    def _thread_names(self) -> dict[int, str]:
        rows = self._records.rows[Kind.THREAD]
        names = {
            int(t): c.decode("utf-8", "replace")
            for t, c in zip(rows["tid"].tolist(), rows["comm"].tolist(), strict=True)
        }
        trailer = self.reader.trailer
        if trailer:
            names |= {int(t): n for t, n in trailer.threads.items() if t.isdigit() and n}
        return names
