"""Sequences of a batch, phases of its calls, generations: from records in memory."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from builders import TraceBuilder

from profinfer.analysis import latency
from profinfer.analysis.generations import generations
from profinfer.model.trace import Trace
from profinfer.tracefile.schema import SEQS_CUT

MS = 1_000_000


class Server:
    """Calls of a millisecond, one every two."""

    def __init__(self) -> None:
        self.builder = TraceBuilder()
        self.ts = MS

    def call(self, *runs: tuple[int, int, int], ret: int = 0, flags: int = 0, lost=False) -> None:
        n = sum(n for _, _, n in runs)
        alone = runs[0][0] if n == 1 else -1
        self.builder.call_begin(77, self.ts, n_tokens=n, pos_first=runs[0][1], seq=alone)
        if n > 1 and not lost:
            self.builder.seqs(77, self.ts, runs, flags=flags)
        self.builder.call_end(77, self.ts + MS, value=ret)
        self.ts += 2 * MS

    def sample(self) -> None:
        self.builder.sample_begin(77, self.ts - MS + 10)
        self.builder.sample_end(77, self.ts - MS + 1000)

    def trace(self, tmp_path: Path) -> Trace:
        return Trace.open(self.builder.write(tmp_path / "t.pf"))


def test_phases_of_a_batch(tmp_path: Path) -> None:
    server = Server()
    server.call((0, 0, 5))
    server.call((0, 5, 1), (1, 0, 4))
    server.call((0, 6, 1), (1, 4, 1))
    server.call((1, 5, 1))
    trace = server.trace(tmp_path)
    calls, seqs = trace.calls, trace.sequences
    assert calls["phase"].tolist() == ["prefill", "mixed", "decode", "decode"]
    assert calls["n_seqs"].tolist() == [1, 2, 2, 1]
    assert calls["seq"].tolist() == [0, -1, -1, 1]
    assert calls["n_decoded"].tolist() == [0, 1, 2, 1]
    assert calls["generation"].tolist() == [0, -1, -1, 0]
    assert seqs["call_id"].tolist() == [0, 1, 1, 2, 2, 3]
    assert seqs["phase"].tolist() == ["prefill", "decode", "prefill", *["decode"] * 3]
    assert seqs["token_index"].tolist() == [-1, 0, -1, 1, 0, 1]
    assert trace.losses["torn_batches"] == 0


def test_tokens_of_each_sequence_are_counted_apart(tmp_path: Path) -> None:
    server = Server()
    server.call((0, 0, 5))
    server.call((0, 5, 1), (1, 0, 4))
    for i in range(3):
        server.call((0, 6 + i, 1), (1, 4 + i, 1))
    trace = server.trace(tmp_path)
    table = generations(trace).frame
    assert table["prompt_tokens"].tolist() == [5, 4]
    assert table["output_tokens"].tolist() == [4, 3]
    assert table["ttft_ns"].tolist() == [MS, MS]
    assert table["tpot_p50_ns"].tolist() == [2 * MS, 2 * MS]
    assert len(latency.time_per_output_token(trace)) == 3 + 2
    speed = {s.phase: s for s in latency.speeds(trace)}
    assert (speed["decode"].tokens, speed["decode"].calls) == (6, 3)
    assert speed["mixed"].tokens == 5
    chosen = trace.select(phase="decode", tokens=(2, 3))
    assert chosen.calls.tolist() == [False, False, False, True, True]  # 2 of either sequence


def test_the_same_prompt_again(tmp_path: Path) -> None:
    """A server keeps the cache of a slot: only the last token of a known prompt is computed."""
    server = Server()
    server.call((0, 0, 5))
    for pos in (5, 6, 7):
        server.call((0, pos, 1))
    server.call((0, 4, 1))
    server.call((0, 5, 1))
    trace = server.trace(tmp_path)
    assert trace.calls["phase"].tolist() == ["prefill", *["decode"] * 3, "prefill", "decode"]
    assert trace.calls["generation"].tolist() == [0, 0, 0, 0, 1, 1]


def test_positions_ahead_are_a_call_that_was_not_recorded(tmp_path: Path) -> None:
    server = Server()
    server.call((0, 0, 5))
    server.call((0, 7, 1))
    assert server.trace(tmp_path).calls["phase"].tolist() == ["prefill", "decode"]


def test_a_call_that_failed_is_not_counted(tmp_path: Path) -> None:
    server = Server()
    server.call((0, 0, 5), ret=1)  # no place in the cache: the server tries again
    server.call((0, 0, 5))
    trace = server.trace(tmp_path)
    assert trace.calls["phase"].tolist() == ["other", "prefill"]
    assert generations(trace).frame["prompt_tokens"].tolist() == [5]


@pytest.mark.parametrize("how", ["lost", "cut"])
def test_sequences_that_were_not_recorded(tmp_path: Path, how: str) -> None:
    server = Server()
    server.call((0, 0, 3), (1, 0, 4), lost=how == "lost", flags=SEQS_CUT)
    trace = server.trace(tmp_path)
    row = trace.sequences.iloc[0]
    assert (len(trace.sequences), row["seq"], row["n_tokens"]) == (1, -1, 7)
    assert trace.calls["n_seqs"].tolist() == [-1]
    assert trace.losses["torn_batches"] == (how == "cut")


def test_runs_of_several_records(tmp_path: Path) -> None:
    server = Server()
    runs = [(s, i, 1) for i in range(30) for s in range(3)]
    server.call(*runs)
    trace = server.trace(tmp_path)
    assert trace.sequences[["seq", "pos_first", "n_tokens"]].to_numpy().tolist() == [
        [0, 0, 30],
        [1, 0, 30],
        [2, 0, 30],
    ]


def test_a_wrapped_call_has_the_outer_ones_sequences(tmp_path: Path) -> None:
    b = TraceBuilder()
    b.call_begin(77, 1000, n_tokens=2, probe=0)
    b.seqs(77, 1000, [(3, 0, 2)])
    b.call_begin(77, 1100, n_tokens=2, probe=5)
    b.seqs(77, 1100, [(3, 0, 2)])
    b.call_end(77, 1900, probe=5)
    b.call_end(77, 2000, probe=0)
    trace = Trace.open(b.write(tmp_path / "t.pf"))
    assert trace.sequences[["seq", "n_tokens"]].to_numpy().tolist() == [[3, 2]]


def test_only_answered_prompts_have_a_time_to_first_token(tmp_path: Path) -> None:
    """Servers try a batch out when they start; nobody samples from it."""
    server = Server()
    server.call((0, 0, 2))
    server.call((0, 0, 5))
    server.sample()
    server.call((0, 5, 1))
    server.sample()
    trace = server.trace(tmp_path)
    assert latency.generations(trace)["answered"].tolist() == [False, True]
    assert latency.time_to_first_token(trace).tolist() == [MS + 1000]


def test_generation_view_names_contexts_by_number(tmp_path: Path) -> None:
    b = TraceBuilder()
    for n, ctx in enumerate((0xA0, 0xB0)):
        b.call_begin(77, 1000 + 3000 * n, n_tokens=2, pos_first=0, ctx=ctx)
        b.call_end(77, 2000 + 3000 * n)
    result = generations(Trace.open(b.write(tmp_path / "t.pf")))
    assert result.frame["context"].tolist() == [0, 1]
    assert result.frame["sequence"].isna().all()
    assert result.scope == "2 contexts, 2 sequences"
    assert result.frame["tpot_p50_ns"].isna().all()
    assert pd.isna(result.frame["per_s"]).all()
