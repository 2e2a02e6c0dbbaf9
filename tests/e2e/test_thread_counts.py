"""The same tokens with one thread and with two: who computes what, and what one cannot suffer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_interference import command, found

from profinfer.model.trace import Trace

pytestmark = pytest.mark.e2e

# Needs a second thread to wait for or to stand behind, whatever else the machine does.
NEEDS_TWO = {"oversubscribed", "shared", "spinning", "straggler", "short_operators"}


@pytest.fixture(scope="module")
def runs(
    tmp_path_factory: pytest.TempPathFactory, llama_bin: Path, smollm2: Path, run_profinfer
) -> dict[int, Trace]:
    out = {}
    for threads in (1, 2):
        path = tmp_path_factory.mktemp("runs") / f"t{threads}.pf"
        done = run_profinfer("record", "-o", path, "--", *command(llama_bin, smollm2, threads, 16))
        assert done.returncode == 0, done.stderr
        out[threads] = Trace.open(path)
    return out


def cpu_of_products(trace: Trace) -> list[int]:
    """CPU time of the feed-forward products of a token, by thread, ns.

    Of each product the least of all tokens: what else uses the machine, its host included, makes
    CPU time longer, too.
    """
    nodes = trace.nodes
    wanted = nodes["node_id"][(nodes["op"] == "MUL_MAT") & (nodes["role"] == "ffn")]
    ops = trace.select(phase="decode").rows(trace.ops)
    ops = ops[ops["node_id"].isin(wanted)]
    ran = trace.op_sched["compute_running_ns"].to_numpy()[ops.index]
    least = ops.assign(ran=ran).groupby(["tid", "node_id"])["ran"].min()
    return [int(each) for each in least.groupby("tid").sum()]


def test_two_threads_share_the_work_of_one(runs: dict[int, Trace]) -> None:
    (alone,) = cpu_of_products(runs[1])
    both = cpu_of_products(runs[2])
    assert len(both) == 2 and min(both) > 0
    assert min(both) < 0.8 * alone
    assert sum(both) > 0.6 * alone
    tokens = {n: t.select(phase="decode").n_tokens for n, t in runs.items()}
    assert tokens[1] == tokens[2] == 15


def test_one_thread_waits_for_nobody(runs: dict[int, Trace]) -> None:
    assert not NEEDS_TWO & set(found(runs[1]))
    sums = runs[1].sums(runs[1].select(phase="decode"))
    # What stands for its barrier is the recorder's own time.
    assert sums.wait.sum() < 0.05 * sums.wall.sum()
    assert "oversubscribed" not in found(runs[2])
    for trace in runs.values():
        assert "throttled" not in found(trace)


def test_both_in_one_table(runs: dict[int, Trace], run_profinfer) -> None:
    paths = [trace.path for trace in runs.values()]
    done = run_profinfer("scaling", *paths, "--format", "json")
    assert done.returncode == 0, done.stderr
    (rows, *_) = json.loads(done.stdout)["results"]
    assert [row["threads"] for row in rows["rows"]] == [1, 2]
