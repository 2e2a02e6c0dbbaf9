"""Findings about decoding and prompts: each appears where it should, with its prize.

One builder plays a run in which everything is well; each test spoils one thing.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from builders import Graph, TraceBuilder, llama_graph
from test_bandwidth import calibration

from profinfer.analysis.explanations import EXPLANATIONS
from profinfer.analysis.finding import Finding, Prize, ranked
from profinfer.analysis.findings import findings
from profinfer.cli import run as run_cli
from profinfer.cli.report import command
from profinfer.model.trace import Trace

US = 1_000
MS = 1_000_000
Takes = Callable[[int, int], int]


@dataclass
class Play:
    """A warm-up, a prompt in pieces, and decode steps.

    Attributes:
        prompt: tokens of each call of the prompt.
        steps: decode steps.
        node_ns: what an operator takes each thread: a number, or by (node index, thread).
        prompt_ns: the same, in the prompt's calls.
        sampling_ns: after each call.
        build_ns: in each call before its graph.
        first_ns: that the first decode step's operators take instead.
        at: position of the first decoded token.
        warmup: whether there is one.
        changes: of the metadata.
    """

    prompt: tuple[int, ...] = (64,)
    steps: int = 10
    node_ns: Takes | int = 100 * US
    prompt_ns: Takes | int = 200 * US
    sampling_ns: int = 10 * US
    build_ns: int = 20 * US
    first_ns: int | None = None
    at: int = 64
    warmup: bool = True
    tids: tuple[int, ...] = (77, 78)
    fresh: bool = False
    graph: Callable[..., Graph] = llama_graph
    changes: dict[str, Any] = field(default_factory=dict)

    def trace(self, folder: Path) -> Trace:
        b = TraceBuilder(**self.changes)
        self.now = MS
        for tid in self.tids:
            b.thread(tid, self.now, "llama")
        b.buffer(77, self.now, gen=self.now, addr=0x5000, usage=0)
        b.buffer(77, self.now, gen=self.now, addr=0x5001, usage=1)
        if self.warmup:
            b.warmup(77, self.now, 1)
            self.call(b, 2, 0, self.node_ns)
            b.warmup(77, self.now, 0)
        done = 0
        for tokens in self.prompt:
            self.call(b, tokens, done, self.prompt_ns)
            done += tokens
        self.sample(b)
        for step in range(self.steps):
            spoilt = self.first_ns is not None and step == 0
            self.call(b, 1, self.at + step, self.first_ns if spoilt else self.node_ns)
            self.sample(b)
        return Trace.open(b.write(folder / "t.pf"))

    def call(self, b: TraceBuilder, tokens: int, position: int, takes: Any) -> None:
        begin = self.now + US
        b.call_begin(
            77, begin, n_tokens=tokens, pos_first=position, pos_last=position + tokens - 1, seq=0
        )
        graph = self.graph(n_tokens=tokens)
        walk = 100 * US if self.fresh else 50
        start = begin + self.build_ns + walk
        truth = b.run_graph(graph, begin=start, tids=self.tids, compute=takes, walk_ns=walk)
        self.now = truth.end_ns + US
        b.call_end(77, self.now)

    def sample(self, b: TraceBuilder) -> None:
        b.sample_begin(77, self.now + 100)
        self.now += 100 + self.sampling_ns
        b.sample_end(77, self.now)


def found(play: Play, folder: Path) -> dict[str, Finding]:
    trace = play.trace(folder)
    return {f.name: f for f in findings(trace, trace.select())}


def index_of(name: str) -> int:
    """Node of the graph by name and operator."""
    nodes = llama_graph().nodes
    return next(i for i, n in enumerate(nodes) if n.name == name)


def test_nothing_is_found_in_a_run_where_all_is_well(tmp_path: Path) -> None:
    assert found(Play(), tmp_path) == {}


def test_nothing_is_said_of_a_few_steps(tmp_path: Path) -> None:
    assert found(Play(steps=7, sampling_ns=10 * MS, build_ns=10 * MS), tmp_path) == {}


def test_sampling(tmp_path: Path) -> None:
    """Operators take 3.4 ms a step; 2 ms of sampling is more than a third of it all."""
    said = found(Play(sampling_ns=2 * MS), tmp_path)
    assert set(said) == {"sampling"}
    prize = said["sampling"].prize
    assert prize is not None and prize.per_token_ns == pytest.approx(2 * MS, rel=0.01)
    assert prize.share == said["sampling"].evidence["share"].value
    assert "2.00 ms a token" in said["sampling"].text
    assert found(Play(sampling_ns=100 * US), tmp_path) == {}


def test_building_graphs(tmp_path: Path) -> None:
    said = found(Play(build_ns=MS, fresh=True), tmp_path)["graph_build"]
    assert said.prize is not None and said.prize.per_token_ns == pytest.approx(MS, rel=0.01)
    assert said.evidence["new_graphs"].value == said.evidence["graphs"].value == 10
    assert "LLAMA_GRAPH_REUSE_DISABLE" in said.tries
    # The same time, and the graph is an old one: it is no graph that takes it.
    assert "longer batches" in found(Play(build_ns=MS), tmp_path)["graph_build"].tries
    assert found(Play(build_ns=200 * US), tmp_path) == {}


def test_a_cold_first_token(tmp_path: Path) -> None:
    slow = Play(first_ns=400 * US, warmup=False)
    said = found(slow, tmp_path)
    assert set(said) == {"first_token"}
    prize = said["first_token"].prize
    nodes = sum(not n.empty for n in llama_graph().nodes)
    assert prize is not None and prize.ns == pytest.approx(nodes * 300 * US, rel=0.01)
    assert prize.per_token_ns is None and prize.text.endswith("ms once")
    # It warmed up, so it is something else.
    slow.warmup = True
    assert found(slow, tmp_path) == {}
    assert found(Play(first_ns=150 * US, warmup=False), tmp_path) == {}


def test_the_output_head(tmp_path: Path) -> None:
    head = index_of("result_output")
    play = Play(node_ns=lambda n, t: 3 * MS if n == head else 100 * US)
    said = found(play, tmp_path)
    assert set(said) == {"output_head"}
    assert "logits of 256 tokens from q8_0 weights" in said["output_head"].text
    prize = said["output_head"].prize
    # q8_0 has 8.5 bits; q4_0 has 4.5.
    assert prize is not None and prize.per_token_ns == pytest.approx(3 * MS * 4 / 8.5, rel=0.01)
    play.node_ns = lambda n, t: 500 * US if n == head else 100 * US
    assert found(play, tmp_path) == {}


ATTENTION = {index_of(name) for name in ("kq-0", "kq_soft_max-0", "kq-1", "kq_soft_max-1")}


def attention(n: int, t: int) -> int:
    return MS if n in ATTENTION else 100 * US


def test_attention_over_a_long_context(tmp_path: Path) -> None:
    said = found(Play(node_ns=attention, at=4000), tmp_path)
    assert set(said) == {"attention"}
    assert "at a context of 4,004 tokens, with flash attention off and a f16 KV cache" in (
        said["attention"].text
    )
    assert said["attention"].tries == "-fa on"
    prize = said["attention"].prize
    assert prize is not None and prize.per_token_ns == pytest.approx(2 * MS, rel=0.01)
    # The same in a short context: flash attention or not, it is not the context.
    assert found(Play(node_ns=attention), tmp_path) == {}


def flash_graph(**how: Any) -> Graph:
    """The same with one flash attention operator instead of product and softmax."""
    graph = llama_graph(**how)
    for node in graph.nodes:
        if node.name.startswith("kq-"):
            node.op, node.src = "FLASH_ATTN_EXT", (node.src[1], node.src[0])
    return graph


def test_flash_attention_over_a_cache_of_16_bits(tmp_path: Path) -> None:
    play = Play(node_ns=lambda n, t: 4 * attention(n, t), at=4000, graph=flash_graph)
    said = found(play, tmp_path)["attention"]
    assert said.tries.startswith("-ctk q8_0 -ctv q8_0")
    assert said.prize is not None and "8.5" in said.prize.how
    share = float(said.evidence["time_ns"].value) * (1 - 8.5 / 16)
    assert said.prize.ns == pytest.approx(share, rel=0.01)


def test_barriers_of_short_operators(tmp_path: Path) -> None:
    uneven = Play(node_ns=lambda n, t: 10 * US if t else 4 * US, build_ns=2 * US, sampling_ns=US)
    said = found(uneven, tmp_path)
    assert set(said) == {"short_operators"}
    prize = said["short_operators"].prize
    nodes = sum(not n.empty for n in llama_graph().nodes)
    # 6 of 10 us are waited for by one of two threads; the last node has no barrier.
    assert prize is not None and prize.per_token_ns == pytest.approx(3 * US * nodes, rel=0.05)
    # The same with longer ones is another matter.
    long = Play(node_ns=lambda n, t: 100 * US if t else 40 * US)
    assert "short_operators" not in found(long, tmp_path)


def test_prompts_in_small_pieces(tmp_path: Path) -> None:
    """A step takes 3.4 ms; eight tokens take 4.1 ms: nearly all is paid for each piece."""
    play = Play(prompt=(8,) * 32, prompt_ns=120 * US, at=256)
    said = found(play, tmp_path)
    assert set(said) == {"small_pieces"}
    assert "8 tokens a graph, of prompts of up to 256" in said["small_pieces"].text
    nodes = sum(not n.empty for n in llama_graph().nodes)
    fixed = nodes * (100 - 20 / 7) * US
    prize = said["small_pieces"].prize
    assert prize is not None
    assert prize.ns == pytest.approx(256 * fixed * (1 / 8 - 1 / 256), rel=0.05)
    # Larger pieces, or a prompt that has no more tokens.
    assert found(Play(prompt=(64,) * 4, at=256), tmp_path) == {}
    assert found(Play(prompt=(8,) * 4, prompt_ns=120 * US, at=32), tmp_path) == {}
    # Pieces cost by token: larger ones would win nothing.
    assert found(Play(prompt=(8,) * 32, prompt_ns=790 * US, at=256), tmp_path) == {}


def test_fewer_threads_than_cores(tmp_path: Path) -> None:
    four = {"limits": {"cpus": [0, 1, 2, 3]}}
    said = found(Play(changes=four), tmp_path)
    assert set(said) == {"few_threads"}
    assert said["few_threads"].tries.startswith("-tb 4")
    prize = said["few_threads"].prize
    assert prize is not None and prize.share == pytest.approx(0.5, abs=0.02)
    # Four CPUs of two cores: the two threads have one each.
    pairs = {str(n): {"core": n // 2, "package": 0} for n in range(4)}
    smt = four | {"host": {"topology": {"cpus": pairs}}}
    assert found(Play(changes=smt), tmp_path) == {}
    # One token at a time is not bound by arithmetic.
    assert found(Play(prompt=(8, 8, 8), at=24, changes=four), tmp_path) == {}


def plain_graph(**how: Any) -> Graph:
    """The same with weights that are not quantised."""
    graph = llama_graph(**how)
    for leaf in graph.leafs:
        leaf.type = "f16" if leaf.name.endswith(".weight") and leaf.ne[1] > 1 else leaf.type
    return graph


def test_slow_matrix_products(tmp_path: Path) -> None:
    """Only with a calibration, and only far below it."""
    products = {i for i, n in enumerate(llama_graph().nodes) if n.op == "MUL_MAT"}
    play = Play(prompt=(128,), at=128, prompt_ns=lambda n, t: MS if n in products else 10 * US)
    play.graph = plain_graph
    assert found(play, tmp_path) == {}
    slow = calibration({2: 1e15})
    for roof in slow["roofs"]:
        roof["best"] = roof["median"] = {"fp32": 1e11, "int8": 1e11}.get(roof["kind"], 1e15)
    play.changes = {"calibration": slow}
    said = found(play, tmp_path)
    assert set(said) == {"slow_products"}
    assert "no BLAS computed them" in said["slow_products"].text
    assert float(said["slow_products"].evidence["of_compute"].value) < 0.15
    # Of quantised weights nothing is said.
    play.graph = llama_graph
    assert found(play, tmp_path) == {}
    play.graph = plain_graph
    for roof in slow["roofs"]:
        roof["best"] = roof["median"] = {"fp32": 5e9, "int8": 5e9}.get(roof["kind"], 1e15)
    assert found(play, tmp_path) == {}


def test_the_largest_prize_comes_first() -> None:
    small = Finding("a", 0.9, "", prize=Prize(10, 1, 100, ""))
    large = Finding("b", None, "", prize=Prize(20, 1, 100, ""))
    without = Finding("c", 0.5, "")
    assert [f.name for f in ranked([without, small, large])] == ["b", "a", "c"]


def test_sentences() -> None:
    said = Finding("a", None, "slow", "-t 2", prize=Prize(42 * MS, 20, 210 * MS, "x"))
    assert said.sentence == "slow; try -t 2; saves up to 2.10 ms/token (20.0 %)"
    assert Finding("a", None, "slow").sentence == "slow"
    assert (
        Prize(42 * MS, 20, 210 * MS, "x", more=True).text == "saves 2.10 ms/token (20.0 %) or more"
    )


def test_explain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Play(sampling_ns=2 * MS).trace(tmp_path)
    path = str(tmp_path / "t.pf")
    assert run_cli(command, [path, "--explain"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert out.startswith("1. sampling (setting): saves up to 2.00 ms/token (")
    flat = " ".join(out.split())
    for part in ("scope", "means", "found", "prize", "try", "check", "evidence", "5 % of the time"):
        assert part in flat
    assert run_cli(command, [path, "--explain", "attention"]) == 0
    assert capsys.readouterr().out.startswith("attention (limit): not found in this run")
    assert run_cli(command, [path, "--explain", "nonsense"]) != 0
    assert "there is no finding called nonsense" in capsys.readouterr().err
    assert run_cli(command, [path, "--explain", "--by", "op"]) != 0
    assert "--explain is a view of its own" in capsys.readouterr().err


def test_explain_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Play(sampling_ns=2 * MS).trace(tmp_path)
    assert run_cli(command, [str(tmp_path / "t.pf"), "--explain", "--format", "json"]) == 0
    told = json.loads(capsys.readouterr().out)
    (said,) = told["findings"]
    assert said["name"] == "sampling" and said["kind"] == "setting"
    assert said["prize"]["per_token_ns"] == pytest.approx(2 * MS, rel=0.01)
    assert said["evidence"]["tokens"] == {
        "value": 10, "unit": "count", "about": "Tokens decoded.",
    }  # fmt: skip
    assert [r["name"] for r in told["results"]] == ["findings", "evidence"]


def test_nothing_to_explain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Play().trace(tmp_path)
    assert run_cli(command, [str(tmp_path / "t.pf"), "--explain"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    # The builder's trace has operators, but neither the scheduler's events nor faults.
    assert said.startswith("Nothing was found to be wrong in what could be checked: all phases")
    assert said.endswith(
        "not checked: the scheduler: its events were not recorded "
        "not checked: page faults and disk reads: not recorded"
    )


def test_a_trace_without_operators_says_what_could_not_be_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    b = TraceBuilder(plan={"level": "graph", "ops": {"mode": "none"}}, memory={"recorded": True})
    b.call_begin(77, MS, n_tokens=1)
    b.call_end(77, 9 * MS)
    b.sched(77, 2 * MS, "out", other=(900, 900, "stress"))
    b.sched(77, 7 * MS, "in", other=(77, 77, "llama"))
    path = b.write(tmp_path / "t.pf")
    assert run_cli(command, [str(path), "--explain"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "in what could be checked" in said
    assert "none were recorded at level graph; the program's threads wanted to run" in said
    assert said.endswith("had no CPU for 5.00 ms in all")
    assert run_cli(command, [str(path), "--explain", "--format", "json"]) == 0
    assert (
        "not checked: operators"
        in json.loads(capsys.readouterr().out)["results"][0]["notes"][0]["text"]
    )


def test_a_file_that_was_cut_before_the_first_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for trailer, says in ((False, "its end is missing"), (True, "the program ran no inference")):
        path = TraceBuilder().write(tmp_path / "t.pf", trailer)
        assert run_cli(command, [str(path)]) != 0
        assert says in capsys.readouterr().err


def test_every_explanation_has_all_its_parts() -> None:
    for name, about in EXPLANATIONS.items():
        assert about.means and about.found and about.check, name
        assert about.means.endswith(".") and about.found.endswith("."), name
    sources = Path(findings.__code__.co_filename).parent.glob("*.py")
    made = {
        name for path in sources for name in re.findall(r'[Ff]inding\(\s*"(\w+)"', path.read_text())
    }
    assert made == set(EXPLANATIONS)
