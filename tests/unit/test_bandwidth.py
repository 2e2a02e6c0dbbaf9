"""The finding that decoding has run into the memory's bandwidth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from builders import sample_run

from profinfer.analysis.bandwidth import bandwidth_wall
from profinfer.analysis.findings import findings
from profinfer.model.trace import Trace

CPUS = 4


def calibration(read: dict[int, float], cpus: int = 2) -> dict[str, Any]:
    """Threads -> bytes a second; the arithmetic is never the wall."""
    common = {"spread": 0.01, "repeats": 25, "undisturbed": 20}
    roofs = [
        {"kind": kind, "threads": n, "best": best, "median": best, **common}
        for n, rate in read.items()
        for kind, best in (("read", rate), ("triad", rate), ("fp32", 1e15), ("int8", 1e15))
    ]
    return {
        "schema": "profinfer.calibration/1",
        "machine": {"cpu_model": "Example CPU", "cpus": cpus, "memory_bytes": 8 << 30},
        "created_utc": "2026-11-24T10:00:00Z",
        "method": "by hand",
        "roofs": roofs,
    }


def trace_with(tmp_path: Path, read: dict[int, float]) -> Trace:
    run = sample_run(compute=1000, calibration=calibration(read, CPUS), host={"cpus_online": CPUS})
    return Trace.open(run.builder.write(tmp_path / "t.pf"))


@pytest.fixture
def moved(tmp_path: Path) -> float:
    """Bytes a second that decoding moves in the sample: where the share would be 1."""
    trace = trace_with(tmp_path, {2: 1.0})
    wall = bandwidth_wall(trace)
    assert wall is not None
    return float(wall.evidence["of_memory"].value)


def test_at_the_wall(tmp_path: Path, moved: float) -> None:
    trace = trace_with(tmp_path, {1: moved, 2: moved / 0.8})
    said = bandwidth_wall(trace)
    assert said is not None and said.prize is None
    assert said.evidence["of_memory"].value == pytest.approx(0.8)
    assert "(80 %); more threads will not help" in said.text
    assert "bandwidth" in [f.name for f in findings(trace, trace.select())]


def test_more_threads_would_help(tmp_path: Path, moved: float) -> None:
    trace = trace_with(tmp_path, {2: moved / 0.9, 4: 2 * moved / 0.9})
    said = bandwidth_wall(trace)
    assert said is not None and said.prize is not None
    assert said.text.endswith("4 threads read 2.0 times as much") and said.tries == "-t 4"
    # Half of what memory takes, which is 90 % of the operators' time.
    walls = trace.sums(trace.select(phase="decode")).wall.sum()
    assert said.prize.ns == pytest.approx(0.45 * walls, rel=0.01)


def test_more_threads_than_cpus_are_no_advice(tmp_path: Path, moved: float) -> None:
    said = bandwidth_wall(trace_with(tmp_path, {2: moved / 0.9, 99: 20 * moved}))
    assert said is not None and said.prize is None and said.tries != "-t 99"


def test_far_from_the_wall(tmp_path: Path, moved: float) -> None:
    assert bandwidth_wall(trace_with(tmp_path, {2: moved / 0.3})) is None


def test_without_a_calibration(tmp_path: Path) -> None:
    trace = Trace.open(sample_run().builder.write(tmp_path / "t.pf"))
    assert bandwidth_wall(trace) is None
