"""Layer 1: machine code as neutral instructions; the only module that imports capstone.

Owns decoding and register naming: every register is known by its full name (``rdi`` for
edi, di and dil; ``x0`` for w0), so that flow analysis need not know the aliases. Which
instruction a probe is put on is decided in ``sites``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import capstone
from capstone import arm64_const, x86_const

from profinfer.elf.symbols import ElfImage


@dataclass(frozen=True, slots=True)
class Reg:
    """A register operand: full name and the bytes of it that are used.

    ``shift``: bits that its value is shifted left by before use (arm64); None if it is changed in
    another way.
    """

    name: str
    size: int
    shift: int | None = 0


@dataclass(frozen=True, slots=True)
class Imm:
    """A constant operand."""

    value: int


@dataclass(frozen=True, slots=True)
class Mem:
    """A memory operand; a pc-relative one has its address in ``disp`` and no base.

    ``segment`` is set for thread-local accesses (fs, gs), whose address is not known.
    """

    base: str | None
    index: str | None
    scale: int
    disp: int
    size: int
    segment: bool = False


Operand = Reg | Imm | Mem


@dataclass(frozen=True, slots=True)
class Insn:
    """One instruction.

    Attributes:
        flow: ``call``, ``jmp``, ``jcc``, ``ret``, ``trap`` or ``""`` for straight-line code.
        target: where a direct call or jump goes, or None.
        slot: address of the pointer that an indirect call through a fixed slot reads.
        writes: full names of the registers changed, implicit ones included.
    """

    address: int
    raw: bytes
    mnemonic: str
    text: str
    operands: tuple[Operand, ...]
    writes: frozenset[str]
    flow: str
    target: int | None
    slot: int | None

    @property
    def end(self) -> int:
        """Address of the next instruction."""
        return self.address + len(self.raw)


class Decoder:
    """Decodes the code of one image, keeping what was decoded."""

    def __init__(self, image: ElfImage) -> None:
        self.image = image
        self._x86 = image.machine == "x86_64"
        if self._x86:
            self._engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
        else:
            self._engine = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
        self._engine.detail = True
        self._known: dict[int, Insn | None] = {}

    def at(self, address: int) -> Insn | None:
        """The instruction at an address, or None if it is no valid one."""
        if address not in self._known:
            self._known[address] = self._decode(address)
        return self._known[address]

    def straight(self, begin: int, end: int) -> Iterator[Insn]:
        """Instructions one after another in [begin, end).

        Bytes that do not decode are skipped one by one (jump tables inside code).
        """
        at = begin
        while at < end:
            insn = self.at(at)
            if insn is None:
                at += 1 if self._x86 else 4
                continue
            yield insn
            at = insn.end

    def call_name(self, insn: Insn) -> str | None:
        """Name of the function a call or jump goes to, through PLT stubs and GOT slots."""
        if insn.target is not None:
            return self.image.call_name(insn.target)
        if insn.slot is not None:
            pointer = self.image.pointer(insn.slot)
            return pointer if isinstance(pointer, str) else self.image.slots.get(insn.slot)
        return None

    def _decode(self, address: int) -> Insn | None:
        try:
            raw = self.image.read(address, 16)
        except ValueError:
            return None
        found = next(self._engine.disasm(raw, address, count=1), None)
        if found is None:
            return None
        return self._x86_insn(found) if self._x86 else self._arm_insn(found)

    def _x86_insn(self, i: capstone.CsInsn) -> Insn:
        operands: list[Operand] = []
        for op in i.operands:
            if op.type == x86_const.X86_OP_REG:
                operands.append(Reg(full_name(i.reg_name(op.reg)), op.size))
            elif op.type == x86_const.X86_OP_IMM:
                operands.append(Imm(op.imm))
            else:
                base = i.reg_name(op.mem.base) if op.mem.base else None
                index = i.reg_name(op.mem.index) if op.mem.index else None
                disp = op.mem.disp
                if base == "rip":
                    base, disp = None, disp + i.address + i.size
                operands.append(
                    Mem(
                        full_name(base) if base else None,
                        full_name(index) if index else None,
                        op.mem.scale,
                        disp,
                        op.size,
                        op.mem.segment in (x86_const.X86_REG_FS, x86_const.X86_REG_GS),
                    )
                )
        flow = ""
        if i.group(capstone.CS_GRP_CALL):
            flow = "call"
        elif i.group(capstone.CS_GRP_RET):
            flow = "ret"
        elif i.group(capstone.CS_GRP_JUMP):
            flow = "jmp" if i.id == x86_const.X86_INS_JMP else "jcc"
        elif i.id in (x86_const.X86_INS_UD2, x86_const.X86_INS_HLT, x86_const.X86_INS_INT3):
            flow = "trap"
        target = slot = None
        if flow in ("call", "jmp", "jcc") and operands:
            first = operands[-1]
            if isinstance(first, Imm):
                target = first.value
            elif isinstance(first, Mem) and not first.base and not first.index:
                slot = first.disp
        return self._insn(i, operands, flow, target, slot)

    def _arm_insn(self, i: capstone.CsInsn) -> Insn:
        operands: list[Operand] = []
        name = i.mnemonic
        for op in i.operands:
            if op.type == arm64_const.ARM64_OP_REG:
                register = i.reg_name(op.reg)
                width = _ARM_WIDTHS.get(register[0], 8) if register[1:].isdigit() else 8
                operands.append(Reg(arm_name(register), width, _arm_shift(op)))
            elif op.type == arm64_const.ARM64_OP_IMM:
                operands.append(Imm(op.imm << (_arm_shift(op) or 0)))
            elif op.type == arm64_const.ARM64_OP_MEM:
                base = arm_name(i.reg_name(op.mem.base)) if op.mem.base else None
                index = arm_name(i.reg_name(op.mem.index)) if op.mem.index else None
                size = _arm_access(name, operands)
                operands.append(Mem(base, index, 1 << op.shift.value, op.mem.disp, size))
        if name in ("ldr", "ldrsw") and len(operands) == 2 and isinstance(operands[1], Imm):
            at = operands[1].value
            operands[1] = Mem(None, None, 1, at, _arm_access(name, operands))
        flow = ""
        if name in ("bl", "blr"):
            flow = "call"
        elif name in ("ret", "retaa", "retab"):
            flow = "ret"
        elif name in ("b", "br"):
            flow = "jmp"
        elif name.startswith("b.") or name in ("cbz", "cbnz", "tbz", "tbnz"):
            flow = "jcc"
        elif name in ("brk", "udf"):
            flow = "trap"
        target = None
        if flow in ("call", "jmp", "jcc") and operands and isinstance(operands[-1], Imm):
            target = operands[-1].value
        return self._insn(i, operands, flow, target, None)

    def _insn(
        self,
        i: capstone.CsInsn,
        operands: list[Operand],
        flow: str,
        target: int | None,
        slot: int | None,
    ) -> Insn:
        _read, written = i.regs_access()
        whole = full_name if self._x86 else arm_name
        writes = {whole(i.reg_name(r)) for r in written}
        if not self._x86:
            writes = arm_writes(i.mnemonic, operands, writes)
        return Insn(
            address=i.address,
            raw=bytes(i.bytes),
            mnemonic=i.mnemonic,
            text=f"{i.mnemonic} {i.op_str}".strip(),
            operands=tuple(operands),
            writes=frozenset(writes),
            flow=flow,
            target=target,
            slot=slot,
        )


_LEGACY = {"a": "rax", "b": "rbx", "c": "rcx", "d": "rdx"}


@lru_cache(maxsize=512)
def full_name(name: str) -> str:
    """The whole x86-64 register a name is a part of: eax -> rax, r8d -> r8, sil -> rsi."""
    if len(name) == 2 and name[0] in _LEGACY and name[1] in "xhl":
        return _LEGACY[name[0]]
    if name[0] == "e" and len(name) == 3:
        return "r" + name[1:]
    stem = name.rstrip("l")
    if stem in ("si", "di", "bp", "sp"):
        return "r" + stem
    if name[0] == "r" and name[1:-1].isdigit() and name[-1] in "dwb":
        return name[:-1]
    return name


_ARM_ALIASES = {"wzr": "xzr", "wsp": "sp", "fp": "x29", "lr": "x30"}


def arm_name(name: str) -> str:
    """The whole arm64 register a name is a part of: w3 -> x3."""
    if name[0] == "w" and name[1:].isdigit():
        return "x" + name[1:]
    if name[0] in "bhsdqv" and name[1:].isdigit():
        return "v" + name[1:]
    return _ARM_ALIASES.get(name, name)


_ARM_WIDTHS = {"w": 4, "b": 1, "h": 2, "s": 4, "q": 16, "v": 16}


def _arm_shift(op: Any) -> int | None:
    """Bits that an operand is shifted left by; None if it is changed in another way."""
    if op.ext not in (0, *_ARM_WIDE) or op.shift.type not in (0, arm64_const.ARM64_SFT_LSL):
        return None
    return int(op.shift.value)


_ARM_WIDE = (
    arm64_const.ARM64_EXT_UXTW,
    arm64_const.ARM64_EXT_UXTX,
    arm64_const.ARM64_EXT_SXTW,
    arm64_const.ARM64_EXT_SXTX,
)


def _arm_access(mnemonic: str, operands: list[Operand]) -> int:
    """Bytes of one register that a load or store moves."""
    if mnemonic[-1] in "bh" and mnemonic[:2] in ("ld", "st"):
        return 1 if mnemonic[-1] == "b" else 2
    if mnemonic.endswith("sw"):
        return 4
    return operands[0].size if operands and isinstance(operands[0], Reg) else 8


def arm_writes(mnemonic: str, operands: list[Operand], told: set[str]) -> set[str]:
    """What an instruction writes. Capstone adds what a comparison reads, and lacks atomics."""
    if mnemonic.startswith(("ldadd", "ldclr", "ldset", "ldeor", "ldsm", "ldum", "swp", "cas")):
        return told | {op.name for op in operands if isinstance(op, Reg)}
    if mnemonic.startswith(("cmp", "cmn", "tst", "ccm", "fcm", "fccm", "cb", "tb", "prfm")):
        return told & {"nzcv"}
    return told - {"xzr"}
