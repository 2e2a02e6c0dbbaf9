"""What every tier shares: the terminal, the machine's abilities, programs and models.

A test says what it needs by its marker: none (runs anywhere), ``bpf`` (root and BPF), ``e2e``
(that, and the engine and model that ``make setup`` leaves in the cache folder), ``browser``
(chromium). What is missing
is a skip with its reason, or, with ``--require-all`` or ``CI=true``, a failure.

``call_profinfer`` calls a verb in this process.
Fixtures to record with: ``run_profinfer``, ``fake_ggml`` and ``build_fake_ggml`` (the C target with
known durations), ``llama_bin``, ``smollm2``, ``tiny_dense``, ``tiny_moe``, ``tiny_models``.
Helper modules lie beside this file: ``import builders`` gives in-memory traces.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Protocol

import browser
import pytest

REPO = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("PROFINFER_CACHE") or Path.home() / ".cache" / "profinfer")
LLAMA_BIN = CACHE / "llama.cpp-0.3.36" / "build" / "bin"
SMOLLM2 = CACHE / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
GOLDEN = REPO / "tests" / "golden"
TERMINAL = {"COLUMNS": "80", "NO_COLOR": "1", "TERM": "dumb"}

# Bits of /proc/self/status CapEff.
_CAP_SYS_ADMIN, _CAP_PERFMON, _CAP_BPF = 21, 38, 39


# --- options, skips ---------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("profinfer")
    group.addoption(
        "--require-all", action="store_true", default=os.environ.get("CI") == "true",
        help="a bpf, e2e or browser test that would be skipped fails (default in CI)",
    )  # fmt: skip
    group.addoption("--update-golden", action="store_true", help="rewrite tests/golden")


def bpf_obstacle() -> str | None:
    """Why this process cannot record, or None."""
    if os.geteuid() != 0:
        return "needs root (run: sudo make test-bpf)"
    status = Path("/proc/self/status").read_text()
    caps = next(int(ln.split()[1], 16) for ln in status.splitlines() if ln.startswith("CapEff"))
    has = [bool(caps >> bit & 1) for bit in (_CAP_SYS_ADMIN, _CAP_PERFMON, _CAP_BPF)]
    if not (has[0] or (has[1] and has[2])):
        return "needs CAP_SYS_ADMIN, or CAP_BPF and CAP_PERFMON (a container without them?)"
    if importlib.util.find_spec("bcc") is None:
        return "needs BCC for this Python (apt package python3-bpfcc; run: make setup)"
    return None


def e2e_obstacle() -> str | None:
    """Why the real engine cannot be recorded, or None."""
    for path in (LLAMA_BIN / "llama-completion", SMOLLM2):
        if not path.is_file():
            return f"needs {path} (run: make setup)"
    return bpf_obstacle()


def browser_obstacle() -> str | None:
    """Why no page can be shown, or None."""
    if browser.program() is None:
        return "needs chromium (apt package chromium; run: make setup)"
    return None


_OBSTACLES = {"bpf": bpf_obstacle, "e2e": e2e_obstacle, "browser": browser_obstacle}


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker, obstacle in _OBSTACLES.items():
        if item.get_closest_marker(marker) and (reason := obstacle()):
            pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    required = item.config.getoption("--require-all") and any(
        item.get_closest_marker(marker) for marker in _OBSTACLES
    )
    if required and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but required here: {_reason(report.longrepr)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A module of these tiers that skips itself as a whole is no better than a skipped test."""
    report = yield
    tier = collector.path.parent.name
    if report.skipped and tier in _OBSTACLES and collector.config.getoption("--require-all"):
        report.outcome = "failed"
        report.longrepr = f"skipped, but required here: {_reason(report.longrepr)}"
    return report


def _reason(longrepr: Any) -> str:
    return str(longrepr[2]) if isinstance(longrepr, tuple) else str(longrepr)


# --- the terminal, golden files ------------------------------------------------------------------


@pytest.fixture(autouse=True)
def fixed_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """80 columns and no colour, whatever terminal the tests run in."""
    for name, value in TERMINAL.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str | bytes], None]:
    """``golden("report.txt", text)`` compares with tests/golden/report.txt.

    With --update-golden it rewrites the file instead.
    """
    update = bool(request.config.getoption("--update-golden"))

    def check(name: str, got: str | bytes) -> None:
        path = GOLDEN / name
        data = got.encode() if isinstance(got, str) else got
        if update:
            path.write_bytes(data)
            return
        assert path.is_file(), f"{path} is missing (run: make golden)"
        want = path.read_bytes()
        if isinstance(got, str):
            assert got == want.decode(), f"differs from {path} (run: make golden, read the diff)"
        else:
            assert data == want, f"differs from {path} (run: make golden)"

    return check


# --- programs and models ---------------------------------------------------------------------


class RunProfinfer(Protocol):
    """Signature of ``run_profinfer``."""

    def __call__(
        self, *args: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None,
        timeout: float = 120, input: str | None = None,
    ) -> subprocess.CompletedProcess[str]: ...  # fmt: skip


@pytest.fixture(scope="session")
def run_profinfer(tmp_path_factory: pytest.TempPathFactory) -> RunProfinfer:
    """Runs ``profinfer ARGS`` as a child, in a temporary folder unless told otherwise.

    Never raises for a bad exit status: the test looks at ``returncode``, ``stdout``, ``stderr``.
    ``env`` adds to the environment; the invoking user of a sudo is hidden, so that the target runs
    as root and can write where the test does.
    """
    elsewhere = tmp_path_factory.mktemp("cwd")

    def run(
        *args: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None,
        timeout: float = 120, input: str | None = None,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        clean = {k: v for k, v in os.environ.items() if not k.startswith("SUDO_")}
        clean |= TERMINAL | {"PYTHONPATH": str(REPO)}
        return subprocess.run(
            [sys.executable, "-m", "profinfer", *map(str, args)],
            cwd=cwd or elsewhere, env=clean | (env or {}),
            timeout=timeout, input=input, capture_output=True, text=True, check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def call_profinfer(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> RunProfinfer:
    """The same as ``run_profinfer``, in this process: no interpreter to start.

    For verbs that start nothing and change nothing of the process.
    """
    from profinfer.cli import group, run

    def call(*args: str | Path) -> subprocess.CompletedProcess[str]:
        for name in [name for name in os.environ if name.startswith("SUDO_")]:
            monkeypatch.delenv(name)
        capsys.readouterr()
        status = run(group, [str(a) for a in args])
        said = capsys.readouterr()
        return subprocess.CompletedProcess(args, status, said.out, said.err)

    return call  # type: ignore[return-value]


class BuildFakeGgml(Protocol):
    """Signature of ``build_fake_ggml``."""

    def __call__(
        self, *, static: bool = False, defs: str = "", cflags: str = "-fcf-protection=none"
    ) -> Path: ...


@pytest.fixture(scope="session")
def build_fake_ggml(tmp_path_factory: pytest.TempPathFactory) -> BuildFakeGgml:
    """Builds a variant of the C target; returns the program, its libraries lie beside it.

    ``static``: one executable with everything in it. ``defs``: -DFAKE_OLD_LOOP (a barrier after
    every node and no COMPUTE flag, as in older engines), -DFAKE_EMPTIES (empty nodes and their
    barriers are passed too, likewise), -DFAKE_SHIFT_OPS (renumbered ops), -DFAKE_OTHER_LAYOUT
    (tensors of a layout that no ggml has).
    ``cflags``: -fcf-protection=full puts endbr64 at entries. See tests/testprogs/fake_ggml.c
    for the program's options and the JSON it prints.
    """
    built: dict[tuple[bool, str, str], Path] = {}

    def build(
        *, static: bool = False, defs: str = "", cflags: str = "-fcf-protection=none"
    ) -> Path:
        key = (static, defs, cflags)
        if key not in built:
            out = tmp_path_factory.mktemp("fake_ggml")
            command = ["make", "-f", str(REPO / "tests" / "testprogs" / "Makefile"), f"OUT={out}"]
            command += [f"DEFS={defs}", f"CFLAGS_EXTRA={cflags}", *["STATIC=1"] * static]
            # MAKEFLAGS of `make test` would change what this make does.
            env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
            done = subprocess.run(command, capture_output=True, text=True, env=env)
            assert done.returncode == 0, done.stderr
            built[key] = out / "fake_ggml"
        return built[key]

    return build


@pytest.fixture(scope="session")
def fake_ggml(build_fake_ggml: BuildFakeGgml) -> Path:
    """The C target as an executable with libllama.so.0, libggml-cpu.so.0, libggml-base.so.0."""
    return build_fake_ggml()


@pytest.fixture(scope="session")
def llama_bin() -> Path:
    """The folder with llama-completion, llama-bench, llama-eval-callback and llama-simple."""
    if not (LLAMA_BIN / "llama-completion").is_file():
        pytest.skip(f"needs {LLAMA_BIN} (run: make setup)")
    return LLAMA_BIN


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M-Instruct, Q4_1: a real model."""
    if not SMOLLM2.is_file():
        pytest.skip(f"needs {SMOLLM2} (run: make setup)")
    return SMOLLM2


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """All models of tools/make_models.py by name: tiny-dense, tiny-moe-q4_0, ..."""
    out = tmp_path_factory.mktemp("models")
    tool = REPO / "tools" / "make_models.py"
    subprocess.run([sys.executable, str(tool), str(out)], check=True, capture_output=True)
    return {path.stem: path for path in sorted(out.glob("*.gguf"))}


@pytest.fixture(scope="session")
def tiny_dense(tiny_models: dict[str, Path]) -> Path:
    """A llama-architecture model: 4 layers, F16, 1.4 MB."""
    return tiny_models["tiny-dense"]


@pytest.fixture(scope="session")
def tiny_moe(tiny_models: dict[str, Path]) -> Path:
    """A qwen2moe model: 3 layers, 8 experts, 2 used, a shared expert, F16, 2 MB."""
    return tiny_models["tiny-moe"]
