"""llama-server with four slots and eight clients: who waits in the queue, and for how long."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from llama_server import ask, recorded_server

from profinfer.analysis import latency
from profinfer.analysis.firsttoken import first_tokens, parts
from profinfer.model.trace import Trace

pytestmark = pytest.mark.e2e

SLOTS, CLIENTS = 4, 8


@pytest.fixture(scope="module")
def served(tmp_path_factory, llama_bin: Path, smollm2: Path) -> tuple[Trace, list[dict]]:
    """A recording, and of each client its answer and the seconds that it waited for it."""
    out = tmp_path_factory.mktemp("queue") / "t.pf"
    with recorded_server(llama_bin, smollm2, SLOTS, out) as port:
        answers: list[dict] = [{}] * CLIENTS

        def client(i: int) -> None:
            body = {"prompt": f"{i} rivers " * (i + 2), "n_predict": 8 + 4 * i}
            since = time.monotonic()
            answers[i] = ask(port, body | {"temperature": 0, "ignore_eos": True})
            answers[i]["waited_s"] = time.monotonic() - since

        clients = [threading.Thread(target=client, args=(i,)) for i in range(CLIENTS)]
        for thread in clients:
            thread.start()
            time.sleep(0.02)
        for thread in clients:
            thread.join()
    return Trace.open(out), answers


def test_every_request_was_queued_and_given_a_slot(served: tuple[Trace, list[dict]]) -> None:
    trace, _ = served
    requests = trace.requests[trace.requests["launched_ns"] >= 0]
    assert len(requests) == CLIENTS
    assert (requests["posted_ns"] > 0).all()
    assert (requests["launched_ns"] >= requests["posted_ns"]).all()
    assert set(requests["seq"]) == set(range(SLOTS))
    # HTTP threads queue them; none of them computes.
    assert not set(requests["tid"]) & set(trace.calls["tid"])


def test_queue_and_first_token_are_what_clients_waited_for(
    served: tuple[Trace, list[dict]],
) -> None:
    """A client's wait is queue, prompt and generation by the server's own clock."""
    trace, answers = served
    table = latency.generations(trace).sort_values("begin_ns")
    table = table[table["answered"]]
    told = parts(trace, table)
    assert len(table) == CLIENTS and told["queue_ns"].notna().all()
    sums = told[["own_ns", "others_ns", "rest_ns"]].sum(axis=1)
    assert (sums == table["ttft_ns"]).all()
    # By prompt length, which is different for each client.
    ours = dict(zip(table["prompt_tokens"], told["queue_ns"] + told["start_ns"], strict=True))
    waits = []
    for answer in answers:
        timings = answer["timings"]
        computing = (timings["prompt_ms"] + timings["predicted_ms"]) / 1e3
        waits.append((answer["waited_s"] - computing, ours[timings["prompt_n"]] / 1e9))
    for client, queue in waits:
        assert queue <= client + 0.05
        assert queue == pytest.approx(client, rel=0.2, abs=0.6)
    # Four had to wait until a slot was free, which takes at least 8 tokens.
    assert sorted(told["queue_ns"])[-SLOTS] > 5 * sorted(told["queue_ns"])[0]


def test_the_view_says_who_waited(served: tuple[Trace, list[dict]], run_profinfer) -> None:
    trace, _ = served
    told = first_tokens(trace)
    assert {"queue_ns", "own_ns", "others_ns"} <= {c.name for c in told.columns}
    assert (told.frame["others_ns"] > 0).sum() >= SLOTS
    done = run_profinfer("report", str(trace.path), "--by", "generation")
    assert done.returncode == 0, done.stderr
    assert "Time to first token" in done.stdout and "queue" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
