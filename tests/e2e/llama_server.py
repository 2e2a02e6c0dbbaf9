"""llama-server under ``profinfer record``: started, asked, ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from conftest import REPO


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def recorded_server(llama_bin: Path, model: Path, slots: int, out: Path) -> Iterator[int]:
    """Gives its port once it answers, then ends it; what profinfer says lies beside the trace."""
    port = free_port()
    server = [llama_bin / "llama-server", "-m", model, "-t", "2", "-c", "2048"]
    command = [*server, "-np", str(slots), "--port", str(port)]
    with (
        out.with_suffix(".said").open("wb") as said,
        subprocess.Popen(
            [sys.executable, "-m", "profinfer", "record", "-o", out, "--", *command],
            env=os.environ | {"PYTHONPATH": str(REPO)}, stdout=subprocess.DEVNULL, stderr=said,
        ) as process,
    ):  # fmt: skip
        try:
            _wait_until_healthy(port, process)
            yield port
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)


def _wait_until_healthy(port: int, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert process.poll() is None, "the server ended"
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
            return
        except OSError:
            time.sleep(0.1)
    raise AssertionError("the server did not come up")


def ask(port: int, body: dict) -> dict:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/completion",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=180) as answer:
        return json.load(answer)
