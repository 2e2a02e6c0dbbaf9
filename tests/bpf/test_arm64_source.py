"""The BPF program of an arm64 engine, compiled here: it reads arm64's registers, not x86-64's."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from profinfer.elf.modules import open_program
from profinfer.probes.plan import make_plan

GCC = shutil.which("aarch64-linux-gnu-gcc")
# A tier's skipped test is a failure in CI; the cross compiler alone must not be the reason.
pytestmark = pytest.mark.bpf if GCC else pytest.mark.skip(reason="no gcc-aarch64-linux-gnu")
PROGRAMS = Path(__file__).parents[1] / "testprogs"

# BCC compiles for the architecture in ARCH. Nothing of it is loaded into this kernel.
CHILD = """
import os, sys
from profinfer.elf.modules import open_program
from profinfer.probes.plan import make_plan
from profinfer.capture.source import build_source, headers_folder
os.environ["BCC_KERNEL_SOURCE"] = str(headers_folder())
os.environ["ARCH"] = "arm64"
import bcc
source = build_source(make_plan(open_program(sys.argv[1])))
program = bcc.BPF(text=source.text, cflags=source.cflags)
for point in source.points:
    print(point.handler, program.dump_func(point.handler).hex())
"""


def context_reads(code: bytes) -> set[int]:
    """Offsets of 8-byte loads near the begin of a program, where r1 or its copy is the context."""
    found, context = set(), {1}
    for op, registers, offset, _imm in struct.iter_unpack("<BBhi", code):
        target, source = registers & 15, registers >> 4
        if op == 0xBF and source in context:  # r = r
            context.add(target)
        elif op == 0x79 and source in context:  # r = *(u64 *)(r + offset)
            found.add(offset)
        if op == 0x85:  # a call: r1 is something else afterwards
            context.discard(1)
        elif op != 0xBF and op & 7 in (0, 1, 4, 7):
            context.discard(target)
    return found


def test_handlers_read_arm64_registers(tmp_path: Path) -> None:
    command = ["make", "-s", "-C", PROGRAMS, f"OUT={tmp_path}", f"CC={GCC}", "CFLAGS_EXTRA="]
    subprocess.run(command, check=True)
    program = tmp_path / "fake_ggml"
    done = subprocess.run(
        [sys.executable, "-c", CHILD, program], capture_output=True, text=True, check=True
    )
    reads = {
        name: context_reads(bytes.fromhex(code))
        for name, code in (line.split() for line in done.stdout.splitlines() if " " in line)
    }
    plan = make_plan(open_program(program))
    assert len(reads) == len(plan.probes)
    for probe in plan.probes:
        found = reads[f"pf_probe_{probe.id}"]
        if probe.role == "call.batch" and probe.kind == "uprobe":
            assert found == {0, 8}  # x0: the context; x1: where the batch lies
        if probe.role == "op.end":
            assert probe.index and probe.cgraph
            registers = {probe.index.register, probe.cgraph.register}
            assert found == {248 if r == "sp" else 8 * int(r[1:]) for r in registers}
        if probe.kind == "uretprobe" and probe.role.startswith("call"):
            assert found == {0}  # x0: the result
