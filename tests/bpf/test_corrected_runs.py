"""Corrected times are nearer to those of a run without probes."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from profinfer.analysis.correction import probe_cost_ns
from profinfer.model.trace import Trace

pytestmark = pytest.mark.bpf

ARGS = ["--threads", "1", "--layers", "2", "--base-us", "1", "--tokens", "400", "--kv-pad", "1024",
        "--no-ops"]  # fmt: skip
ROUNDS = 5


def test_nearer_to_the_untraced_run(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    """Runs in turn; the best half of each kind's calls, since others use the machine too."""
    told = tmp_path / "truth.json"
    alone, raw, less = [], [], []
    for number in range(ROUNDS):
        subprocess.run([fake_ggml, *ARGS, "--out", told], check=True)
        calls = json.loads(told.read_text())["contexts"][0]["calls"][2:]
        alone += [c["end_ns"] - c["begin_ns"] for c in calls]
        out = tmp_path / f"{number}.pf"
        done = run_profinfer("record", "-o", out, "--no-sched", "--", fake_ggml, *ARGS)
        assert done.returncode == 0, done.stderr
        trace = Trace.open(out)
        cost = probe_cost_ns(trace)
        assert cost is not None and cost > 0
        chosen = trace.select(phase="decode")
        sums = trace.sums(chosen)
        length = (trace.calls["end_ns"] - trace.calls["begin_ns"])[chosen.calls]
        raw += length.tolist()
        less += (length - cost * sums.calls.sum() / chosen.n_calls).tolist()
    base, traced, corrected = (float(np.quantile(x, 0.25)) for x in (alone, raw, less))
    assert traced > base
    assert abs(corrected - base) < abs(traced - base), (base, traced, corrected)
