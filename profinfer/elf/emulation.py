"""Layer 1: which instructions the kernel emulates under a uprobe, and which it steps.

Owns the decision for one instruction's bytes. A stepped instruction costs two traps
through the debug exception instead of one through int3: twice the price on bare metal,
twenty times under a hypervisor.

x86-64 (arch/x86/kernel/uprobes.c):
  branch_setup_xol_ops: e8 (call), eb and e9 (jmp), 90 with any prefix (nop), 70..7f and
    0f 80..8f (jcc). A 66 prefix on a branch makes the kernel refuse the probe, and so does a
    segment or lock prefix on anything (uprobe_init_insn, is_prefix_bad).
    Since 6.16 also the kernel's own multi-byte nops (x86_nops[length]).
  push_setup_xol_ops: 50..57, alone or after exactly the REX prefix 41 (push r8..r15).
  Everything else is stepped: indirect call and jmp, ret, lea, mov, test, endbr64.
arm64: see ``arm64_uprobe``.
"""

from __future__ import annotations

import os
import re

from profinfer.elf.arm64_uprobe import arm64_emulated_as, arm64_refused

# arch/x86/include/asm/nops.h, 64-bit: the only encodings taken for nops since 6.16.
_X86_NOPS = {
    bytes.fromhex(text)
    for text in (
        "6690",
        "0f1f00",
        "0f1f4000",
        "0f1f440000",
        "660f1f440000",
        "0f1f8000000000",
        "0f1f840000000000",
        "660f1f840000000000",
    )
}
_X86_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")
_X86_REFUSED = frozenset(b"\x26\x2e\x36\x3e\xf0")  # es, cs, ss, ds, lock (is_prefix_bad)
_NOPS_SINCE = (6, 16)


def running_kernel() -> tuple[int, int]:
    """(major, minor) of the running kernel; (0, 0) where it cannot be told."""
    match = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def emulated_as(raw: bytes, machine: str, kernel: tuple[int, int]) -> str | None:
    """What the kernel emulates the instruction as.

    Args:
        raw: exactly the bytes of one instruction.
        machine: ``x86_64`` or ``aarch64``.
        kernel: (major, minor) of the kernel that will run the probe.

    Returns:
        ``push``, ``call``, ``jmp``, ``jcc``, ``nop`` or ``literal``; None if it is stepped.
    """
    return _x86(raw, kernel) if machine == "x86_64" else arm64_emulated_as(raw, kernel)


def refused(raw: bytes, machine: str) -> bool:
    """Whether the kernel refuses a uprobe here, on x86.

    It does where a branch has a 66 prefix, and where an instruction of any kind (long nops, too)
    has a segment or lock prefix. A probe that is set before the file is mapped is then lost
    without an error.
    """
    if machine != "x86_64":
        return arm64_refused(raw)
    prefixes, opcode = _split(raw)
    if set(prefixes) & _X86_REFUSED:
        return True
    return 0x66 in prefixes and _branch(opcode) in ("call", "jmp", "jcc")


def _split(raw: bytes) -> tuple[bytes, bytes]:
    """Legacy and REX prefixes, and the rest."""
    i = 0
    while i < len(raw) and raw[i] in _X86_PREFIXES:
        i += 1
    if i < len(raw) and 0x40 <= raw[i] <= 0x4F:
        i += 1
    return raw[:i], raw[i:]


def _branch(opcode: bytes) -> str | None:
    match opcode[:1]:
        case b"\xe8":
            return "call"
        case b"\xe9" | b"\xeb":
            return "jmp"
        case b"\x90":
            return "nop"
    if opcode and 0x70 <= opcode[0] <= 0x7F:
        return "jcc"
    if len(opcode) > 1 and opcode[0] == 0x0F and 0x80 <= opcode[1] <= 0x8F:
        return "jcc"
    return None


def _x86(raw: bytes, kernel: tuple[int, int]) -> str | None:
    prefixes, opcode = _split(raw)
    if set(prefixes) & _X86_REFUSED:
        return None
    if opcode and 0x50 <= opcode[0] <= 0x57:
        return "push" if raw[:-1] in (b"", b"\x41") else None
    if raw in _X86_NOPS and kernel >= _NOPS_SINCE:
        return "nop"
    kind = _branch(opcode)
    if kind == "nop" and any(p & 0xF1 == 0x41 for p in prefixes if p >= 0x40 and p <= 0x4F):
        return None  # 41 90 is xchg r8, rax, no nop
    return None if kind != "nop" and 0x66 in prefixes else kind
