"""One measured run of a command: its output, and what its recorder used."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_TICK = os.sysconf("SC_CLK_TCK")
_POLL_S = 0.02


@dataclass
class Run:
    """What a run told.

    Attributes:
        prefill_ns: time a prompt token, by the engine's own clock.
        decode_ns: time a generated token.
        seconds: wall time from exec of the target to the end.
        start_s: from the recorder's start to exec of the target.
        recorder_cpu_s: recorder's CPU time after exec, its children's not included.
        recorder_rss: its largest resident size in bytes.
        stderr: last lines, for a failed run.
    """

    prefill_ns: float = 0
    decode_ns: float = 0
    seconds: float = 0
    start_s: float = 0
    recorder_cpu_s: float = 0
    recorder_rss: int = 0
    stderr: str = ""
    load: float = field(default_factory=lambda: os.getloadavg()[0])

    @property
    def ok(self) -> bool:
        """Both phases were measured."""
        return self.prefill_ns > 0 and self.decode_ns > 0


def measure(command: list[str], target: Path, env: dict[str, str] | None = None) -> Run:
    """Run a command that runs ``target`` (llama-bench with ``-o jsonl``) itself or as a child."""
    run = Run()
    start = time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    )
    begun, cpu_begun = 0.0, 0.0
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if not begun and _runs(process.pid, target):
            begun, cpu_begun = time.monotonic(), _cpu(process.pid)
        run.recorder_rss = max(run.recorder_rss, _rss(process.pid))
        # Starting is timed closely, then the CPU is left to the measured.
        time.sleep(_POLL_S if begun else 0.005)
    run.recorder_cpu_s = _cpu(process.pid) - cpu_begun
    run.seconds = time.monotonic() - (begun or start)
    run.start_s = (begun or start) - start
    out, err = process.communicate()
    run.stderr = "\n".join(err.splitlines()[-4:])
    for line in out.splitlines():
        if line.startswith("{"):
            _take(run, json.loads(line))
    return run


def _take(run: Run, row: dict[str, Any]) -> None:
    if row.get("n_gen"):
        run.decode_ns = row["avg_ns"] / row["n_gen"]
    elif row.get("n_prompt"):
        run.prefill_ns = row["avg_ns"] / row["n_prompt"]


def _runs(pid: int, target: Path) -> bool:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return any(os.readlink(f"/proc/{p}/exe") == str(target) for p in [str(pid), *children])
    except OSError:
        return False


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICK


def _rss(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    line = next((li for li in text.splitlines() if li.startswith("VmHWM")), "VmHWM: 0 kB")
    return int(line.split()[1]) << 10
