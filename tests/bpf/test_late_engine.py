"""Programs that load their engine later, and processes that run already."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from truth import matched_ops, read_truth

from profinfer.model.trace import Trace

pytestmark = pytest.mark.bpf

SOURCES = Path(__file__).resolve().parents[1] / "testprogs"
CALL_MAIN = """
import ctypes, sys
app = ctypes.CDLL(sys.argv[1])
words = [a.encode() for a in sys.argv[1:]]
app.main(len(words), (ctypes.c_char_p * (len(words) + 1))(*words, None))
"""


@pytest.fixture(scope="module")
def fake_app(tmp_path_factory: pytest.TempPathFactory, fake_ggml: Path) -> Path:
    """fake_ggml's main as a library beside the fake engine, for a Python program to load."""
    folder = tmp_path_factory.mktemp("app")
    for library in fake_ggml.parent.glob("lib*.so.0"):
        shutil.copy(library, folder)
    out = folder / "libfake_app.so"
    command = ["cc", "-std=gnu11", "-O2", "-pthread", "-fPIC", "-shared", "-Wl,-rpath,$ORIGIN"]
    command += ["-o", out, SOURCES / "fake_ggml.c", *sorted(folder.glob("lib*.so.0"))]
    subprocess.run(command, check=True)
    return out


def test_python_program_loads_the_engine(tmp_path: Path, fake_app: Path, run_profinfer) -> None:
    """The first graph is recorded as well: the target waits while probes are attached."""
    script, out, said = tmp_path / "app.py", tmp_path / "t.pf", tmp_path / "truth.json"
    script.write_text(CALL_MAIN)
    command = [sys.executable, script, fake_app, "--tokens", "8", "--out", said]
    result = run_profinfer("record", "-o", out, "--", *command)
    assert result.returncode == 0, result.stderr
    trace, truth = Trace.open(out), read_truth(said)
    assert {k: v for k, v in trace.losses.items() if v} == {}
    assert trace.problems == []
    assert len(trace.calls) == 10  # warm-up, prompt, 8 tokens
    both = matched_ops(trace, truth)
    assert len(truth.ops) > 100
    assert (both["_merge"] == "both").all()
    # Its threads' states are recorded from then on, too.
    assert trace.meta.sched.recorded
    assert set(trace.ops["tid"]) <= set(trace.sched["tid"])
    assert trace.op_sched["running_ns"].sum() > 0


def test_script_with_an_interpreter_line(tmp_path: Path, fake_app: Path, run_profinfer) -> None:
    script, out = tmp_path / "app", tmp_path / "t.pf"
    script.write_text(f"#!{sys.executable}\n{CALL_MAIN}")
    script.chmod(0o755)
    command = [script, fake_app, "--tokens", "2", "--out", "/dev/null"]
    result = run_profinfer("record", "-o", out, "--", *command)
    assert result.returncode == 0, result.stderr
    assert len(Trace.open(out).calls) == 4


def test_program_that_loads_no_engine(tmp_path: Path, run_profinfer) -> None:
    out = tmp_path / "t.pf"
    result = run_profinfer("record", "-o", out, "--", sys.executable, "-c", "import json; print(5)")
    assert result.returncode == 1
    assert result.stdout == "5\n"
    assert "no ggml or llama.cpp was loaded" in result.stderr
    assert not out.exists()


def test_killed_recorder_does_not_leave_the_target_stopped(tmp_path: Path, fake_app: Path) -> None:
    script = tmp_path / "app.py"
    script.write_text("import time, json, ssl, ctypes; time.sleep(2)\n" + CALL_MAIN)
    said = tmp_path / "truth.json"
    env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-m", "profinfer", "record", "-o", tmp_path / "t.pf"]
    target = [sys.executable, script, fake_app, "--tokens", "2", "--out", said]
    recorder = subprocess.Popen([*command, "--", *target], env=env, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 20
    child = ""
    while not child and time.monotonic() < until:
        child = Path(f"/proc/{recorder.pid}/task/{recorder.pid}/children").read_text().strip()
        time.sleep(0.01)
    time.sleep(2.5)
    recorder.send_signal(signal.SIGKILL)
    recorder.wait()
    while not said.exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert said.exists(), "the target did not go on"


# --- running processes ------------------------------------------------------------------------


@pytest.fixture
def running(tmp_path: Path, fake_ggml: Path):
    said = tmp_path / "truth.json"
    process = subprocess.Popen([fake_ggml, "--seconds", "12", "--out", said])
    time.sleep(0.5)
    yield process, said
    process.kill()
    process.wait()


def test_attach_for_a_while(running, tmp_path: Path, run_profinfer) -> None:
    process, said = running
    out = tmp_path / "t.pf"
    result = run_profinfer("record", "--pid", str(process.pid), "--duration", "1500ms", "-o", out)
    assert result.returncode == 0, result.stderr
    assert process.poll() is None, "the target was disturbed"
    process.send_signal(signal.SIGINT)
    process.wait(timeout=10)
    trace, truth = Trace.open(out), read_truth(said)
    assert trace.problems == []
    assert trace.reader.trailer.reason == "duration over"
    # Every whole call between the first and the last moment is there and as long as it was.
    ours = trace.calls[~trace.calls["cut"]]
    first, last = ours["begin_ns"].min(), ours["end_ns"].max()
    theirs = truth.calls[
        (truth.calls["begin_ns"] >= first - 100_000) & (truth.calls["end_ns"] <= last + 100_000)
    ]
    assert len(ours) == len(theirs) > 5
    # The target reads its clock before it calls and after it has returned.
    early, late = (ours[c].to_numpy() - theirs[c].to_numpy() for c in ("begin_ns", "end_ns"))
    assert (early >= 0).all() and (late <= 0).all()
    assert np.median(early) < 200_000 and np.median(late) > -200_000
    assert list(ours["pos_first"]) == list(theirs["pos_first"])
    # Graphs are whole or known to be cut; none is silently short.
    assert trace.graphs["complete"].sum() >= len(trace.graphs) - 1
    assert trace.reader.meta.options["attached"] is True
    # What was under way at the two edges is left out, and is no fault of the trace.
    assert trace.excerpt
    assert not trace.calls["cut"].to_numpy()[trace.select().calls].any()
    report = run_profinfer("report", out)
    assert trace.excerpt_edges.orphans == 0 and not any(trace.excerpt_edges.middle.values())
    assert "an excerpt: what was under way" in " ".join(report.stdout.split())
    assert "not all is well" not in report.stdout


def test_attach_until_the_target_ends(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    process = subprocess.Popen([fake_ggml, "--seconds", "6", "--out", "/dev/null"])
    time.sleep(0.3)
    out = tmp_path / "t.pf"
    result = run_profinfer("record", "--pid", str(process.pid), "-o", out)
    process.wait()
    assert result.returncode == 0, result.stderr
    trace = Trace.open(out)
    assert trace.reader.trailer.reason == "target exited"
    assert trace.graphs["complete"].mean() > 0.9


def pid_of(name: str, seconds: float = 10) -> int:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for comm in Path("/proc").glob("[0-9]*/comm"):
            try:
                if comm.read_text().strip() == name:
                    return int(comm.parent.name)
            except OSError:
                continue
        time.sleep(0.05)
    raise AssertionError(f"no process {name}")


def test_attach_into_a_container(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    """Other pid and mount namespaces; the libraries exist only in there."""
    hidden, out = tmp_path / "inside", tmp_path / "t.pf"
    hidden.mkdir()
    script = (
        f"mount -t tmpfs tmpfs {hidden} && cp {fake_ggml.parent}/* {hidden} && "
        f"cp {hidden}/fake_ggml {hidden}/fake_inside && "
        f"exec {hidden}/fake_inside --seconds 8 --out /dev/null"
    )
    command = ["unshare", "--pid", "--mount", "--fork", "--mount-proc", "sh", "-c", script]
    outside = subprocess.Popen(command)
    try:
        pid = pid_of("fake_inside")
        time.sleep(0.3)
        assert not (hidden / "fake_inside").exists()
        result = run_profinfer("record", "--pid", str(pid), "--duration", "1s", "-o", out)
        assert result.returncode == 0, result.stderr
    finally:
        os.kill(pid, signal.SIGKILL)
        outside.wait()
    trace = Trace.open(out)
    assert len(trace.graphs) > 10
    assert set(trace.ops["tid"]) <= {pid, *trace.threads["tid"]}
    assert trace.graphs["complete"].sum() >= len(trace.graphs) - 1


def test_attach_after_the_files_were_replaced(tmp_path, fake_ggml: Path, run_profinfer) -> None:
    """An upgrade while the program runs: its old libraries are in memory only."""
    folder, out = tmp_path / "old", tmp_path / "t.pf"
    shutil.copytree(fake_ggml.parent, folder)
    process = subprocess.Popen([folder / "fake_ggml", "--seconds", "8", "--out", "/dev/null"])
    try:
        time.sleep(0.3)
        shutil.rmtree(folder)
        result = run_profinfer("record", "--pid", str(process.pid), "--duration", "1s", "-o", out)
    finally:
        process.kill()
        process.wait()
    assert result.returncode == 0, result.stderr
    assert len(Trace.open(out).graphs) > 10


def test_attach_to_nothing(run_profinfer, tmp_path: Path) -> None:
    out = tmp_path / "t.pf"
    for pid, says in ((999_999_99, "no process"), (os.getpid(), "no ggml")):
        result = run_profinfer("record", "--pid", str(pid), "-o", out)
        assert result.returncode != 0
        assert says in result.stderr
        assert "Traceback" not in result.stderr
        assert not out.exists()


def test_wrong_words(run_profinfer) -> None:
    both = run_profinfer("record", "--pid", "1", "--", "/bin/true")
    assert both.returncode == 2
    neither = run_profinfer("record")
    assert neither.returncode == 2
    odd = run_profinfer("record", "--pid", str(os.getpid()), "--duration", "soon")
    assert odd.returncode == 2
    assert "soon" in odd.stderr


def test_stripped_program_with_its_debug_file(tmp_path, build_fake_ggml, run_profinfer) -> None:
    """A static program without any names in it, and the file that has them."""
    full, bare = tmp_path / "full", tmp_path / "bare"
    debug, out = tmp_path / "full.debug", tmp_path / "t.pf"
    shutil.copy(build_fake_ggml(static=True, cflags="-Wl,--no-export-dynamic"), full)
    subprocess.run(["objcopy", "--only-keep-debug", full, debug], check=True)
    subprocess.run(["strip", "-o", bare, full], check=True)
    target = ["--", bare, "--tokens", "2", "--out", "/dev/null"]
    refused = run_profinfer("record", "-o", out, *target)
    assert refused.returncode == 1
    assert "stripped" in refused.stderr
    assert "--debug-file" in refused.stderr
    assert not out.exists()
    result = run_profinfer("record", "--debug-file", debug, "-o", out, *target)
    assert result.returncode == 0, result.stderr
    trace = Trace.open(out)
    assert len(trace.calls) == 4
    assert trace.graphs["complete"].all()
