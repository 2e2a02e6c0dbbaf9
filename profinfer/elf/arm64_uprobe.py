"""Layer 1: which arm64 instructions the kernel emulates under a uprobe, steps, or refuses.

From arch/arm64/kernel/probes/decode-insn.c (arm_probe_decode_insn):
  emulated: b, bl, b.cond, cbz, cbnz, tbz, tbnz, br, blr, ret, adr, adrp; since 6.13 also nop.
  refused: what would not work in another place and is not emulated: literal loads (taken by
    kernels before 6.12, which then read the wrong memory), exclusive loads and stores, branches
    that authenticate, exceptions, writes of system registers, and hints other than nop, bti,
    pac* and xpaclri (autiasp can fault).
  Everything else is stepped: stp, sub, mov, paciasp, bti.
"""

from __future__ import annotations

_NOP = 0xD503201F
_NOP_SINCE = (6, 13)
# CRm and op2 of the hints that may be stepped: nop; xpaclri; pacia1716, pacib1716; paciaz,
# paciasp, pacibz, pacibsp; bti, bti c, bti j, bti jc.
_STEPPED_HINTS = {0x00, 0x07, 0x08, 0x0A, 0x18, 0x19, 0x1A, 0x1B, 0x20, 0x22, 0x24, 0x26}
# (mask, value) of what is neither stepped nor emulated.
_REFUSED = (
    (0x3B000000, 0x18000000),  # ldr, ldrsw, prfm and vector ldr (literal)
    (0x3F800000, 0x08000000),  # ldxr, stxr, ldaxr, stlxr and pairs
    (0xFF000000, 0xD4000000),  # svc, hvc, smc, brk, hlt
    (0xFFF00000, 0xD5100000),  # msr (register)
    (0xFFF8F01F, 0xD500401F),  # msr (immediate)
    (0xFFFFFBFF, 0xD65F0BFF),  # retaa, retab
    (0xFEDFF800, 0xD61F0800),  # braa, blraa and relatives
    (0xFFFFFFFF, 0xD69F03E0),  # eret
)


def arm64_emulated_as(raw: bytes, kernel: tuple[int, int]) -> str | None:
    """``call``, ``jmp``, ``jcc``, ``nop`` or ``literal`` (adr, adrp); None if it is not."""
    word = int.from_bytes(raw[:4], "little")
    if word & 0xFC000000 == 0x94000000:
        return "call"
    if word & 0xFC000000 == 0x14000000 or word & 0xFFDFFC1F in (0xD61F0000, 0xD65F0000):
        return "jmp"  # b; br and blr; ret
    if word & 0xFF000010 == 0x54000000 or word & 0x7E000000 in (0x34000000, 0x36000000):
        return "jcc"  # b.cond; cbz, cbnz; tbz, tbnz
    if word & 0x1F000000 == 0x10000000:
        return "literal"
    return "nop" if word == _NOP and kernel >= _NOP_SINCE else None


def arm64_refused(raw: bytes) -> bool:
    """Whether the kernel refuses a uprobe on the instruction."""
    word = int.from_bytes(raw[:4], "little")
    if word & 0xFFFFF01F == 0xD503201F:
        return word >> 5 & 0x7F not in _STEPPED_HINTS
    return any(word & mask == value for mask, value in _REFUSED)
