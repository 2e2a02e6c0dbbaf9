"""The disk takes a third of a second for each write: the ring buffer carries that, or says so."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from profinfer.model.trace import Trace
from profinfer.tracefile.schema import CNT_LOST, CNT_OP_LOST, CNT_OP_RECORDS, CNT_SENT, Kind

pytestmark = pytest.mark.bpf

_DELAY_US = 300_000


@pytest.fixture
def record_slowly(tmp_path: Path, fake_ggml: Path):
    """Records with strace, which holds the recorder, and not the target, at each write."""
    if not shutil.which("strace"):
        pytest.skip("needs strace (apt package strace; run: make setup)")

    def run(*options: str) -> Trace:
        out, said = tmp_path / "t.pf", tmp_path / "strace.txt"
        slow = ["strace", "-o", said, "-e", "trace=writev",
                "-e", f"inject=writev:delay_exit={_DELAY_US}"]  # fmt: skip
        target = [fake_ggml, "--layers", "20", "--seconds", "3", "--base-us", "2", "--no-ops",
                  "--out", tmp_path / "truth.json"]  # fmt: skip
        record = [sys.executable, "-m", "profinfer", "record", "--no-progress", "-o", out]
        done = subprocess.run([*slow, *record, *options, "--", *target],
                              capture_output=True, text=True, timeout=120)  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert said.read_text().count("(DELAYED)") >= 5  # the disk was slow
        return Trace.open(out)

    return run


def test_the_ring_carries_it(record_slowly) -> None:
    trace = record_slowly()
    assert {k: v for k, v in trace.losses.items() if v} == {}
    assert trace.problems == [] and trace.graphs["complete"].all()
    assert len(trace.ops) > 10_000


def test_a_small_ring_loses_what_it_says(record_slowly) -> None:
    trace = record_slowly("--ring-size", "64K")
    counters, held = trace.reader.counters, trace.reader.count_by_kind()
    assert counters[CNT_OP_LOST] > 0
    assert {k: held.get(k, 0) for k in Kind} == {k: counters[CNT_SENT + k] for k in Kind}
    assert len(trace.reader.ops().ops) == counters[CNT_OP_RECORDS]
    assert trace.losses["lost_op_records"] == counters[CNT_OP_LOST]
    # Begins and ends of graphs: a target that ran to its end has as many of each.
    begun, ended = (held.get(k, 0) + counters[CNT_LOST + k]
                    for k in (Kind.GRAPH_BEGIN, Kind.GRAPH_END))  # fmt: skip
    assert begun == ended > 0
