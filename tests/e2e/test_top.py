"""profinfer top on a real engine: what it shows, that the target goes on, and the terminal."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

REPO = Path(__file__).parents[2]
ROLES = {"ffn", "attention", "attention qkv", "output head", "norm"}


def endless(llama_bin: Path, model: Path, *more: str) -> list[str]:
    """A generation that takes longer than any test: contexts are shifted when they are full."""
    return [
        str(llama_bin / "llama-completion"), "-m", str(model), "-t", "2", "-n", "-1", "-c", "512",
        "-p", "Hello", "-no-cnv", "--ignore-eos", "--context-shift", "-lv", "1", *more,
    ]  # fmt: skip


def wait_for_tokens(process: subprocess.Popen[bytes]) -> None:
    """Until the target computes: it has used a second of CPU time."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        assert process.poll() is None, "the target ended"
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        if int(fields[11]) > os.sysconf("SC_CLK_TCK"):
            return
        time.sleep(0.05)
    raise AssertionError("the target does not compute")


@pytest.fixture
def running(llama_bin: Path, smollm2: Path) -> Iterator[subprocess.Popen[bytes]]:
    null = subprocess.DEVNULL
    with subprocess.Popen(endless(llama_bin, smollm2), stdout=null, stderr=null) as process:
        try:
            wait_for_tokens(process)
            yield process
        finally:
            process.kill()


def test_a_process_that_runs(running: subprocess.Popen[bytes], run_profinfer) -> None:
    # The limit is high, so that operators are seen from the begin where tokens take a second.
    args = ("top", "--pid", running.pid, "-n", "4", "-i", "1.5", "--format", "json")
    args += ("--max-overhead", "90%")
    done = run_profinfer(*map(str, args), timeout=200)
    assert done.returncode == 0, done.stderr
    assert "still runs" in done.stderr and running.poll() is None
    looks = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(looks) == 4
    last = looks[-1]
    assert last["schema"] == "profinfer.top/1" and last["lost"] == 0
    # Since the begin; at the first look perhaps none, where a token takes longer than an interval.
    tokens = [look["tokens"] for look in looks]
    assert tokens == sorted(tokens) and tokens[-1] > tokens[0]
    seen = [look for look in looks if look["seen"]]
    assert seen, looks
    for look in seen:
        assert look["phase"] in ("decode", "prefill") and look["seen"] <= look["of_tokens"]
        assert {op["name"] for op in look["ops"]} >= ROLES
        assert sum(op["share"] for op in look["ops"]) == pytest.approx(1, abs=1e-3)
        assert len(look["threads"]) == 2
    assert any(look["tps"] > 0 for look in looks)
    assert all(look["rss"] > look["file"] > 0 for look in looks)


def test_a_command_has_its_output_in_a_file(
    llama_bin: Path, smollm2: Path, run_profinfer, tmp_path: Path
) -> None:
    """It ends with the view, and its own words are where they were said to be."""
    log = tmp_path / "out.log"
    command = endless(llama_bin, smollm2)
    args = ["top", "-n", "3", "--plain", "--output", str(log), "--", *command]
    done = run_profinfer(*args, timeout=200)
    assert f"its output is in {log}" in done.stderr
    # The engine's own way to end after a Ctrl-C.
    assert done.returncode == 130
    assert done.stdout.count("profinfer top  llama-completion (pid ") == 3
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert "Hello" in log.read_text() and "Hello" not in done.stdout


def test_a_command_that_ends_by_itself(
    llama_bin: Path, smollm2: Path, run_profinfer, tmp_path: Path
) -> None:
    command = [str(llama_bin / "llama-completion"), "-m", str(smollm2), "-n", "4", "-p", "Hello",
               "-no-cnv", "-t", "2"]  # fmt: skip
    log = str(tmp_path / "out.log")
    done = run_profinfer("top", "-i", "0.5", "--plain", "--output", log, "--", *command)
    assert done.returncode == 0, done.stderr
    assert "the program exited with 0" in done.stderr


def test_what_cannot_be_watched(run_profinfer) -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        try:
            done = run_profinfer("top", "--pid", str(process.pid), "-n", "1")
        finally:
            process.kill()
    assert done.returncode != 0 and "no ggml or llama.cpp" in done.stderr
    done = run_profinfer("top", "-n", "1")
    assert done.returncode != 0 and "give either a COMMAND" in done.stderr


def read_until(master: int, wanted: bytes, seconds: float) -> bytes:
    got = b""
    until = time.monotonic() + seconds
    while wanted not in got and time.monotonic() < until:
        if select.select([master], [], [], 0.2)[0]:
            try:
                got += os.read(master, 1 << 16)
            except OSError:  # the other end is closed
                break
    return got


@pytest.mark.parametrize("end", [b"q", b"\x03"], ids=["q", "Ctrl-C"])
def test_the_terminal_is_given_back(running: subprocess.Popen[bytes], end: bytes) -> None:
    """Keys end the view; the screen and the terminal's modes are as before; the target goes on."""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    before = termios.tcgetattr(slave)
    env = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR", "LINES")}
    with subprocess.Popen(
        [sys.executable, "-m", "profinfer", "top", "--pid", str(running.pid), "-i", "0.5"],
        stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(slave, termios.TIOCSCTTY, 0),
        env=env | {"PYTHONPATH": str(REPO), "TERM": "xterm-256color"},
    ) as process:  # fmt: skip
        try:
            shown = read_until(master, b"threads", 60)
            assert b"\x1b[?1049h" in shown, shown  # the other screen
            assert b"profinfer top" in shown and b"decode" in shown
            os.write(master, end)
            left = read_until(master, b"still runs", 30)
            assert b"\x1b[?1049l" in left, left
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert termios.tcgetattr(slave) == before
    os.close(master)
    os.close(slave)
    assert running.poll() is None


def test_a_view_that_is_killed_leaves_the_target(
    running: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    """The recorder sees that nobody looks any more, and lets go."""
    args = [sys.executable, "-m", "profinfer", "top", "--pid", str(running.pid), "--plain"]
    with (
        (tmp_path / "out").open("wb") as out,
        subprocess.Popen(
            args, stdout=out, stderr=out, env=os.environ | {"PYTHONPATH": str(REPO)}
        ) as process,
    ):
        until = time.monotonic() + 60
        while not (tmp_path / "out").stat().st_size and time.monotonic() < until:
            time.sleep(0.1)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        assert children
        process.send_signal(signal.SIGKILL)
        process.wait()
    until = time.monotonic() + 20
    while any(Path(f"/proc/{c}").exists() for c in children) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{c}").exists() for c in children)
    assert running.poll() is None
