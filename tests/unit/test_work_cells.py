"""Work of attention over a padded KV cache, against positions counted by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from builders import Graph, Node, TraceBuilder
from test_work import leaf

from profinfer.analysis.work import Work, executed, per_execution
from profinfer.model.trace import Trace

D, HEADS, KV_HEADS = 64, 9, 3
EACH = HEADS * (4 * D + 6)  # operations a score
BYTES = 2 * KV_HEADS * D * 2  # of a cell: K and V in 16 bits
MASKED = "masked"


def graph(tokens: int, room: int, streams: int = 1, layers: Sequence[int] = (0,)) -> Graph:
    """Attention over so many cells in each layer."""
    nodes, leafs = [], []
    for layer in layers:
        q = leaf("q", "f32", D, tokens, HEADS, streams)
        k = leaf(f"cache_k_l{layer} (view)", "f16", D, room, KV_HEADS, streams)
        v = leaf(f"cache_v_l{layer} (view)", "f16", D, room, KV_HEADS, streams)
        mask = leaf("KQ_mask", "f16", room, tokens, 1, streams)
        shape = (D, HEADS, tokens, streams)
        nodes.append(Node(f"fa-{layer}", "FLASH_ATTN_EXT", "f32", shape, (q, k, v, mask)))
        leafs += [q, k, v, mask]
    return Graph([*nodes, Node("end", "SCALE", "f32", (8,), (leafs[0],))], leafs)


def recorded(
    tmp_path: Path, *calls: tuple[Sequence[tuple[int, int, int]], Sequence[Graph]], pos: bool = True
) -> Trace:
    """Calls with their runs (seq, pos, n_tokens), and the graphs that compute them."""
    builder, ts = TraceBuilder(), 1_000_000
    for runs, graphs in calls:
        n, (seq, first, _) = sum(r[2] for r in runs), runs[0]
        alone = len(runs) == 1
        where = {"pos_first": first, "pos_last": first + n - 1} if pos and alone else {}
        builder.call_begin(77, ts, n_tokens=n, seq=seq if alone else -1, **where)
        if not alone:
            builder.seqs(77, ts, runs)
        ts += 1_000
        for one in graphs:
            ts = builder.run_graph(one, begin=ts).end_ns + 1_000
        builder.call_end(77, ts)
        ts += 1_000
    return Trace.open(builder.write(tmp_path / "t.pf"))


def attention(trace: Trace, work: Work) -> tuple[float, float, set[str]]:
    """Scores, cells and doubts of all attention together."""
    node = (trace.nodes["op"] == "FLASH_ATTN_EXT").to_numpy()
    doubts = {work.reasons[i] for i in work.at_most[node]} - {""}
    return work.flops[node].sum() / EACH, work.kv[node].sum() / BYTES, doubts


def of_all(trace: Trace) -> tuple[float, float, set[str]]:
    return attention(trace, executed(trace, trace.select()))


def test_a_token_sees_the_cells_up_to_its_own(tmp_path: Path) -> None:
    one = graph(1, 256)
    trace = recorded(tmp_path, ([(0, 9, 1)], [one]), ([(0, 10, 1)], [one]))
    assert of_all(trace) == (10 + 11, 10 + 11, set())
    assert attention(trace, per_execution(trace)) == (10.5, 10.5, set())  # the mean of both
    only = trace.select(tokens=(1, 2))
    assert attention(trace, executed(trace, only)) == (11, 11, set())


def test_a_prompt_sees_half_of_the_square(tmp_path: Path) -> None:
    trace = recorded(tmp_path, ([(0, 4, 3)], [graph(3, 256)]))
    assert of_all(trace) == (5 + 6 + 7, 7, set())


def test_micro_batches_have_their_own_positions(tmp_path: Path) -> None:
    graphs = [graph(4, 256), graph(4, 256), graph(2, 256)]
    trace = recorded(tmp_path, ([(0, 0, 10)], graphs))
    assert of_all(trace) == (55, 4 + 8 + 10, set())


def test_a_micro_batch_on_two_backends_is_one(tmp_path: Path) -> None:
    graphs = [graph(4, 256, layers=[0]), graph(4, 256, layers=[1])]
    trace = recorded(tmp_path, ([(0, 0, 4)], graphs))
    assert of_all(trace) == (2 * 10, 2 * 4, set())


def test_sequences_see_their_own_cells(tmp_path: Path) -> None:
    runs = [(0, 99, 1), (1, 9, 1)]
    assert of_all(recorded(tmp_path, (runs, [graph(2, 256)]))) == (110, 110, set())
    # A stream of the cache for each.
    assert of_all(recorded(tmp_path, (runs, [graph(1, 256, 2)]))) == (110, 110, set())


@pytest.mark.parametrize("why", ["positions", "tokens", "window", "layers", "sequences"])
def test_what_is_not_known_stays_the_most(tmp_path: Path, why: str) -> None:
    runs, graphs, most = [(0, 9, 1)], [graph(1, 256)], (256.0, 256.0)
    if why == "tokens":  # a graph of the call was not recorded
        runs, graphs, most = [(0, 9, 4)], [graph(2, 256)], (512.0, 256.0)
    if why == "window":  # a cache that holds less than the positions
        runs, graphs, most = [(0, 999, 1)], [graph(1, 256)], (256.0, 256.0)
    if why == "layers":  # one layer's cache is smaller than another's
        more = graph(1, 512, layers=[1])
        both = Graph(graphs[0].nodes[:1] + more.nodes, graphs[0].leafs + more.leafs)
        runs, graphs, most = [(0, 9, 1)], [both], (20.0, 20.0)
    if why == "sequences":  # which of them are in which micro-batch
        runs, graphs, most = [(0, 9, 2), (1, 9, 2)], [graph(2, 256)] * 2, (1024.0, 512.0)
    trace = recorded(tmp_path, (runs, graphs), pos=why != "positions")
    scores, cells, doubts = of_all(trace)
    assert (scores, cells) == most
    assert len(doubts) == 1 and MASKED in doubts.pop()


def test_products_without_flash_attention_compute_masked_cells(tmp_path: Path) -> None:
    k = leaf("cache_k_l0 (view)", "f16", D, 256, KV_HEADS)
    q = leaf("q", "f32", D, 1, HEADS)
    kq = Node("kq-0", "MUL_MAT", "f32", (256, 1, HEADS), (k, q))
    end = Node("end", "SCALE", "f32", (8,), (q,))
    trace = recorded(tmp_path, ([(0, 9, 1)], [Graph([kq, end], [k, q])]))
    work = executed(trace, trace.select())
    assert work.flops[0] == 2 * D * 256 * HEADS and work.kv[0] == 256 * BYTES / 2
