from __future__ import annotations

from pathlib import Path

from builders import TraceBuilder, llama_graph, sample_run

from profinfer.model.trace import Trace


class Calls:
    """Calls of a millisecond each, one after another."""

    def __init__(self) -> None:
        self.builder = TraceBuilder()
        self.ts = 1_000_000

    def call(self, n_tokens: int, pos: int = -1, ctx: int = 0xC0, tid: int = 77) -> None:
        self.builder.call_begin(tid, self.ts, n_tokens=n_tokens, pos_first=pos, ctx=ctx)
        self.builder.call_end(tid, self.ts + 1_000_000)
        self.ts += 2_000_000

    def sample(self) -> None:
        self.builder.sample_begin(77, self.ts)
        self.builder.sample_end(77, self.ts + 1000)
        self.ts += 2000

    def mark(self, value: int) -> None:
        self.builder.warmup(77, self.ts, value)
        self.ts += 1000

    def phases(self, tmp_path: Path) -> list[tuple[str, int, int]]:
        calls = Trace.open(self.builder.write(tmp_path / "t.pf")).calls
        columns = ("phase", "generation", "token_index")
        return list(zip(*(calls[c].tolist() for c in columns), strict=True))


OFF, ON, RESET = 0, 1, 2


def test_generations_and_tokens(tmp_path: Path) -> None:
    run = Calls()
    for n, pos in ((5, 0), (3, 5), (1, 8), (1, 9), (4, 10), (1, 14)):
        run.call(n, pos)
    assert run.phases(tmp_path) == [
        ("prefill", 0, -1),
        ("prefill", 0, -1),  # a prompt in two batches is one generation
        ("decode", 0, 0),
        ("decode", 0, 1),
        ("prefill", 1, -1),
        ("decode", 1, 0),
    ]


def test_a_prompt_of_one_token_is_prefill(tmp_path: Path) -> None:
    run = Calls()
    for pos in (0, 1, 0, 1):
        run.call(1, pos)
    assert [p for p, _, _ in run.phases(tmp_path)] == ["prefill", "decode"] * 2
    run = Calls()
    run.call(1, -1)
    run.call(1, -1)
    assert [p for p, _, _ in run.phases(tmp_path)] == ["prefill", "decode"]


def test_a_context_first_seen_in_the_middle_of_a_generation(tmp_path: Path) -> None:
    """A recording of a running process: there is no prompt to be seen, and none is made up."""
    run = Calls()
    for n, pos in ((1, 9), (1, 10), (4, 0), (1, 4)):
        run.call(n, pos)
    assert run.phases(tmp_path) == [
        ("decode", 0, 0),
        ("decode", 0, 1),
        ("prefill", 1, -1),
        ("decode", 1, 0),
    ]


def test_contexts_do_not_mix(tmp_path: Path) -> None:
    run = Calls()
    for n, ctx in ((5, 1), (7, 2), (1, 1), (1, 2), (1, 1)):
        run.call(n, ctx=ctx)
    assert run.phases(tmp_path) == [
        ("prefill", 0, -1),
        ("prefill", 0, -1),
        ("decode", 0, 0),
        ("decode", 0, 0),
        ("decode", 0, 1),
    ]


def test_warm_up_between_on_and_off(tmp_path: Path) -> None:
    run = Calls()
    run.mark(ON)
    run.call(2, 0)
    run.mark(OFF)
    run.call(5, 0)
    run.call(1, 5)
    assert [p for p, _, _ in run.phases(tmp_path)] == ["warmup", "prefill", "decode"]


def test_warm_up_before_a_reset(tmp_path: Path) -> None:
    run = Calls()
    run.call(2, 0)
    run.mark(RESET)
    run.mark(RESET)
    run.call(5, 0)
    run.sample()
    run.call(1, 5)
    run.sample()
    # A reset after something was sampled ends a real run: it was no warm-up.
    run.mark(RESET)
    run.call(4, 0)
    assert [p for p, _, _ in run.phases(tmp_path)] == ["warmup", "prefill", "decode", "prefill"]


def test_another_threads_sampling_does_not_make_a_warm_up_real(tmp_path: Path) -> None:
    run = Calls()
    run.call(2, 0, ctx=1)
    run.builder.sample_begin(99, run.ts)
    run.builder.sample_end(99, run.ts + 10)
    run.builder.warmup(77, run.ts + 20, RESET, ctx=1)
    assert [p for p, _, _ in run.phases(tmp_path)] == ["warmup"]


def test_reset_of_another_context_says_nothing(tmp_path: Path) -> None:
    run = Calls()
    run.call(2, 0, ctx=1)
    run.call(2, 0, ctx=2)
    run.builder.warmup(77, run.ts, RESET, ctx=2)
    assert [p for p, _, _ in run.phases(tmp_path)] == ["prefill", "warmup"]


def test_tokens_that_were_not_read_come_from_the_graph(tmp_path: Path) -> None:
    builder = TraceBuilder()
    ts = 1000
    for n_tokens in (5, 1):
        builder.call_begin(77, ts, n_tokens=-1)
        end = builder.run_graph(llama_graph(n_tokens=n_tokens), begin=ts + 100).end_ns
        builder.call_end(77, end + 100)
        ts = end + 1000
    trace = Trace.open(builder.write(tmp_path / "t.pf"))
    assert trace.calls["n_tokens"].tolist() == [5, 1]
    assert trace.calls["phase"].tolist() == ["prefill", "decode"]
    assert trace.graphs["phase"].tolist() == ["prefill", "decode"]
    assert trace.tokens_from_graphs == 2


def test_nested_calls_are_one_and_share_what_they_know(tmp_path: Path) -> None:
    builder = TraceBuilder()
    builder.call_begin(77, 1000, n_tokens=-1, probe=0)
    builder.call_begin(77, 1100, n_tokens=7, pos_first=0, pos_last=6, probe=5)
    builder.call_end(77, 1900, probe=5)
    builder.call_end(77, 2000, probe=0)
    calls = Trace.open(builder.write(tmp_path / "t.pf")).calls
    row = calls.iloc[0]
    assert len(calls) == 1
    assert (row["begin_ns"], row["end_ns"], row["n_tokens"]) == (1000, 2000, 7)
    assert (row["pos_first"], row["pos_last"]) == (0, 6)


def test_nested_samplers_are_folded(tmp_path: Path) -> None:
    builder = TraceBuilder()
    builder.sample_begin(77, 100, probe=1)
    builder.sample_begin(77, 110, probe=1)
    builder.sample_end(77, 150, probe=1)
    builder.sample_end(77, 200, probe=1)
    samples = Trace.open(builder.write(tmp_path / "t.pf")).samples
    assert samples[["begin_ns", "end_ns"]].to_numpy().tolist() == [[100, 200]]


def test_everything_hangs_together(tmp_path: Path) -> None:
    run = sample_run()
    trace = Trace.open(run.builder.write(tmp_path / "t.pf"))
    assert trace.calls["phase"].tolist() == ["warmup", "prefill", *["decode"] * 3]
    assert trace.graphs["call_id"].tolist() == [0, 1, 2, 3, 4]
    assert trace.graphs["split_id"].tolist() == [0, 1, 2, 3, 4]
    assert trace.graphs["phase"].tolist() == trace.calls["phase"].tolist()
    assert list(zip(trace.calls["begin_ns"], trace.calls["end_ns"], strict=True)) == run.call_ns


def test_selections_say_what_they_cover(tmp_path: Path) -> None:
    trace = Trace.open(sample_run().builder.write(tmp_path / "t.pf"))
    chosen = trace.select(phase="decode", tokens=(1, 3))
    assert chosen.calls.tolist() == [False, False, False, True, True]
    assert chosen.description == (
        "decode: 2 tokens, 2 calls, 2 graphs, tokens 1:3, warm-up excluded"
    )
    assert "warm-up" not in trace.select(warmup=True).description
    assert trace.select().n_tokens == 8
    assert trace.select(phase="encode").empty
