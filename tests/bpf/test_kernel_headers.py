"""BCC compiles and the kernel loads a program against profinfer's own header tree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.bpf

HEADERS = Path(__file__).resolve().parents[2] / "bpf" / "kernel-headers"

# Every kind of map and helper that profinfer's programs use, or may come to use.
PROGRAM = r"""
#include <uapi/linux/ptrace.h>
#ifndef PROFINFER_KERNEL_HEADERS
#error "compiled against other headers"
#endif
_Static_assert(sizeof(u64) == 8 && sizeof(u32) == 4 && sizeof(u8) == 1, "types");
#ifdef __x86_64__
_Static_assert(sizeof(struct pt_regs) == 21 * 8, "pt_regs");
#endif
struct value { u64 a[42]; };
BPF_ARRAY(an_array, struct value, 4);
BPF_HASH(a_hash, u64, struct value, 64);
BPF_PERCPU_ARRAY(per_cpu, u64, 40);
BPF_RINGBUF_OUTPUT(ring, 16);
BPF_PROG_ARRAY(programs, 4);
BPF_PERF_ARRAY(counters, 8);
int on_hit(struct pt_regs *ctx) {
  u32 zero = 0;
  u64 key = PT_REGS_PARM1(ctx), *count = per_cpu.lookup(&zero);
  struct value *v = an_array.lookup(&zero), *h = a_hash.lookup(&key);
  if (!count || !v) return 0;
  *count += 1;
  bpf_probe_read_user(v, sizeof(*v), (void *)PT_REGS_SP(ctx));
  if (!h) a_hash.update(&key, v);
  u64 *slot = ring.ringbuf_reserve(16);
  if (slot) {
    slot[0] = bpf_ktime_get_ns();
    slot[1] = bpf_get_current_pid_tgid() + bpf_get_smp_processor_id();
    ring.ringbuf_submit(slot, 0);
  }
  programs.call(ctx, 1);
  return 0;
}
int on_tail(struct pt_regs *ctx) {
  u64 value = counters.perf_read(CUR_CPU_IDENTIFIER);
  return value == 1;
}
"""

CHILD = """
import ctypes, os, sys
from bcc import BPF
os.environ["BCC_KERNEL_SOURCE"] = sys.argv[1]  # in-process, before BPF(): that is enough
program = BPF(text=sys.stdin.read(), cflags=["-Wall", "-Werror"])
hit = program.load_func("on_hit", BPF.KPROBE)
tail = program.load_func("on_tail", BPF.KPROBE)
program["programs"][ctypes.c_int(1)] = ctypes.c_int(tail.fd)
print("loaded", hit.fd > 0, tail.fd > 0, program["ring"].max_entries)
"""


def test_program_with_every_map_compiles_and_loads() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(HEADERS)],
        input=PROGRAM, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["loaded", "True", "True", str(16 * 4096)], done.stderr
    assert "warning" not in done.stderr


def test_every_header_says_why_it_is_there() -> None:
    for path in HEADERS.rglob("*.h"):
        assert path.read_text().startswith("/* "), path
        name = str(path.relative_to(HEADERS / "include"))
        assert f"`{name}`" in (HEADERS / "README.md").read_text(), f"README lacks {name}"
