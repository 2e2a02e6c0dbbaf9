"""``profinfer diff``: what is found, what is not, and what it says when there is nothing to say."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from builders import Node, TraceBuilder, llama_graph, sample_run

from profinfer.analysis.compare import noise, resampling, student
from profinfer.analysis.compare.changes import Changes
from profinfer.analysis.compare.runs import compare
from profinfer.analysis.compare.slots import label
from profinfer.analysis.compare.structure import structure
from profinfer.analysis.compare.verdict import Verdict, gate, verdict
from profinfer.analysis.compare.whole import measure
from profinfer.cli import run
from profinfer.cli.diff import command, sides
from profinfer.errors import UsageProblem
from profinfer.model.trace import Trace

LAYERS = 2
NAMES = [n.name for n in llama_graph(layers=LAYERS).nodes]
Takes = Callable[[int, int], int]


def noisy(seed: int, *, slow: str = "", by: float = 1.0, mode: float = 0.0) -> Takes:
    """A run's durations: 1 % from token to token, 1 % from run to run and operator to operator.

    Operators whose name begins with ``slow`` take ``by`` times as long. ``mode`` makes the whole
    run slower, some operators more than others, as where a process' memory lies does.
    """
    rng = np.random.default_rng(seed)
    run_wide = {name.split("-")[0]: rng.normal(0, 0.01) for name in NAMES}

    def takes(node: int, thread: int) -> int:
        name = NAMES[node]
        kind = name.split("-")[0]
        factor = 1 + run_wide[kind] + rng.normal(0, 0.01) + mode * (1 + len(kind) % 5)
        if slow and name.startswith(slow):
            factor *= by
        return int((60_000 + 9_000 * (node % 7) + 500 * thread) * factor)

    return takes


def write(path: Path, seed: int, tokens: int = 24, takes: Takes | None = None, **more) -> Trace:
    Node._next_addr = 0x7F00_0000_0000
    prompt = more.pop("prompt_tokens", 5)
    made = sample_run(
        decode_tokens=tokens, prompt_tokens=prompt, layers=LAYERS,
        compute=takes or noisy(seed), clock={"monotonic_ns": seed, "realtime_ns": seed}, **more,
    )  # fmt: skip
    return Trace.open(made.builder.write(path))


def judged(a: list[Trace], b: list[Trace], **more) -> tuple[Changes, Verdict]:
    changes = Changes(compare(a, b, more.pop("phase", "decode"), **more))
    return changes, verdict(changes, measure(changes.of, None))


def named(found: Verdict) -> list[str]:
    return [f"{r['label']} {r['op']}" for _, r in found.culprits.iterrows()]


# -- the statistics ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("df", "t"),
    [(1, 12.706), (2, 4.303), (4, 2.776), (5, 2.571), (9, 2.262), (10, 2.228), (30, 2.042)],
)
def test_student_is_that_of_the_tables(df: int, t: float) -> None:
    assert student.quantile(0.95, df) == pytest.approx(t, abs=5e-4)
    assert student.within(t, df) == pytest.approx(0.95, abs=5e-5)


def test_holm_multiplies_by_what_is_left_and_never_falls() -> None:
    p = np.array([0.01, np.nan, 0.04, 0.03])
    np.testing.assert_allclose(student.holm(p), [0.03, np.nan, 0.06, 0.06])
    np.testing.assert_allclose(student.holm(p, 10), [0.1, np.nan, 0.32, 0.27])


def test_a_few_real_changes_do_not_pull_at_what_all_share() -> None:
    values = np.full(15, 0.1)
    values[:4] = 3.0
    found = noise.least_absolute(np.ones((15, 1)), values, np.ones(15))
    assert found[0] == pytest.approx(0.1, abs=1e-3)


def test_disturbed_tokens_do_not_count() -> None:
    times = np.array([10.0, 11, 500, 9, 10, 10, 11, 800])
    assert times[resampling.kept(times)].max() <= 11


def test_blocks_see_that_neighbours_are_alike() -> None:
    """Of an autocorrelated series, single tokens would claim far too small an error."""
    rng = np.random.default_rng(3)
    shocks = rng.normal(0, 1, 4000)
    series = 100 + np.convolve(shocks, np.ones(20) / 20, "valid")[:400]
    drawn = resampling.draws(series)
    means = drawn @ series / drawn.sum(axis=1)
    alone = series[resampling.kept(series)].std() / np.sqrt(len(series) / 2)
    assert means.std() > 2 * alone


# -- what is found -----------------------------------------------------------------------------


def test_nothing_is_said_of_the_same_program(tmp_path: Path) -> None:
    traces = [write(tmp_path / f"{i}.pf", i) for i in range(6)]
    for a, b in pairwise(traces):
        changes, found = judged([a], [b])
        assert named(found) == [] and not found.whole.sure
        assert gate(changes, found, 0.03, 0.03) == []
    changes, found = judged(traces[:3], traces[3:])
    assert named(found) == [] and gate(changes, found, 0.03, None) == []


def test_one_run_a_side_finds_a_large_change_of_one_operator(tmp_path: Path) -> None:
    a = write(tmp_path / "a.pf", 1)
    b = write(tmp_path / "b.pf", 2, takes=noisy(2, slow="ffn_out", by=1.3))
    changes, found = judged([a], [b])
    assert named(found) == ["ffn_down MUL_MAT"]
    row = found.culprits.iloc[0]
    assert row["low"] < 0.3 < row["high"]
    assert row["diff_ns"] == pytest.approx(row["b_ns"] - row["a_ns"])
    assert gate(changes, found, None, 0.1) != []
    assert gate(changes, found, None, 0.35) == []


def test_large_changes_are_quotients(tmp_path: Path) -> None:
    def slow(seed: int) -> Takes:
        usual = noisy(seed, slow="ffn_out", by=5)
        return lambda node, thread: 14 * usual(node, thread)

    a = [write(tmp_path / f"a{i}.pf", i) for i in range(3)]
    b = [write(tmp_path / f"b{i}.pf", 9 + i, takes=slow(9 + i)) for i in range(3)]
    changes, found = judged(a, b)
    said, failed = found.sentence, " ".join(gate(changes, found, 0.03, 0.03))
    quotient = r"1\d\.\dx"
    assert re.match(
        rf"b needs {quotient} the time per decoded token \(95 %: {quotient} to {quotient}\)", said
    )
    assert re.search(rf"grew to at least {quotient} \(95 %\), over 3 %", failed)
    assert re.search(r"takes at least \d\.\dx as long by itself", failed)


@pytest.mark.parametrize("mode", [0.0, 0.06])
def test_runs_find_five_percent_of_one_operator(tmp_path: Path, mode: float) -> None:
    """Also where some runs of either side are slower as a whole, each operator in its own way."""
    a, b = [], []
    for i in range(6):
        slow_a, slow_b = mode * (i in (1, 4)), mode * (i in (0, 2, 5))
        a.append(write(tmp_path / f"a{i}.pf", i, takes=noisy(i, mode=slow_a)))
        takes = noisy(50 + i, slow="ffn_out", by=1.05, mode=slow_b)
        b.append(write(tmp_path / f"b{i}.pf", 50 + i, takes=takes))
    changes, found = judged(a, b)
    assert named(found) == ["ffn_down MUL_MAT"], changes.by("kind").to_string()
    row = found.culprits.iloc[0]
    assert row["own"] == pytest.approx(0.05, abs=0.02) and row["low"] > 0.02
    rows = changes.by("node")
    assert rows["diff_ns"].sum() == pytest.approx(changes.by("kind")["diff_ns"].sum())


def test_a_change_of_everything_takes_runs_to_tell(tmp_path: Path) -> None:
    a = [write(tmp_path / f"a{i}.pf", i) for i in range(4)]
    b = [write(tmp_path / f"b{i}.pf", 9 + i, takes=noisy(9 + i, slow="", mode=0.05))
         for i in range(4)]  # fmt: skip
    changes, found = judged(a[:1], b[:1])
    assert not found.whole.sure and not found.whole.by_runs
    assert "runs of one program may differ" in found.sentence or "machine" in found.sentence
    assert gate(changes, found, 0.03, None) == []
    changes, found = judged(a, b)
    assert found.whole.sure and found.whole.low > 0
    assert "FAILED" not in found.sentence and gate(changes, found, 0.03, None) != []
    # The user may vouch for the machine.
    changes = Changes(compare(a[:1], b[:1], "decode"))
    assert measure(changes.of, 0.01).sure


def test_only_the_same_positions_are_compared(tmp_path: Path) -> None:
    a = write(tmp_path / "a.pf", 1, tokens=24)
    b = write(tmp_path / "b.pf", 2, tokens=24, prompt_tokens=13)
    of = compare([a], [b], "decode")
    assert of.window == (13, 28)
    assert [r.samples.n for r in of.runs] == [16, 16]
    assert [r.taken.of_tokens for r in of.runs] == [24, 24]
    c = write(tmp_path / "c.pf", 3, tokens=24, prompt_tokens=500)
    of = compare([a], [c], "decode")
    assert of.window is None and of.why_all and [r.samples.n for r in of.runs] == [24, 24]


def test_rows_add_up_to_the_time_of_the_calls(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.pf", 1), write(tmp_path / "b.pf", 2)
    changes, _ = judged([a], [b])
    calls = a.calls[a.calls["phase"] == "decode"]
    spent = (calls["end_ns"] - calls["begin_ns"]).to_numpy()
    walk = a.graphs.groupby("call_id")["walk_ns"].sum().reindex(calls["call_id"]).to_numpy()
    run_a = changes.of.a[0]
    assert changes.total_a == pytest.approx((spent - walk)[run_a.kept].mean())
    outside = changes.total_a - changes.by("kind")["a_ns"].sum()
    assert 0 < outside < 0.1 * changes.total_a
    corrected = Changes(compare([a], [b], "decode"))
    assert corrected.total_a == changes.total_a


# -- alignment ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "weight", "layer", "want"),
    [
        ("ffn_out-7", "blk.7.ffn_down.weight", 7, "ffn_down"),
        ("cache_k_l12 (view)", "", 12, "cache_k"),
        ("Qcur-1 (reshaped)", "", 1, "Qcur"),
        ("Qcur-11", "", 11, "Qcur"),
        ("result_output", "token_embd.weight", -1, "result_output"),
    ],
)
def test_labels(name: str, weight: str, layer: int, want: str) -> None:
    assert label(name, weight, layer) == want


def graph_trace(path: Path, change: Callable[[list[Node]], None], layers: int = LAYERS) -> Trace:
    """Eight decoded tokens of a changed graph."""
    Node._next_addr = 0x7F00_0000_0000
    builder = TraceBuilder()
    graph = llama_graph(layers=layers)
    change(graph.nodes)
    ts = 1_000_000_000
    for number in range(9):
        n = 1 if number else 5
        builder.call_begin(77, ts, n_tokens=n, pos_first=4 + number if number else 0)
        truth = builder.run_graph(graph, begin=ts + 500, compute=lambda i, t: 50_000 + 777 * i)
        ts = truth.end_ns + 300
        builder.call_end(77, ts)
        ts += 20_000
    return Trace.open(builder.write(path))


def test_another_weight_type_pairs_and_says_so(tmp_path: Path) -> None:
    def requantise(nodes: list[Node]) -> None:
        for node in nodes:
            for source in node.src:
                if source is not None and source.type == "q4_1":
                    source.type = "q8_0"

    a = graph_trace(tmp_path / "a.pf", lambda nodes: None)
    b = graph_trace(tmp_path / "b.pf", requantise)
    changes, _ = judged([a], [b])
    units = changes.of.units
    assert units["in_a"].all() and units["in_b"].all() and (units["by"] == "name").all()
    rows = changes.by("kind").set_index("label")
    assert (rows.loc["ffn_down", "types_a"], rows.loc["ffn_down", "types_b"]) == ("q4_1", "q8_0")


def test_renamed_nodes_pair_by_their_weight(tmp_path: Path) -> None:
    def rename(nodes: list[Node]) -> None:
        for node in nodes:
            if node.name.startswith("ffn_out"):
                node.name = node.name.replace("ffn_out", "ffn_result")

    a = graph_trace(tmp_path / "a.pf", lambda nodes: None)
    b = graph_trace(tmp_path / "b.pf", rename)
    changes, _ = judged([a], [b])
    units = changes.of.units
    assert (units["in_a"] & units["in_b"]).all()
    assert set(units[units["by"] == "weight"]["label"]) == {"ffn_down"}


def test_operators_of_one_side_are_new_or_gone(tmp_path: Path) -> None:
    def other(nodes: list[Node]) -> None:
        for node in nodes:
            if node.op == "GLU":
                node.op = "MUL"

    a = graph_trace(tmp_path / "a.pf", lambda nodes: None)
    b = graph_trace(tmp_path / "b.pf", other)
    changes, found = judged([a], [b])
    rows = changes.by("kind").set_index("op")
    assert rows.loc["GLU", "verdict"] == "gone"
    assert "gone: GLU" in found.sentence and "new: MUL" in found.sentence
    frame = structure(changes, "").frame.set_index("op")
    assert frame.loc["GLU", ["nodes_a", "nodes_b", "only_a"]].tolist() == [LAYERS, 0, LAYERS]
    assert frame.loc["MUL", "only_b"].max() == LAYERS


def test_entirely_different_models_do_not_crash(tmp_path: Path, capsys) -> None:
    def strange(nodes: list[Node]) -> None:
        for number, node in enumerate(nodes):
            node.op, node.name, node.src = "SUM", f"other_{number}", ()

    a = graph_trace(tmp_path / "a.pf", lambda nodes: None)
    b = graph_trace(tmp_path / "b.pf", strange, layers=4)
    for key in ("layer", "node", "shape", "graph", "thread"):
        args = [str(a.path), str(b.path), "--by", key, "--phase", "decode"]
        assert run(command, args) == 0
    assert run(command, [str(a.path), str(b.path)]) == 0
    assert "different models" in " ".join(capsys.readouterr().out.split())


# -- the command -------------------------------------------------------------------------------


def test_sides_are_split_at_vs() -> None:
    assert sides(("a", "b")) == (["a"], ["b"])
    assert sides(("a", "b", "vs", "c")) == (["a", "b"], ["c"])
    for words in (("a",), ("a", "b", "c"), ("vs", "b"), ("a", "vs"), ("a", "vs", "b", "vs", "c")):
        with pytest.raises(UsageProblem):
            sides(words)


def test_the_exit_status_is_for_ci(tmp_path: Path, capsys) -> None:
    a = [str(write(tmp_path / f"a{i}.pf", i).path) for i in range(4)]
    b = [str(write(tmp_path / f"b{i}.pf", 9 + i, takes=noisy(9 + i, mode=0.05)).path)
         for i in range(4)]  # fmt: skip
    brief = ["--phase", "decode", "--by", "role"]
    assert run(command, [*a, "vs", *b, "--fail-over", "3%", *brief]) == 3
    assert "FAILED: time per decoded token grew by at least" in capsys.readouterr().err
    assert run(command, [*b, "vs", *a, "--fail-over", "0.03", *brief]) == 0
    assert "passed" in capsys.readouterr().err
    assert run(command, [a[0], b[0], "--fail-over", "3%", *brief]) == 0
    assert "cannot be told from the machine" in capsys.readouterr().err
    assert run(command, [a[0], b[0], "--fail-over", "much"]) == 2


def test_nonsense_is_one_clear_line(tmp_path: Path, capsys) -> None:
    a = str(write(tmp_path / "a.pf", 1).path)
    assert run(command, [a, a]) == 0
    assert "the same recording is given twice" in capsys.readouterr().out
    b = str(write(tmp_path / "b.pf", 2, tokens=0).path)
    assert run(command, [a, b, "--phase", "decode"]) == 1
    assert "a has decode, prefill; b has prefill" in capsys.readouterr().err
    assert run(command, [a, str(tmp_path / "none.pf")]) == 1
    assert "no such file" in capsys.readouterr().err
    assert run(command, [a, b, "--format", "csv"]) == 2


def test_json_has_what_the_page_says(tmp_path: Path, capsys) -> None:
    a = str(write(tmp_path / "a.pf", 1).path)
    b = str(write(tmp_path / "b.pf", 2, takes=noisy(2, slow="ffn_out", by=1.3)).path)
    assert run(command, [a, b, "--format", "json", "--fail-over-op", "5%"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert told["schema"] == "profinfer.diff/1"
    decode = told["verdicts"][0]
    assert decode["phase"] == "decode" and decode["by_runs"] is False
    assert [o["label"] for o in decode["operators"]] == ["ffn_down"]
    assert len(told["failed"]) == 1
    names = [r["name"] for r in told["results"]]
    assert (
        names == ["setup", "runs", "diff_by_kind", "graph", "diff_by_kind", "graph"][: len(names)]
    )
    page = (Path(__file__).parents[2] / "docs" / "diff.md").read_text()
    for key in (*told, *decode):
        assert f"`{key}`" in page, key


# -- traces that are not whole -----------------------------------------------------------------


def test_torn_calls_are_left_out_and_counted(tmp_path: Path, capsys) -> None:
    builder = TraceBuilder()
    graph = llama_graph(layers=LAYERS)
    ts = 1_000_000_000
    for number in range(12):
        builder.call_begin(77, ts, n_tokens=1 if number else 5, pos_first=number and number + 4)
        lost = 0 if number == 6 else None
        truth = builder.run_graph(graph, begin=ts + 500, compute=50_000, lose_batch=lost)
        ts = truth.end_ns + 300
        builder.call_end(77, ts)
        ts += 20_000
    lossy = Trace.open(builder.write(tmp_path / "lossy.pf"))
    of = compare([lossy], [lossy], "decode")
    assert [r.taken.torn for r in of.runs] == [1, 1]
    assert [r.samples.n for r in of.runs] == [10, 10]
    run(command, [str(lossy.path), str(lossy.path), "--phase", "decode"])
    assert "calls of a are left out" in capsys.readouterr().out


def test_without_operators_calls_are_compared(tmp_path: Path, capsys) -> None:
    plan = {"level": "graph", "ops": {"mode": "none"}}
    a = write(tmp_path / "a.pf", 1, plan=plan)
    b = write(tmp_path / "b.pf", 2, takes=noisy(2, mode=0.1), plan=plan)
    changes, found = judged([a], [b])
    assert not len(changes.of.units)
    assert "operators were not recorded" in found.sentence
    assert run(command, [str(a.path), str(b.path)]) == 0
    assert "calls, per decoded token" in capsys.readouterr().out
    assert run(command, [str(a.path), str(b.path), "--by", "op"]) == 2
    c = write(tmp_path / "c.pf", 3)
    changes, _ = judged([a], [c])
    assert not len(changes.of.units) and changes.total_b > 0
    assert run(command, [str(a.path), str(c.path), "--phase", "decode"]) == 0
    said = capsys.readouterr().out
    assert "level" in said and "calls, per decoded token" in said


def test_probe_cost_is_taken_off(tmp_path: Path) -> None:
    plan = {"ops": {"hit_ns": 2000}}
    a, b = (write(tmp_path / f"{i}.pf", i, plan=plan) for i in (1, 2))
    raw, less = (Changes(compare([a], [b], "decode", corrected=c)) for c in (False, True))
    ran = len([n for n in llama_graph(layers=LAYERS).nodes if not n.empty])
    assert raw.total_a - less.total_a == pytest.approx(2000 * ran)
    gone = raw.by("kind")["a_ns"].sum() - less.by("kind")["a_ns"].sum()
    assert gone == pytest.approx(2000 * ran)
