"""What the kernel writes in four bytes an operator is what it was given, wherever batches break."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders import TraceBuilder
from truth import matched_ops, read_truth

from profinfer.capture.drain import RingReader
from profinfer.model.trace import Trace
from profinfer.tracefile.opbatches import OpRecords
from profinfer.tracefile.reader import TraceReader
from profinfer.tracefile.schema import (
    CNT_COUNT,
    CNT_OP_RECORDS,
    OPS_COMPACT,
    OPS_LAST,
    OPS_MAX_STEP,
    OPS_PER_BATCH,
    OpKind,
)
from tools.bench import hit

pytestmark = pytest.mark.bpf

ROUNDS = 3


def recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: int, *defines: str
) -> OpRecords:
    """Operator records of a loop whose index is 1 * factor, 2 * factor, ..."""
    monkeypatch.setattr(hit, "ROUNDS", ROUNDS)
    handlers = hit.Variant("").handlers.replace("(u32)ctx->r12", f"(u32)ctx->r12 * {factor}")
    loop = hit.Loop(tmp_path)
    builder = TraceBuilder()
    try:
        with hit.attached(hit.Variant("", handlers, defines=defines), loop) as program:
            ring = RingReader(program.ring_fd("ring"), hit.RING)
            loop.run(1)
            ring.drain(lambda block, tensors: builder._ring.extend(block))
            assert program.counters("counters", CNT_COUNT)[CNT_OP_RECORDS] == ROUNDS * (hit.OPS + 2)
            ring.close()
    finally:
        loop.close()
    builder.flush()
    with TraceReader(builder.write(tmp_path / "t.pf", trailer=False)) as reader:
        assert not [said for said in reader.problems if "trailer" not in said]
        return reader.ops()


@pytest.mark.parametrize("defines", [(), ("-DPF_OPS_WIDE",)])
@pytest.mark.parametrize("factor", [1, 15, OPS_MAX_STEP, OPS_MAX_STEP + 1, -1, 0, 1 << 16])
def test_every_index_comes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: int, defines: tuple[str, ...]
) -> None:
    _, batches, ops, counts = recorded(tmp_path, monkeypatch, factor, *defines)
    index = (np.arange(1, hit.OPS + 1) * factor) & 0xFFFFFF
    once = [OpKind.ENTER << 24, *(OpKind.END << 24 | index).tolist(), OpKind.LEAVE << 24]
    assert ops["what"].tolist() == once * ROUNDS
    assert batches["seq"].tolist() == list(range(len(batches)))
    assert (batches["flags"] & OPS_COMPACT != 0).all() == (not defines)
    assert (batches["flags"] & OPS_LAST != 0).sum() == ROUNDS
    times = np.repeat(batches["ts"].astype(np.int64), counts) + ops["dt"]
    assert (np.diff(times) >= 0).all()
    steps = np.diff(index, prepend=-1)  # after an ENTER the index before counts as -1
    breaks = 0 if defines else int(((steps < 1) | (steps > OPS_MAX_STEP)).sum())
    wanted = ROUNDS * (1 + breaks)
    assert wanted <= len(batches) <= wanted + 2  # more where the loop was held up for 0.13 s
    assert counts.max() <= OPS_PER_BATCH


PAIR = """
import profinfer.probes.draft as draft
from profinfer.cli import main
draft.loop_sites = lambda *args, **kwargs: ([], "not wanted")
main()
"""


def test_begins_and_barriers_stay_wide(tmp_path: Path, fake_ggml: Path) -> None:
    out, told = tmp_path / "t.pf", tmp_path / "truth.json"
    target = [fake_ggml, "--layers", "3", "--tokens", "3", "--out", told]
    command = [sys.executable, "-c", PAIR, "record", "-o", out, "--", *target]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    trace, truth = Trace.open(out), read_truth(told)
    assert trace.problems == [] and trace.graphs["complete"].all()
    with TraceReader(out) as reader:
        ops = reader.ops()
    assert (ops.batches["flags"] & OPS_COMPACT == 0).all()
    assert {*(ops.ops["what"] >> 24).tolist()} == {*OpKind} - {OpKind.END}
    both = matched_ops(trace, truth)
    assert len(both) > 100 and (both["_merge"] == "both").all()
