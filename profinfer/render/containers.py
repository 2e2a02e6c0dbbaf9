"""Layer 7: how calls, samplings, splits and graphs look on a timeline.

Owns their names and arguments. May import numpy and pandas; must not import the command line.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from profinfer.render.events import Spans
from profinfer.render.nesting import CALL, GRAPH, SAMPLE, SPLIT, Containers
from profinfer.render.packets import Packets
from profinfer.render.timeline import Timeline
from profinfer.render.trackevent import Ints

Args = dict[str, str | int | float | bool]


def _rows(table: pd.DataFrame) -> list[Any]:
    return list(table.itertuples(index=False))


def call_name(call: Any) -> str:
    """Name of a call's slice: "decode #12 (1 token, pos 40)", "prefill (68 tokens)"."""
    n = int(call.n_tokens)
    tokens = "" if n < 0 else f"{n} token" if n == 1 else f"{n} tokens"
    phase = str(call.phase)
    if phase == "warmup":
        return "warm-up"
    if call.n_seqs > 1:
        return f"{phase} ({tokens} of {call.n_seqs} sequences)"
    if phase == "decode":
        pos = f"pos {call.pos_first}" if call.pos_first >= 0 else ""
        what = ", ".join(filter(None, (tokens, pos)))
        name = f"decode #{call.token_index}" if call.token_index >= 0 else "decode"
        return f"{name} ({what})" if what else name
    name = phase if phase != "other" else str(call.function)
    return f"{name} ({tokens})" if tokens else name


class ContainerSlices:
    """Templates of the containers, made as they are needed."""

    def __init__(
        self,
        packets: Packets,
        timeline: Timeline,
        containers: Containers,
        tids: Ints,
        first_track: int,
    ) -> None:
        """Prepare; ``tids`` are the sorted threads, whose tracks begin at ``first_track``."""
        self._packets = packets
        self._containers = containers
        self._track = np.searchsorted(tids, containers.tid) + first_track
        self._calls = _rows(timeline.calls)
        self._samples = _rows(timeline.samples)
        self._splits = _rows(timeline.splits)
        self._graphs = _rows(timeline.graphs)
        self._graph_open = np.zeros(len(self._graphs), np.bool_)
        is_graph = containers.kind == GRAPH
        self._graph_open[containers.row[is_graph]] = containers.open[is_graph]
        self._of_graph: dict[int, int] = {}
        self._shared: dict[tuple[object, ...], int] = {}
        self._walk = packets.event("profinfer reads the graph", "profinfer", {})

    def _share(self, name: str, category: str, args: Args) -> int:
        key = (name, category, *args.items())
        if key not in self._shared:
            self._shared[key] = self._packets.event(name, category, args)
        return self._shared[key]

    def graph(self, row: int) -> int:
        """Template of a graph's slice, the same on every thread that ran it."""
        if row not in self._of_graph:
            graph = self._graphs[row]
            args: Args = {
                "graph_id": int(graph.graph_id),
                "definition": int(graph.def_id),
                "cgraph": f"{int(graph.cgraph):#x}",
                "nodes": int(graph.n_nodes),
                "threads_asked": int(graph.n_threads),
                "threads_seen": int(graph.threads_seen),
                "phase": str(graph.phase),
                "complete": bool(graph.complete),
            }
            if self._graph_open[row]:
                args["end"] = "not recorded"
            name = f"graph ({graph.n_nodes} nodes)"
            self._of_graph[row] = self._packets.event(name, "graph", args, once=True)
        return self._of_graph[row]

    def _call(self, row: int, args: Args) -> int:
        call = self._calls[row]
        about: Args = {
            "function": str(call.function),
            "phase": str(call.phase),
            "n_tokens": int(call.n_tokens),
            "pos_first": int(call.pos_first),
            "pos_last": int(call.pos_last),
            "sequences": int(call.n_seqs),
            "sequence": int(call.seq),
            "generation": int(call.generation),
            "token_index": int(call.token_index),
            "call_id": int(call.call_id),
            "context": f"{int(call.ctx):#x}",
        }
        return self._packets.event(call_name(call), "call", about | args, once=True)

    def _template(self, kind: int, row: int, is_open: bool) -> int:
        args: Args = {"end": "not recorded"} if is_open else {}
        if kind == CALL:
            return self._call(row, args)
        if kind == SAMPLE:
            function = str(self._samples[row].function)
            return self._share("sampling", "sampling", {**args, "function": function})
        if kind == SPLIT:
            split = self._splits[row]
            about: Args = {
                "backend": str(split.backend),
                "guid": str(split.guid),
                "nodes": int(split.n_nodes),
            }
            backend = split.backend or f"backend {str(split.guid)[:8]}"
            return self._share(f"split ({backend})", "split", about | args)
        return self.graph(row) if kind == GRAPH else self._walk

    def spans(self, lo: int, hi: int) -> Spans:
        """Rows ``lo`` to ``hi`` of the containers as slices."""
        c = self._containers
        rows = zip(
            c.kind[lo:hi].tolist(), c.row[lo:hi].tolist(), c.open[lo:hi].tolist(), strict=True
        )
        template = np.array([self._template(*row) for row in rows], np.int64)
        part = slice(lo, hi)
        return Spans(
            c.begin[part], c.end[part], self._track[part], c.level[part], template, c.late[part]
        )
