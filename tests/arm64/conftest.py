"""What the arm64 tests share: the machine's recordings, made once in two boots."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from machine import RUN, Machine, Recorded, obstacle, record

CACHE = Path(os.environ.get("PROFINFER_CACHE") or Path.home() / ".cache" / "profinfer")
FOLDER = CACHE / "arm64"
LLAMA = FOLDER / "llama.cpp" / "bin"
TESTS = Path(__file__).parents[1]
CROSS = "aarch64-linux-gnu-gcc"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker("arm64")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if reason := obstacle(FOLDER):
        pytest.skip(reason)


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folders with the fake engine, built for arm64."""

    def make(name: str) -> Path:
        folder = tmp_path_factory.mktemp(name)
        makefile = TESTS / "testprogs" / "Makefile"
        for out, extra in (("fake", ""), ("old", "DEFS=-DFAKE_OLD_LOOP")):
            command = ["make", "-s", "-f", makefile, f"OUT={folder / out}", f"CC={CROSS}",
                       "CFLAGS_EXTRA=", *filter(None, [extra])]  # fmt: skip
            env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
            subprocess.run(command, check=True, env=env)
        return folder

    return make


def _fake(name: str, args: str = "", build: str = "fake") -> str:
    return f"/root/{build}/fake_ggml {args} --out {name}.json"


# Programs lie on the machine's own disk: a uprobe is a matter of a file.
COPY = "cp -r fake old /root/\n"
CORES = "cycles,instructions"
# What a thread counts of itself with an event of its own: instructions outside of the kernel.
OWN = "--count 0:1"
BUSY = "busybox sh -c 'while :; do :; done' & busy=$!"
# Takes counters of the PMU: with ours there are more events than it has counters.
CROWD = """python3 -c '
import sys, time
from profinfer.capture.counters import CounterNames
from profinfer.capture.perfevents import open_counters
held = [open_counters(CounterNames().parse("instructions"), [0]) for _ in range(6)]
assert not any(one.refused for one in held)
open("crowd", "w").close()
time.sleep(1000)' & crowd=$!
until [ -e crowd ]; do sleep 0.1; done"""


@pytest.fixture(scope="session")
def counting(shared: Callable[[str], Path]) -> Recorded:
    """One CPU whose PMU counts instructions; time follows from what it executes."""
    folder = shared("counting")
    job = COPY + "python3 -m profinfer doctor >doctor.out\n"
    job += record("own", _fake("own", OWN), options=f"--counters {CORES}")
    job += record(
        "busy", _fake("busy", OWN), options=f"--counters {CORES}", before=BUSY, after="kill $busy"
    )
    job += record("stalls", _fake("stalls"), options="--preset stalls")
    job += record(
        "crowd", _fake("crowd", "--threads 1 --tokens 60"), before=CROWD, after="kill $crowd",
        options=f"--counters {CORES},stalled-cycles-frontend,stalled-cycles-backend",
    )  # fmt: skip
    return Recorded(folder, Machine(FOLDER, cpus=1, counting=True).run(job, folder))


@pytest.fixture(scope="session")
def parallel(shared: Callable[[str], Path]) -> Recorded:
    """Two CPUs that run at the same time."""
    folder = shared("parallel")
    job = COPY
    job += record("plain", _fake("plain"))
    job += record("old", _fake("old", build="old"))
    job += record("vary", _fake("vary", "--vary --generations 2 --splits 2"))
    job += record("cycles", _fake("cycles", "--migrate"), options="--counters cycles,task-clock")
    # The emulator does not count instructions when CPUs run at the same time.
    job += record("refused", _fake("refused"), options=f"--counters {CORES}")
    return Recorded(folder, Machine(FOLDER, cpus=2, counting=False).run(job, folder))


@pytest.fixture(scope="session")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """The real llama.cpp with small models, on two CPUs."""
    folder = tmp_path_factory.mktemp("engine")
    if not (LLAMA / "llama-completion").is_file():
        pytest.skip(f"needs {LLAMA} (run: make test-arm64)")
    models = folder / "models"
    subprocess.run(["python3", TESTS.parent / "tools" / "make_models.py", models], check=True)
    (folder / "llama").mkdir()
    for path in LLAMA.iterdir():
        if path.name == "llama-completion" or ".so" in path.name:
            shutil.copy(path, folder / "llama", follow_symlinks=False)
    job = "cp -r llama models /root/\n"
    for name in ("tiny-dense", "tiny-moe"):
        command = f"/root/llama/llama-completion -m /root/models/{name}.gguf {RUN}"
        job += record(name, command, options="--counters cycles,task-clock")
    return Recorded(folder, Machine(FOLDER, cpus=2, counting=False).run(job, folder))
