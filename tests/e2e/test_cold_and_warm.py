"""Cold start, warm start, and a memory limit below the model's size, on the real engine."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from gguf import GGUFReader
from perfetto_check import check

from profinfer.analysis.memoryfindings import findings
from profinfer.model.memory import read_by_tensor
from profinfer.model.trace import Trace

pytestmark = pytest.mark.e2e

RunProfinfer = Callable[..., subprocess.CompletedProcess[str]]
Run = Callable[..., Trace]
LIMIT = 100 << 20  # SmolLM2 needs 92 MiB for weights, and 33 MiB of its own here
OPTIONS = ["-t", "2", "-p", "Once upon a time", "-no-cnv", "--temp", "0", "--ignore-eos"]
OPTIONS += ["-c", "512", "-nr", "-lv", "1"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, smollm2: Path) -> Path:
    """A copy of our own: nobody else reads it."""
    path = tmp_path_factory.mktemp("memory") / "model.gguf"
    shutil.copyfile(smollm2, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return path


@pytest.fixture(scope="module")
def record(model: Path, llama_bin: Path, run_profinfer: RunProfinfer) -> Run:
    def run(name: str, *, tokens: int = 8, before: str = "") -> Trace:
        path = model.parent / f"{name}.pf"
        command = [str(llama_bin / "llama-completion"), "-m", str(model), "-n", str(tokens)]
        command += OPTIONS
        if before:
            command = ["/bin/sh", "-c", f'{before} exec "$@"', "sh", *command]
        done = run_profinfer("record", "-f", "-o", path, "--", *command, timeout=300)
        assert done.returncode == 0, done.stderr
        trace = Trace.open(path)
        assert {k: v for k, v in trace.losses.items() if v and k.startswith("lost")} == {}
        return trace

    return run


def drop(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextlib.contextmanager
def memory_cgroup(limit: int) -> Iterator[Path]:
    """A cgroup with a memory limit, of version 1 or 2; gives the file that a process joins by."""
    v1 = Path("/sys/fs/cgroup/memory")
    parent, name = (v1, "memory.limit_in_bytes") if v1.is_dir() else (v1.parent, "memory.max")
    group = parent / f"profinfer-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / name).write_text(str(limit))
    except OSError as error:
        with contextlib.suppress(OSError):
            group.rmdir()
        pytest.skip(f"no cgroup with a memory limit can be made here: {error}")
    try:
        yield group / "cgroup.procs"
    finally:
        group.rmdir()


def names(trace: Trace) -> list[str]:
    return [f.name for f in findings(trace)]


def test_a_warm_start_finds_nothing(record: Run, model: Path) -> None:
    assert model.read_bytes()
    trace = record("warm")
    assert trace.has_faults and names(trace) == []
    faults = trace.faults
    assert not (faults["major"] & (faults["kind"] == "weight")).any()
    # A busy machine may take a page back meanwhile.
    read = trace.reads["bytes"][(trace.reads["file"] == str(model)).to_numpy()].sum()
    assert read < 0.05 * model.stat().st_size
    # The KV cache is cleared before the first call: each of its pages is a fault, none is missed.
    kv = trace.residents.tensors[trace.residents.tensors["kind"] == "kv"]
    hit = faults[(faults["kind"] == "kv").to_numpy()]
    pages = int((-(-kv["size"] // 4096)).sum())
    assert hit["faults"].sum() == pytest.approx(pages, rel=0.05)


def test_a_cold_start_reads_every_tensor_once(
    record: Run, model: Path, run_profinfer: RunProfinfer
) -> None:
    drop(model)
    trace = record("cold")
    if trace.meta.memory["reads"].get("why") or trace.residence["read"].max() == 0:
        pytest.skip(f"reads of {model} cannot be seen here: {trace.meta.memory['reads']}")
    assert names(trace) == ["cold_start"]
    size = model.stat().st_size
    mine = trace.reads[(trace.reads["file"] == str(model)).to_numpy()]
    assert size <= mine["bytes"].sum() <= size + 4096
    parts = read_by_tensor(trace.reads, trace.residents).groupby("tensor")["bytes"].sum()
    reader = GGUFReader(model)
    assert parts.to_dict() == {t.name: int(t.n_bytes) for t in reader.tensors}
    # Where a tensor lies in the file is what the file itself says.
    told = trace.residents.tensors.set_index("name")["file_offset"]
    assert {t.name: int(told[t.name]) for t in reader.tensors} == {
        t.name: int(t.data_offset) for t in reader.tensors
    }
    shown = run_profinfer("report", trace.path)
    assert "cold start:" in shown.stdout and "model.gguf (100.0 %)" in " ".join(
        shown.stdout.split()
    )


def test_a_model_above_the_limit_is_read_again_and_again(record: Run, model: Path) -> None:
    drop(model)  # pages belong to the cgroup that reads them first
    with memory_cgroup(LIMIT) as procs:
        trace = record("limit", tokens=4, before=f"echo $$ > {procs};")
    if trace.meta.memory["reads"].get("why") or trace.residence["read"].max() == 0:
        pytest.skip(f"reads of {model} cannot be seen here: {trace.meta.memory['reads']}")
    assert trace.meta.memory["limit_bytes"] == LIMIT
    assert names(trace)[0] == "evicted"
    assert "does not fit into the memory limit of 100 MiB" in findings(trace)[0].text
    # Faults and reads are on weights, inside operators that read those weights.
    faults = trace.faults
    held = faults[((faults["graph_id"] >= 0) & (faults["kind"] == "weight")).to_numpy()]
    known = held[(held["node_id"] >= 0).to_numpy()]
    assert len(known) > 0.9 * len(held)
    weight = trace.nodes["weight"].astype(str).to_numpy()[known["node_id"].to_numpy()]
    same = weight == known["tensor"].to_numpy()
    assert known["held_ns"].to_numpy()[same].sum() > 0.9 * known["held_ns"].sum()
    # What /proc says was read is what the reads add up to.
    first, last = trace.residence.iloc[0], trace.residence.iloc[-1]
    between = trace.reads["ts_ns"].between(first["ts_ns"], last["ts_ns"])
    seen = trace.reads["bytes"][between].sum()
    assert seen == pytest.approx(last["read"] - first["read"], rel=0.05)


def test_majors_and_sizes_are_on_the_timeline(
    record: Run, model: Path, run_profinfer: RunProfinfer
) -> None:
    path = model.parent / "limit.pf"
    if not path.is_file():
        pytest.skip("the memory limit was not recorded")
    out = model.parent / "limit.pftrace"
    done = run_profinfer("export", path, "-f", "-o", out)
    assert done.returncode == 0, done.stderr
    report = check(out.read_bytes())
    assert report.problems == []
    trace = Trace.open(path)
    inside = trace.faults["graph_id"] >= 0
    majors = set(trace.faults["tensor"][trace.faults["major"] & inside]) - {""}
    drawn = {i.name for i in report.instants}
    assert majors <= drawn
    assert report.counters[report.track("RSS")]


def test_the_views_of_faults(record: Run, model: Path) -> None:
    path = model.parent / "cold.pf"
    command = [sys.executable, "-m", "profinfer", "report", str(path), "--faults"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for heading in ("Memory", "Faults and reads by tensor", "Memory over time", "loading"):
        assert heading in done.stdout
