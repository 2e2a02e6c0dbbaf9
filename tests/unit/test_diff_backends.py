"""``profinfer diff`` where another backend runs operators on one side."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path

import pytest
from builders import Graph, Node, llama_graph
from test_backend_model import TID, Builder
from test_diff import judged

from profinfer.analysis.compare import views
from profinfer.analysis.compare.structure import structure
from profinfer.analysis.compare.verdict import gate
from profinfer.model.trace import Trace

US = 1_000
TAKES = 50 * US  # of a product on the backend
STEPS = 8


def parts(graph: Graph, layers: tuple[int, ...]) -> list[tuple[bool, Graph]]:
    """The graph cut into splits: whether another backend runs it, and its nodes."""
    out: list[tuple[bool, list[Node]]] = []
    for node in graph.nodes:
        there = node.op == "MUL_MAT" and any(node.name.endswith(f"-{n}") for n in layers)
        if not out or out[-1][0] != there:
            out.append((there, []))
        out[-1][1].append(node)
    return [
        (there, replace(graph, nodes=nodes, cgraph=graph.cgraph + 0x1000 * n))
        for n, (there, nodes) in enumerate(out)
    ]


def run(path: Path, backend: str, layers: tuple[int, ...] = (0, 1)) -> Trace:
    """Decode steps; products of ``layers`` run on ``backend``, if that is not empty."""
    Node._next_addr = 0x7F00_0000_0000
    b = Builder()
    b.thread(TID, 1000, "llama")
    now = 10_000
    for step in range(STEPS):
        b.call_begin(TID, now, n_tokens=1, pos_first=step, pos_last=step, seq=0)
        for there, part in parts(llama_graph(), layers if backend else ()):
            if not there:
                truth = b.run_graph(part, begin=now + 100, tids=(TID,), compute=10 * US)
                now = truth.end_ns
                continue
            b.split(now + 100, 0, part, backend)
            for node in part.nodes:
                matrices = prod(node.ne[2:])
                for n in range(matrices if backend == "BLAS" else 0):
                    at = now + 200 + n * (TAKES - 200) // matrices
                    b.work(at, now + 200 + (n + 1) * (TAKES - 200) // matrices, 23, 5, 32, 64)
                now += TAKES
            now += 200
            b.split_end(TID, now)
        now += US
        b.call_end(TID, now)
        now += US
    return Trace.open(b.write(path))


def test_products_that_blas_computes_are_compared(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a.pf", ""), run(tmp_path / "b.pf", "BLAS")
    changes, found = judged([a], [b], phase="prefill")
    rows = changes.by("kind").set_index("label")
    assert set(rows["verdict"]) <= {"", "slower", "faster"}
    up = rows.loc["ffn_up"]
    assert up["a_ns"] == pytest.approx(20 * US, rel=0.1)
    assert up["b_ns"] == pytest.approx(2 * TAKES, rel=0.1)
    assert "nan" not in found.sentence and "graphs differ" not in found.sentence
    assert not len(structure(changes, "").frame)


def test_operators_of_a_backend_without_times_have_moved(tmp_path: Path) -> None:
    a, b = run(tmp_path / "a.pf", ""), run(tmp_path / "b.pf", "Vulkan", layers=(1,))
    for one, other, side in ((a, b, "b"), (b, a, "a")):
        changes, found = judged([one], [other], phase="prefill")
        rows = changes.by("kind").set_index("label")
        assert rows.loc["ffn_up", "verdict"] == "moved"
        assert (rows["own"].isna() == (rows["verdict"] == "moved")).all()
        moved = changes.moved(side)
        assert list(moved.index) == ["MUL_MAT"]
        layer = sum(n.op == "MUL_MAT" and n.name.endswith("-1") for n in llama_graph().nodes)
        assert moved["MUL_MAT"] == pytest.approx(layer * 10 * US, rel=0.05)
        assert f"the graphs differ (on another backend in {side}: MUL_MAT, " in found.sentence
        assert "nan" not in found.sentence and "gone" not in found.sentence
        assert not len(structure(changes, "").frame)
        (note,) = [n.text for n in views.by(changes, "kind").notes if "other backends" in n.text]
        assert note.startswith(f"{layer} operators of {side} ran on other backends")
        assert gate(changes, found, None, 0.03) == []


def test_nothing_is_named_where_no_role_is_sure(tmp_path: Path) -> None:
    """Graphs that differ, and too few alike to judge by: no row of roles was ever found."""

    def other(path: Path) -> Trace:
        Node._next_addr = 0x7F00_0000_0000
        b = Builder()
        b.thread(TID, 1000, "llama")
        now = 10_000
        for step in range(STEPS):
            b.call_begin(TID, now, n_tokens=1, pos_first=step, pos_last=step, seq=0)
            graph = llama_graph()
            few = [n for n in graph.nodes if n.op != "MUL_MAT"][:3]
            graph = replace(graph, nodes=few)
            now = b.run_graph(graph, begin=now + 100, tids=(TID,), compute=10 * US).end_ns + US
            b.call_end(TID, now)
            now += US
        return Trace.open(b.write(path))

    _, found = judged([run(tmp_path / "a.pf", "")], [other(tmp_path / "b.pf")], phase="prefill")
    assert "gone: MUL_MAT" in found.sentence
    assert "nan" not in found.sentence and "no operator stands out" not in found.sentence
