"""Experts of tokens: which row is which token, what is missing, where the weights lie."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from moetraces import PER_LAYER, PLACE, MoeRun

from profinfer.analysis.work import executed
from profinfer.model.experts import expert_at
from profinfer.model.trace import Trace
from profinfer.tracefile.schema import EXPERTS, Kind

PROMPT = [[[3, 1], [1, 0], [3, 2], [7, 1], [1, 3]], [[5, 4]]]
NEXT = [[[2, 6]], [[4, 0]]]


def run(tmp_path: Path, made: MoeRun) -> Trace:
    return Trace.open(made.builder.write(tmp_path / "t.pf"))


def two_calls(**more: object) -> MoeRun:
    made = MoeRun(layers=2, experts=8, used=2)
    made.decode(PROMPT, **more)  # type: ignore[arg-type]
    made.decode(NEXT)
    return made


def test_a_row_for_each_layer_token_and_slot(tmp_path: Path) -> None:
    for piece in (99, 2):  # of many tokens a record has a part
        table = run(tmp_path, two_calls(piece=piece)).experts
        wanted = [
            (graph, layer, row, slot, expert)
            for graph, call in enumerate((PROMPT, NEXT))
            for layer, tokens in enumerate(call)
            for row, chosen in enumerate(tokens)
            for slot, expert in enumerate(chosen)
        ]
        keys = ["graph_id", "layer", "row", "slot", "expert"]
        assert list(table[keys].itertuples(index=False, name=None)) == wanted


def test_tokens_are_named_where_a_layer_computed_all(tmp_path: Path) -> None:
    trace = run(tmp_path, two_calls())
    table = trace.experts
    assert set(table["seq"]) == {0}
    first = table[table["layer"] == 0]
    assert (first["token"] == first["row"]).all()
    last = table[(table["layer"] == 1) & (table["graph_id"] == 0)]
    assert set(last["token"]) == {-1}
    names = trace.nodes["name"].astype(str)[table["node_id"]].unique()
    assert sorted(names) == ["ffn_moe_up-0", "ffn_moe_up-1"]


def test_what_is_missing_is_counted(tmp_path: Path) -> None:
    trace = run(tmp_path, two_calls(leave_out=[0]))
    assert trace.losses["lost_expert_rows"] == len(PROMPT[0])
    assert len(trace.experts) == 2 * 3
    whole = run(tmp_path, two_calls())
    assert whole.losses["lost_expert_rows"] == 0
    made = MoeRun(layers=2, experts=8, used=2, recorded=False)
    made.decode(PROMPT, leave_out=[0, 1])
    trace = run(tmp_path, made)
    assert trace.losses["lost_expert_rows"] == 0 and not len(trace.experts)


def test_an_expert_that_is_none_is_left_out_and_counted(tmp_path: Path) -> None:
    made = MoeRun(layers=2, experts=8, used=2)
    made.decode([[[3, 1], [8, 0]], [[0, -1]]])
    trace = run(tmp_path, made)
    assert trace.experts["expert"].tolist() == [3, 1, 0, 0]
    assert trace.losses["lost_expert_rows"] >= 2


def test_records_of_nothing_known_are_ignored(tmp_path: Path) -> None:
    made = two_calls()
    at = made.graphs[0].begin_ns + 5
    cgraph = made.graph([5, 1]).cgraph
    made.builder.experts(77, at, [[1, 2]], node=1 + PLACE + 1, cgraph=cgraph)  # not the first node
    made.builder.experts(77, at, [[1, 2, 3]], node=1 + PLACE, cgraph=cgraph)  # not as many
    made.builder.experts(77, at, [[1, 2]], node=1 + PLACE, cgraph=0xBAD)
    made.builder.experts(78, at, [[1, 2]], node=1 + PLACE, cgraph=cgraph)  # began no graph
    made.builder.experts(77, at, [[1, 2]], node=9999, cgraph=cgraph)
    for first in (len(PROMPT[0]), 0xC0000000):  # tokens that the graph does not have
        made.builder.experts(77, at, [[1, 2]], node=1 + PLACE, cgraph=cgraph, first=first)
    assert len(run(tmp_path, made).experts) == len(run(tmp_path, two_calls()).experts)


def test_a_record_shorter_than_it_says_is_skipped(tmp_path: Path) -> None:
    made = two_calls()
    body = np.zeros(1, EXPERTS)
    body["n"], body["n_used"] = 3, 2
    made.builder.record(Kind.EXPERTS, 77, 5, body.tobytes()[16:] + b"\0" * 20)
    body["n_used"] = 2000
    made.builder.record(Kind.EXPERTS, 77, 5, body.tobytes()[16:] + b"\0" * 40000)
    trace = run(tmp_path, made)
    assert any(p.startswith("2 EXPERTS record(s) were skipped") for p in trace.problems)
    assert len(trace.experts) == 2 * (len(PROMPT[0]) + 3)


def test_weights_and_the_expert_at_an_address(tmp_path: Path) -> None:
    made = two_calls()
    trace = run(tmp_path, made)
    table = trace.expert_weights
    assert len(table) == 2 * 2 * 8 and set(table["bytes"]) == {made.stride}
    at = made.address(1, 1, 5)
    found = expert_at(table, np.array([at, at + made.stride - 1, at - 1, made.base - 1]))
    rows = table.iloc[found[:3]]
    assert rows["expert"].tolist() == [5, 5, 4] and set(rows["layer"]) == {1}
    assert set(rows["tensor"]) == {"blk.1.ffn_down_exps.weight"} and found[3] == -1


def test_weights_read_in_a_prompt_are_those_of_distinct_experts(tmp_path: Path) -> None:
    made = two_calls()
    trace = run(tmp_path, made)
    distinct = {"prefill": [5, 2], "decode": [2, 2]}
    for phase, counts in distinct.items():
        selection = trace.select(phase=phase)
        work = executed(trace, selection)
        sums = trace.sums(selection)
        for layer, n in enumerate(counts):
            nodes = trace.nodes[(trace.nodes["op"] == "MUL_MAT_ID") & (sums.calls > 0)]
            mine = nodes[nodes["layer"] == layer]["node_id"]
            assert work.weights[mine].tolist() == [n * made.stride] * 2
            assert work.at_most[mine].tolist() == [0, 0]
    # Where some are not known it stays the most that can be: 5 tokens of 2 are at most all 8.
    trace = run(tmp_path, two_calls(leave_out=[0]))
    work = executed(trace, trace.select(phase="prefill"))
    place = 1 + PLACE
    assert work.weights[place] == 8 * made.stride and work.at_most[place] > 0
    assert work.at_most[place + PER_LAYER] == 0


def test_a_batch_in_pieces_beside_another_context(tmp_path: Path) -> None:
    """Two calls of two graphs each, on two threads, in turn."""
    made = MoeRun(layers=2, experts=8, used=2)
    b, begin = made.builder, 2_000_000_000
    b.call_begin(77, begin, n_tokens=5, pos_first=0, pos_last=4, seq=0, ctx=0xC0)
    b.call_begin(78, begin + 1, n_tokens=6, pos_first=0, pos_last=5, seq=3, ctx=0xC1)
    pieces = {77: iter([3, 2]), 78: iter([4, 2])}
    end = begin
    for tid in (77, 78, 77, 78):
        n = next(pieces[tid])
        graph = made.graph([n, n])
        truth = b.run_graph(graph, begin=end + 500, tids=(tid,))
        end = truth.end_ns
        done = {op.node: op.end_ns for op in truth.ops}
        for layer in range(2):
            node = 1 + PER_LAYER * layer + PLACE
            b.experts(tid, done[node], [[0, 1]] * n, node=node, cgraph=graph.cgraph)
    b.call_end(77, end + 10)
    b.call_end(78, end + 20)
    table = run(tmp_path, made).experts
    table = table[(table["slot"] == 0) & (table["layer"] == 1)]
    assert table["token"].tolist() == [0, 1, 2, 0, 1, 2, 3, 3, 4, 4, 5]
    assert table["seq"].tolist() == [0] * 3 + [3] * 4 + [0] * 2 + [3] * 2


def test_two_sequences_decode_together(tmp_path: Path) -> None:
    made = MoeRun(layers=2, experts=8, used=2)
    graph = made.graph([2, 2])
    begin = 2_000_000_000
    b = made.builder
    b.call_begin(77, begin, n_tokens=2, pos_first=-1, pos_last=-1)
    b.seqs(77, begin, [(4, 10, 1), (9, 20, 1)])
    truth = b.run_graph(graph, begin=begin + 500, tids=(77,))
    end = {op.node: op.end_ns for op in truth.ops}
    for layer in range(2):
        node = 1 + PER_LAYER * layer + PLACE
        b.experts(77, end[node], [[0, 1], [2, 3]], node=node, cgraph=graph.cgraph)
    b.call_end(77, truth.end_ns + 10)
    table = run(tmp_path, made).experts
    assert table["token"].tolist() == [0, 0, 1, 1] * 2
    assert table["seq"].tolist() == [4, 4, 9, 9] * 2
    assert isinstance(table, pd.DataFrame)
