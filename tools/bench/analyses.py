"""How long the analyses of a long trace take, and how much memory.

python -m tools.bench.analyses TRACE
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tools.bench.written import written


@dataclass(frozen=True)
class Analysis:
    """One command on one trace.

    Attributes:
        verb: what was run.
        op_records: of the trace.
        seconds: wall time, cpu_s: user and system time.
        rss: largest resident size in bytes.
        slices: written into a timeline, 0 for other verbs.
    """

    verb: str
    op_records: int
    seconds: float
    cpu_s: float
    rss: int
    slices: int

    @property
    def text(self) -> str:
        """One line."""
        line = (
            f"{self.verb}: {self.op_records:,} operator records in {self.seconds:.1f} s "
            f"({self.cpu_s:.1f} s of CPU), {self.rss / 1e6:,.0f} MB"
        )
        return line + (f", {self.slices / self.seconds:,.0f} slices/s" if self.slices else "")


def analyses(trace: Path) -> list[Analysis]:
    """Report, page and timeline of a trace, each once."""
    records = int(written(trace, 1.0)["op_records"])
    with tempfile.TemporaryDirectory() as folder:
        page, timeline = Path(folder, "page.html"), Path(folder, "timeline.pftrace")
        return [
            _run("report", records, ["report", str(trace)]),
            _run("report --html", records, ["report", str(trace), "--html", str(page)]),
            _run("export", records, ["export", str(trace), "-o", str(timeline)]),
        ]


def _run(verb: str, records: int, words: list[str]) -> Analysis:
    begin = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "profinfer", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    said = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.monotonic() - begin
    if status:
        raise SystemExit(f"profinfer {verb} ended with status {status}")
    slices = re.search(r"([\d,]+) slices", said)
    return Analysis(
        verb=verb,
        op_records=records,
        seconds=seconds,
        cpu_s=used.ru_utime + used.ru_stime,
        rss=used.ru_maxrss << 10,
        slices=int(slices[1].replace(",", "")) if slices else 0,
    )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="tools.bench.analyses", description=__doc__.split("\n")[0]
    )
    parser.add_argument("trace", type=Path)
    for one in analyses(parser.parse_args().trace):
        print(one.text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
