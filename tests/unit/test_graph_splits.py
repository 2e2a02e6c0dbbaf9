"""``profinfer graph`` of a token that was split over backends: all of its splits, in order."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest
from builders import Graph, Node, TraceBuilder, llama_graph, sample_run
from test_backend_model import CPU_BASE, RPC_BASE, TID, Builder

from profinfer.analysis.opgraph import definitions, op_graph
from profinfer.analysis.tokensplits import passes
from profinfer.cli import run
from profinfer.cli.graph import command
from profinfer.engine.catalog import guid_of
from profinfer.model.trace import Trace
from profinfer.tracefile import schema

Graphs = tuple[Graph, Graph, Graph]


def lower() -> Graph:
    """embd -> ffn_out-0, on the CPU."""
    table = Node("token_embd.weight", op="NONE", ne=(64, 32))
    ids = Node("inp_tokens", op="NONE", ne=(1,), type="i32")
    embd = Node("embd", op="GET_ROWS", ne=(64,), src=(table, ids))
    weight = Node("blk.0.ffn_down.weight", op="NONE", ne=(64, 64))
    out = Node("ffn_out-0", op="MUL_MAT", ne=(64,), src=(weight, embd))
    return Graph(nodes=[embd, out], leafs=[table, ids, weight], cgraph=0xC0)


def upper() -> Graph:
    """What another backend makes of a copy of ffn_out-0, which is in no list of the engine."""
    copy = Node("RPC0#ffn_out-0#0", op="NONE", ne=(64,))
    weight = Node("blk.1.ffn_up.weight", op="NONE", ne=(64, 64))
    own = Node("norm_w", op="NONE", ne=(64,))
    first = Node("scaled", op="MUL", ne=(64,), src=(own, own))
    second = Node("ffn_up-1", op="MUL_MAT", ne=(64,), src=(weight, copy))
    last = Node("l_out-1", op="ADD", ne=(64,), src=(second, first))
    return Graph(nodes=[first, second, last], leafs=[weight, own], cgraph=0xD0)


def head() -> Graph:
    """The output, on the CPU again."""
    copy = Node("CPU#l_out-1#0", op="NONE", ne=(64,))
    weight = Node("output.weight", op="NONE", ne=(64, 32))
    out = Node("result_output", op="MUL_MAT", ne=(32,), src=(weight, copy))
    return Graph(nodes=[out], leafs=[weight], cgraph=0xE0)


def cpu(b: Builder, graph: Graph, begin: int) -> int:
    """A split of the CPU with its graph; returns its end."""
    b.split_begin(
        TID, begin, cgraph=graph.cgraph, n_nodes=len(graph.nodes),
        guid=bytes.fromhex(guid_of("CPU")), backend=0xA1,
    )  # fmt: skip
    end = b.run_graph(graph, begin=begin + 100, tids=(TID, TID + 1)).end_ns + 50
    b.split_end(TID, end)
    return end


def token(
    b: Builder, graphs: Graphs, ts: int, position: int, *, copies: bool = True, n_tokens: int = 1
) -> int:
    """One call of three splits; returns its end."""
    last = position + n_tokens - 1
    b.call_begin(TID, ts, n_tokens=n_tokens, pos_first=position, pos_last=last)
    ts = cpu(b, graphs[0], ts + 100)
    for node, way in ((graphs[0].nodes[-1], (CPU_BASE, RPC_BASE)), (None, (RPC_BASE, CPU_BASE))):
        what = node or graphs[1].nodes[-1]
        if copies:
            b.copy(ts + 10, what, *way, schema.COPY_TENSOR, 21, schema.COPY_WHOLE)
            b.end(ts + 40, 21)
        if node:
            b.split(ts + 100, ts + 150, graphs[1], "RPC", backend=0xB2)
            ts += 200
    ts = cpu(b, graphs[2], ts + 100)
    b.call_end(TID, ts + 50)
    return ts + 1000


def recorded(folder: Path, *, copies: bool = True, tokens: int = 3) -> Trace:
    b = Builder()
    graphs = lower(), upper(), head()
    ts = token(b, graphs, 10_000, 0, copies=copies, n_tokens=4)
    for i in range(tokens):
        ts = token(b, graphs, ts, 4 + i, copies=copies)
    return Trace.open(b.write(folder / "t.pf"))


def edges(trace: Trace) -> set[tuple[str, str, bool]]:
    selection = trace.select(phase="decode")
    graph = op_graph(trace, passes(trace, selection)[0], selection)
    names, every = graph.texts("name"), graph.every
    rows = zip(every.src.tolist(), every.dst.tolist(), every.memory.tolist(), strict=True)
    return {(names[a], names[b], memory) for a, b, memory in rows}


def test_a_token_is_all_of_its_splits(tmp_path: Path) -> None:
    trace = recorded(tmp_path)
    selection = trace.select(phase="decode")
    (found,) = passes(trace, selection)
    assert found.backends == ("CPU", "RPC", "CPU") and found.runs == 3
    graph = op_graph(trace, found, selection)
    assert graph.texts("name") == [
        "embd", "ffn_out-0", "scaled", "ffn_up-1", "l_out-1", "result_output",
    ]  # fmt: skip
    assert [graph.backend(place) for place in range(6)] == ["CPU"] * 2 + ["RPC"] * 3 + ["CPU"]
    assert graph.executions == 3 and graph.whole.acyclic
    # Times are where they belong: those of the CPU alone are known.
    assert graph.wall_ns[[0, 1, 5]].min() > 0 and graph.seen.tolist() == [True, False, True]
    assert not graph.critical[2:5].any() and graph.critical[5]
    alone = op_graph(trace, found.defs[0], selection)
    assert alone.nodes["wall_ns"].tolist() == graph.nodes["wall_ns"].tolist()[:2]


def test_what_was_copied_leads_to_who_reads_something_unknown(tmp_path: Path) -> None:
    assert edges(recorded(tmp_path)) == {
        ("embd", "ffn_out-0", False), ("ffn_out-0", "ffn_up-1", False),
        ("scaled", "l_out-1", False), ("ffn_up-1", "l_out-1", False),
        ("l_out-1", "result_output", False),
    }  # fmt: skip


def test_without_copies_a_split_comes_after_the_one_before(tmp_path: Path) -> None:
    """As with BLAS, which reads where the CPU has written."""
    found = edges(recorded(tmp_path, copies=False))
    assert {("ffn_out-0", "ffn_up-1", True), ("l_out-1", "result_output", True)} <= found


@pytest.mark.parametrize("cuts", [(5,), (3, 4, 9, 20, 21), tuple(range(1, 36))])
def test_cut_anywhere_the_graph_is_the_same(tmp_path: Path, cuts: tuple[int, ...]) -> None:
    """Where backends share the CPU's memory sources tell everything, as with BLAS."""
    whole = llama_graph(layers=2)
    bounds = [0, *cuts, len(whole.nodes)]
    b = Builder()
    b.call_begin(TID, 1000, n_tokens=1, pos_first=4, pos_last=4)
    ts = cpu(b, whole, 1100)
    b.call_end(TID, ts + 10)
    b.call_begin(TID, ts + 100, n_tokens=1, pos_first=5, pos_last=5)
    ts += 200
    for number, (first, last) in enumerate(pairwise(bounds)):
        piece = Graph(whole.nodes[first:last], whole.leafs, 0x1000 * (number + 1))
        if number % 2:
            b.split(ts, ts + 50, piece, "BLAS", backend=0xB3)
            ts += 100
        else:
            ts = cpu(b, piece, ts) + 50
    b.call_end(TID, ts)
    trace = Trace.open(b.write(tmp_path / "t.pf"))
    selection = trace.select(phase="decode")
    found = {len(p.defs): op_graph(trace, p, selection) for p in passes(trace, selection)}
    one, many = found[1], found[len(cuts) + 1]
    assert many.texts("name") == one.texts("name")
    # Between operators: whether a cache's view or who reads it waits for the writer is one.
    for name in ("src", "dst", "memory"):
        assert getattr(one.folded, name).tolist() == getattr(many.folded, name).tolist()
    columns = ["idx", "slot", "src_idx", "src_name", "kind"]
    assert one.sources[columns].to_numpy().tolist() == many.sources[columns].to_numpy().tolist()


def test_ubatches_are_passes_of_their_own(tmp_path: Path) -> None:
    b = Builder()
    graphs = lower(), upper(), head()
    b.call_begin(TID, 1000, n_tokens=8, pos_first=0, pos_last=7)
    ts = 1100
    for _ in range(2):
        ts = cpu(b, graphs[0], ts) + 100
        b.split(ts, ts + 50, graphs[1], "RPC", backend=0xB2)
        ts += 100
    b.call_end(TID, ts)
    trace = Trace.open(b.write(tmp_path / "t.pf"))
    (found,) = passes(trace, trace.select())
    assert len(found.defs) == 2 and found.runs == 2


def test_on_the_cpu_alone_a_pass_is_a_graph(tmp_path: Path) -> None:
    trace = Trace.open(sample_run(layers=1).builder.write(tmp_path / "t.pf"))
    selection = trace.select(phase="decode")
    known = definitions(trace, selection)
    assert [p.defs for p in passes(trace, selection)] == [(d,) for d in known["def_id"].tolist()]
    assert [p.time_ns for p in passes(trace, selection)] == known["time_ns"].tolist()


def test_the_command_tells_and_draws_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(recorded(tmp_path).path)
    assert run(command, [path]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "on CPU, 1 on RPC, 2 on CPU" in said
    assert "3 operators on CPU (2 splits), 3 operators on RPC (1 split)" in said
    assert "operators on RPC have no times here" in said
    assert run(command, [path, "--dot"]) == 0
    dot = capsys.readouterr().out
    assert 'n1 -> n3 [style=dashed, label="  copied 64  "' in dot
    assert dot.count("RPC · ") == 3 and dot.count("CPU · ") == 3
    # One of them, whoever computed it.
    assert run(command, [path, "--def", "1", "--format", "json"]) == 0
    (graph, *_) = json.loads(capsys.readouterr().out)["results"]
    assert graph["rows"][0]["nodes"] == 3
    assert run(command, [path, "--def", "9"]) == 2
    assert "--def 0 to --def 2" in capsys.readouterr().err


def test_a_server_that_calls_nothing_has_its_graphs(tmp_path: Path) -> None:
    b = TraceBuilder()
    graph = lower()
    ts = b.run_graph(graph, begin=1000).end_ns
    b.run_graph(graph, begin=ts + 100)
    trace = Trace.open(b.write(tmp_path / "server.pf"))
    (found,) = passes(trace, trace.select())
    assert found.defs == (0,) and found.runs == 2
