"""llama-server with four slots: every request told apart, and timed as the server times it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from llama_server import ask, recorded_server

from profinfer.analysis import latency
from profinfer.analysis.lifeledger import ledger
from profinfer.model.trace import Trace

pytestmark = pytest.mark.e2e

SLOTS = 4


@pytest.fixture(scope="module")
def served(tmp_path_factory, llama_bin: Path, smollm2: Path) -> tuple[Trace, list[dict]]:
    """A recording, and the server's answers: four at once, then the first prompt again."""
    out = tmp_path_factory.mktemp("server") / "t.pf"
    with recorded_server(llama_bin, smollm2, SLOTS, out) as port:
        bodies = [
            {"prompt": "once upon a time " * (i + 2), "n_predict": 100 - 25 * i, "id_slot": i}
            for i in range(SLOTS)
        ]
        common = {"temperature": 0, "ignore_eos": True, "cache_prompt": True}
        answers: list[dict] = [{}] * SLOTS

        def client(i: int) -> None:
            answers[i] = ask(port, bodies[i] | common)

        clients = [threading.Thread(target=client, args=(i,)) for i in range(SLOTS)]
        for thread in clients:
            thread.start()
            time.sleep(0.15)  # the others decode already: their tokens share its batch
        for thread in clients:
            thread.join()
        answers.append(ask(port, bodies[0] | common))
    said = out.with_suffix(".said").read_text()
    assert "none lost" in said, said
    return Trace.open(out), answers


def test_every_request_is_a_generation(served: tuple[Trace, list[dict]]) -> None:
    trace, answers = served
    assert {k: v for k, v in trace.losses.items() if v} == {}
    table = latency.generations(trace)
    table = table[table["answered"]].sort_values("begin_ns")
    first = table.drop_duplicates("seq").sort_values("seq")
    assert first["seq"].tolist() == list(range(SLOTS))
    for (_, row), answer in zip(first.iterrows(), answers, strict=False):
        assert row["prompt_tokens"] == answer["timings"]["prompt_n"]
        # The first token comes from the prefill's logits.
        assert row["output_tokens"] == answer["timings"]["predicted_n"] - 1
    again = table[table["seq"] == 0].iloc[1]
    assert again["prompt_tokens"] == answers[-1]["timings"]["prompt_n"] == 1
    assert again["output_tokens"] == answers[-1]["timings"]["predicted_n"] - 1


def test_batches_are_mixed_and_parallel(served: tuple[Trace, list[dict]]) -> None:
    trace, answers = served
    calls = trace.calls[trace.calls["phase"] != "warmup"]
    assert calls["n_seqs"].max() == SLOTS
    assert (calls["n_seqs"] > 0).all()
    parallel = calls[(calls["phase"] == "decode") & (calls["n_seqs"] > 1)]
    assert len(parallel) > 5
    assert (parallel["n_tokens"] == parallel["n_seqs"]).all()
    decoded = sum(a["timings"]["predicted_n"] - 1 for a in answers)
    assert calls["n_decoded"].sum() == decoded
    assert trace.sequences["n_tokens"].sum() == trace.calls["n_tokens"].sum()


def test_times_are_the_servers_own(served: tuple[Trace, list[dict]]) -> None:
    """prompt_ms is what the server measures from the request's first batch to its first token."""
    trace, answers = served
    table = latency.generations(trace)
    table = table[table["answered"]].sort_values("begin_ns").drop_duplicates("seq")
    ours = table.sort_values("seq")["ttft_ns"] / 1e6
    theirs = [a["timings"]["prompt_ms"] for a in answers[:SLOTS]]
    assert ours.tolist() == pytest.approx(theirs, rel=0.1, abs=5)


def test_report_and_export(served: tuple[Trace, list[dict]], tmp_path: Path, run_profinfer) -> None:
    trace, _ = served
    report = run_profinfer("report", trace.path)
    assert report.returncode == 0, report.stderr
    assert "1 context, 4 sequences" in report.stdout
    assert "decode:" in report.stdout
    assert ("mixed:" in report.stdout) == (trace.calls["phase"] == "mixed").any()
    view = run_profinfer("report", trace.path, "--by", "generation", "--format", "csv")
    assert len(view.stdout.splitlines()) == 1 + len(latency.generations(trace))
    out = tmp_path / "t.pftrace"
    assert run_profinfer("export", trace.path, "-o", out).returncode == 0


def test_the_servers_whole_run_is_told_to_the_nanosecond(
    served: tuple[Trace, list[dict]],
) -> None:
    trace, _ = served
    told = ledger(trace)
    life = trace.life
    assert life.whole and told.total is not None
    assert int(told.frame["time_ns"].sum()) == told.total["time_ns"] == life.end_ns - life.begin_ns
