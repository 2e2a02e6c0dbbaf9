"""How many tokens were computed at once, where other backends cut the engine's graphs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from builders import Graph, TraceBuilder, llama_graph
from test_prizes import US, Play, found

from profinfer.analysis.pieces import per_piece, pieces
from profinfer.engine.catalog import guid_of
from profinfer.model.trace import Trace

BLAS = bytes.fromhex(guid_of("BLAS"))


@dataclass
class CutPlay(Play):
    """The same, and BLAS computes the products of prompts: between them are graphs of the CPU.

    Attributes:
        ubatch: tokens of one pass over the model.
        ctx: of the prompt's calls.
    """

    ubatch: int = 256
    ctx: int = 0xC0

    def call(self, b: TraceBuilder, tokens: int, position: int, takes: Any) -> None:
        if tokens <= 2:
            super().call(b, tokens, position, takes)
            return
        begin = self.now + US
        b.call_begin(77, begin, n_tokens=tokens, pos_first=position,
                     pos_last=position + tokens - 1, seq=0, ctx=self.ctx)  # fmt: skip
        self.now = begin + self.build_ns
        for _ in range(tokens // self.ubatch):
            for number, part in enumerate(cut(llama_graph(n_tokens=self.ubatch))):
                part.cgraph += 0x1000 * number
                truth = b.run_graph(part, begin=self.now + 100, tids=self.tids, compute=takes)
                b.split_begin(77, truth.end_ns + 50, cgraph=1, n_nodes=1, guid=BLAS)
                self.now = truth.end_ns + 50 + 500 * US
                b.split_end(77, self.now)
        self.now += US
        b.call_end(77, self.now)


def cut(graph: Graph) -> list[Graph]:
    """The graph without its products: the parts between them."""
    parts: list[list[Any]] = [[]]
    for node in graph.nodes:
        if node.op == "MUL_MAT":
            parts.append([])
        else:
            parts[-1].append(node)
    return [replace(graph, nodes=part) for part in parts if part]


def test_a_graph_that_backends_cut_is_one_piece(tmp_path: Path) -> None:
    play = CutPlay(prompt=(256,), at=256)
    trace = play.trace(tmp_path)
    prefill = trace.select(phase="prefill")
    assert prefill.n_graphs > 8
    assert pieces(trace, prefill) == 1
    assert per_piece(trace, prefill) == 256
    assert "small_pieces" not in found(play, tmp_path)


def test_ubatches_are_counted_in_a_cut_graph(tmp_path: Path) -> None:
    trace = CutPlay(prompt=(256, 128), ubatch=64, at=384).trace(tmp_path)
    prefill = trace.select(phase="prefill")
    assert pieces(trace, prefill) == 6
    assert per_piece(trace, prefill) == 64


def test_the_longest_prompt_is_of_one_context(tmp_path: Path) -> None:
    """Two contexts with sequence 0: 64 tokens of one and 128 of the other are not 192 of one."""

    @dataclass
    class TwoContexts(CutPlay):
        def trace(self, folder: Path) -> Trace:
            self.contexts = iter((0xC1, 0xC0))
            return super().trace(folder)

        def call(self, b: TraceBuilder, tokens: int, position: int, takes: Any) -> None:
            if tokens > 2:
                self.ctx, position = next(self.contexts), 0
            super().call(b, tokens, position, takes)

    said = found(
        TwoContexts(prompt=(64, 128), ubatch=8, at=128, prompt_ns=10 * US, node_ns=600 * US),
        tmp_path,
    )
    assert "8 tokens a graph, of prompts of up to 128" in said["small_pieces"].text


def test_without_nodes_a_call_is_one_piece(tmp_path: Path) -> None:
    trace = CutPlay(prompt=(256,), at=256).trace(tmp_path)
    trace.__dict__["graphs"] = trace.graphs.assign(def_id=-1)
    assert pieces(trace, trace.select(phase="prefill")) == 1
