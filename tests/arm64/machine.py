"""The emulated arm64 machine: boots, runs one job, and is gone.

It is made by `tools/setup.sh arm64` and records what it is told to; the traces are read outside. It
sees the checkout, read-only, and a folder where jobs, programs and results lie.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from truth import Truth, read_truth

from profinfer.model.trace import Trace

REPO = Path(__file__).resolve().parents[2]
# The emulator counts instructions, and one is 2 ns: time follows from what the machine executes,
# not from how fast or busy this one is. A cycle is a nanosecond, so that two are an instruction.
# Only the emulation of a single CPU keeps the counts of CPUs apart.
COUNTING = ("-icount", "shift=1,sleep=off")
IPC = 0.5
# What the real engine is asked for, here and on the machine.
RUN = "-t 2 -n 6 --temp 0 --no-warmup -no-cnv -p Hello"


@dataclass(frozen=True)
class Machine:
    """What a machine is made of.

    Attributes:
        folder: kernel, initial file system and disk.
        cpus: how many CPUs it has.
        counting: its PMU counts instructions.
    """

    folder: Path
    cpus: int
    counting: bool

    def run(self, job: str, shared: Path, timeout: float = 1500) -> str:
        """Boot, run a bash script in the shared folder, switch off; returns what it printed."""
        (shared / "job.sh").write_text(job)
        (shared / "status").unlink(missing_ok=True)
        command = [
            *("qemu-system-aarch64", "-M", "virt,gic-version=3", "-cpu", "cortex-a76"),
            *("-smp", str(self.cpus), "-m", "1536", "-nographic", "-no-reboot", "-net", "none"),
            *("-kernel", self.folder / "vmlinuz", "-initrd", self.folder / "initrd"),
            *("-append", "console=ttyAMA0 quiet panic=-1"),
            # What is written to the disk is forgotten.
            *("-drive", f"file={self.folder / 'disk'},format=raw,if=virtio,snapshot=on"),
            *_share("checkout", REPO, ",readonly=on"),
            *_share("job", shared),
            *(COUNTING if self.counting else ()),
        ]
        console = shared / "console.txt"
        with console.open("wb") as out:
            subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
                timeout=timeout, check=True,
            )  # fmt: skip
        printed = shared / "output.txt"
        said = printed.read_text(errors="replace") if printed.is_file() else ""
        status = shared / "status"
        assert status.is_file(), f"no job was run: {console.read_text(errors='replace')[-2000:]}"
        assert status.read_text().strip() == "0", said[-4000:]
        return said


@dataclass(frozen=True)
class Recorded:
    """What one boot left: traces, what the target measured, what profinfer said."""

    folder: Path
    printed: str

    def trace(self, name: str) -> Trace:
        said = (self.folder / f"{name}.said").read_text()
        assert f"{name}: 0" in self.printed.splitlines(), said
        return Trace.open(self.folder / f"{name}.pf")

    def truth(self, name: str) -> Truth:
        return read_truth(self.folder / f"{name}.json")

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.said").read_text()


def _share(tag: str, folder: Path, how: str = "") -> tuple[str, ...]:
    share = f"local,id={tag},path={folder},security_model=none{how}"
    return "-fsdev", share, "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"


def obstacle(folder: Path) -> str | None:
    """Why there is no machine, or None."""
    if shutil.which("qemu-system-aarch64") is None or not (folder / "disk").is_file():
        return "needs the emulated arm64 machine (Debian 12, as root: make test-arm64)"
    return None


def record(name: str, command: str, *, options: str = "", before: str = "", after: str = "") -> str:
    """Lines of a job that record a program as NAME.pf, and what profinfer says as NAME.said."""
    return f"""
{before}
python3 -m profinfer record -f {options} -o {name}.pf -- {command} >{name}.out 2>{name}.said
echo "{name}: $?"
{after}
"""
