"""Counters per operator and thread: the target's own counts, where they belong, and no others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest

from profinfer.model.trace import Trace

pytestmark = pytest.mark.bpf

NODE, PAGES = 5, 24  # ROPE: computed by a function of its own
# Faults and burns CPU without end, pinned to one CPU.
NOISE = """
import mmap, os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
print("ready", flush=True)
while True:
    with mmap.mmap(-1, 64 << 12) as fresh:
        for at in range(0, 64 << 12, 4096):
            fresh[at] = 1
"""


@pytest.fixture
def noise() -> Iterator[None]:
    """A busy process on each of the CPUs that the target moves between."""
    made = [
        subprocess.Popen([sys.executable, "-c", NOISE, str(cpu)], stdout=subprocess.PIPE, text=True)
        for cpu in (0, 1)
    ]
    for process in made:
        assert process.stdout is not None
        process.stdout.readline()
    yield
    for process in made:
        process.kill()
        process.communicate()


@pytest.fixture
def record(
    tmp_path: Path, fake_ggml: Path, run_profinfer: Callable[..., subprocess.CompletedProcess[str]]
) -> Callable[..., tuple[Trace, str]]:
    def run(counters: list[str], *args: str) -> tuple[Trace, str]:
        command = [fake_ggml, *args, "--out", tmp_path / "truth.json"]
        done = run_profinfer("record", "-o", tmp_path / "t.pf", *counters, "--", *command)
        assert done.returncode == 0, done.stderr
        return Trace.open(tmp_path / "t.pf"), done.stderr

    return run


def joined(trace: Trace) -> pd.DataFrame:
    """Operators with what was counted in them, those of the first calls left out: they warm up."""
    assert trace.problems == [] and not any(trace.losses.values())
    rows = pd.concat([trace.ops, trace.counters], axis=1)
    rows = rows.merge(trace.nodes[["node_id", "idx", "op"]], on="node_id")
    calls = trace.calls.sort_values("begin_ns")["call_id"].to_numpy()
    rows["nth"] = rows["graph_id"].map(trace.graphs.set_index("graph_id")["call_id"])
    rows["worker"] = rows["tid"].map({t: i for i, t in enumerate(sorted(rows["tid"].unique()))})
    return rows[rows["nth"].isin(calls[3:])]


def assert_faults(rows: pd.DataFrame) -> None:
    touched = rows["idx"] == NODE
    assert touched.sum() > 20
    by_thread = rows[touched].groupby("worker")["page-faults"].agg(["min", "median", "max"])
    assert list(by_thread["median"]) == [PAGES, 2 * PAGES]
    # Exact but for what a thread faults by chance, such as a page that the kernel has aged.
    exact = rows[touched]["page-faults"] == PAGES * (rows[touched]["worker"] + 1)
    assert exact.mean() > 0.95
    assert (rows[~touched]["page-faults"] == 0).mean() > 0.99
    assert rows[~touched]["page-faults"].sum() <= 8


def test_faults_land_on_their_operator_and_thread(record) -> None:
    trace, _ = record(["--counters", "page-faults"], "--tokens", "30", "--touch", f"{NODE}:{PAGES}")
    assert trace.counters.notna().to_numpy().all()
    assert_faults(joined(trace))


@pytest.mark.usefixtures("noise")
def test_no_other_task_leaks_in(record) -> None:
    """Threads change their CPU inside operators, where a process faults without end."""
    trace, _ = record(
        ["--counters", "page-faults,task-clock,cpu-migrations,context-switches"],
        *("--tokens", "30", "--touch", f"{NODE}:{PAGES}", "--migrate"),
    )
    rows = joined(trace)
    assert_faults(rows)
    assert rows["cpu-migrations"].sum() > 100
    assert rows["context-switches"].sum() >= rows["cpu-migrations"].sum()
    # Nobody runs longer than time passes, and somebody had the CPUs meanwhile.
    passed = rows["end_ns"] - trace.counted.since_ns[rows.index]
    assert (rows["task-clock"] <= passed + 50_000).mean() > 0.99
    assert rows["task-clock"].sum() < 0.9 * passed.sum()


def test_task_clock_is_the_compute_of_a_thread_alone(record) -> None:
    trace, _ = record(["--counters", "task-clock,context-switches"], "--threads", "1")
    rows = joined(trace)
    calm = rows[rows["context-switches"] == 0]
    assert len(calm) > 50
    compute = calm["end_ns"] - calm["begin_ns"]
    assert ((calm["task-clock"] - compute).abs() < 5_000 + 0.02 * compute).mean() > 0.95


def test_hardware_counters_that_are_not_there_stop_nothing(record) -> None:
    trace, said = record(["--counters", "cycles,page-faults"])
    names = list(trace.counters.columns)
    if names == ["cycles", "page-faults"]:
        assert trace.counters["cycles"].sum() > 0
        return
    assert names == ["page-faults"]
    assert "this machine has no hardware counters" in said and "without cycles" in said
    assert trace.counters["page-faults"].notna().all()


def test_six_at_a_time(record) -> None:
    """The most that are read: minor and major faults make up all faults, on every row."""
    six = "page-faults,minor-faults,major-faults,task-clock,context-switches,cpu-migrations"
    trace, _ = record(["--counters", six], "--tokens", "6", "--touch", f"{NODE}:{PAGES}")
    counted = trace.counters
    assert counted.shape[1] == 6 and counted.notna().to_numpy().all()
    both = counted["minor-faults"] + counted["major-faults"]
    assert (both == counted["page-faults"]).all() and both.sum() >= 5 * 3 * PAGES


def test_nothing_of_it_without_counters(record) -> None:
    trace, _ = record([])
    assert trace.counters.shape == (len(trace.ops), 0)
    assert not len(trace.reader.counts().heads)


def test_a_killed_target_leaves_its_counts(record, tmp_path: Path, fake_ggml: Path) -> None:
    """Batches that were never handed over come with what was counted in them."""
    with pytest.raises(AssertionError):
        record(["--counters", "page-faults"], "--mode", "crash")
    trace = Trace.open(tmp_path / "t.pf")
    assert trace.problems == []
    assert len(trace.reader.counts().heads) == len(trace.reader.ops().batches)
    assert trace.counters.notna().to_numpy().all()


@pytest.mark.parametrize("option", [["--counters", "page-fault"], ["--counters", "r1,r1"]])
def test_one_line_for_a_wrong_name(run_profinfer, fake_ggml: Path, option: list[str]) -> None:
    done = run_profinfer("record", *option, "--", fake_ggml)
    assert done.returncode == 2 and "Traceback" not in done.stderr
