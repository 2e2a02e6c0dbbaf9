"""More records than any engine makes: the C target of the tests, computing nothing.

    python -m tools.bench.flood [--seconds T] [--contexts N]

Every context is a thread of its own that meets nobody, so that a CPU does nothing but pass
operators: what is measured is whether the ring, the recorder and the disk keep up. Records are
counted by the kernel; those lost are among them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tools.bench.run import measure
from tools.bench.written import written

_PROGRAMS = Path(__file__).resolve().parents[2] / "tests" / "testprogs"


@dataclass(frozen=True)
class Flood:
    """What a recording of the target at full speed came to.

    Attributes:
        contexts: threads that computed.
        seconds: how long the target ran.
        records: operator records, lost: records of any kind that were lost.
        bytes_per_record: of the file.
        recorder_cpu: share of one CPU, recorder_rss: bytes.
    """

    contexts: int
    seconds: float
    records: int
    lost: int
    bytes_per_record: float
    recorder_cpu: float
    recorder_rss: int

    @property
    def text(self) -> str:
        """One line."""
        return (
            f"flood: {self.records / self.seconds:,.0f} operator records a second of "
            f"{self.contexts} threads for {self.seconds:.0f} s, {self.lost:,} lost; "
            f"{self.bytes_per_record:.1f} bytes each, recorder {100 * self.recorder_cpu:.1f} % "
            f"of a CPU, {self.recorder_rss / 1e6:.0f} MB"
        )


def flood(seconds: float, contexts: int, trace: Path) -> Flood:
    """Build the target, record it, read what came of it.

    Args:
        seconds: how long it runs.
        contexts: threads that compute.
        trace: where the recording goes.

    Raises:
        SystemExit: it could not be built or recorded.
    """
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "fake_ggml")
        build = ["make", "-s", "-f", str(_PROGRAMS / "Makefile"), f"OUT={folder}"]
        built = subprocess.run(build, capture_output=True, text=True)
        if built.returncode:
            raise SystemExit(f"the target could not be built: {built.stderr.strip()}")
        command = [sys.executable, "-m", "profinfer", "record", "-f", "-o", str(trace), "--"]
        command += [str(target), "--threads", "1", "--contexts", str(contexts), "--layers", "30"]
        command += ["--base-us", "-1", "--sample-us", "0", "--kv-pad", "256", "--no-ops"]
        command += ["--tokens", "3000", "--seconds", str(seconds), "--out", "/dev/null"]
        run = measure(command, target)
        if not trace.exists():
            raise SystemExit(f"it could not be recorded: {run.stderr}")
        file = written(trace, run.seconds)
        return Flood(
            contexts=contexts,
            seconds=run.seconds,
            records=int(file["op_records"]),
            lost=int(file["lost"]),
            bytes_per_record=file["bytes_per_op_record"],
            recorder_cpu=run.recorder_cpu_s / run.seconds,
            recorder_rss=run.recorder_rss,
        )


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="tools.bench.flood", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--contexts", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(flood(args.seconds, args.contexts, Path(folder, "flood.pf")).text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
