"""Long runs and many threads: nothing lost, and the recorder does not grow."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from profinfer.model.trace import Trace

pytestmark = pytest.mark.bpf

REPO = Path(__file__).resolve().parents[2]
TINY = ["--layers", "1", "--base-us", "0", "--kv-pad", "65536", "--sample-us", "0", "--no-ops"]


def rss_kb(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1])
    return 0


def test_the_recorder_does_not_grow(tmp_path: Path, fake_ggml: Path) -> None:
    """20,000 tokens; 100,000 show nothing more, and take a minute and a half."""
    out = tmp_path / "t.pf"
    command = ["record", "-o", out, "--", fake_ggml, "--threads"]
    command += ["1", *TINY, "--tokens", "20000", "--out", tmp_path / "truth"]
    process = subprocess.Popen(
        [sys.executable, "-m", "profinfer", *map(str, command)],
        env=os.environ | {"PYTHONPATH": str(REPO)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    seen: list[int] = []
    while process.poll() is None:
        if out.exists() and out.stat().st_size > 2_000_000:
            seen.append(rss_kb(process.pid))
        time.sleep(0.1)
    assert process.returncode == 0
    seen = [kb for kb in seen if kb]
    assert len(seen) > 8
    assert max(seen) < seen[0] + 8_000, seen
    trace = Trace.open(out)
    assert (trace.calls["phase"] == "decode").sum() == 20_000
    assert {k: v for k, v in trace.losses.items() if v} == {}


def test_64_threads(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    out = tmp_path / "t.pf"
    args = ["--threads", "64", "--layers", "1", "--base-us", "1", "--tokens", "6", "--no-ops"]
    done = run_profinfer("record", "-o", out, "--", fake_ggml, *args)
    assert done.returncode == 0, done.stderr
    trace = Trace.open(out)
    assert {k: v for k, v in trace.losses.items() if v} == {}
    assert (trace.graphs["threads_seen"] == 64).all()
    assert trace.graphs["complete"].all()
    assert trace.ops["tid"].nunique() == 64
