"""Layer 1: what arm64 instructions do to a symbolic state; the counterpart of ``x86``.

Owns the few instructions that address computations and loops are made of; any other makes
what it writes unknown. Vector registers are never known.
"""

from __future__ import annotations

from collections.abc import Callable

from profinfer.elf.disasm import Imm, Insn, Mem, Operand, Reg
from profinfer.elf.values import Compare, State, Value, assume, signed

# Address of a slot that the loader fills once -> what it points to.
Pointer = Callable[[int], int | None]

_ATOMIC = ("ldadd", "ldclr", "ldset", "ldeor", "ldsmax", "ldsmin", "ldumax", "ldumin", "swp", "cas")
_PAIRS = {"ldp", "ldnp", "ldpsw"}


def step(state: State, insn: Insn, pointer: Pointer | None = None) -> None:
    """Execute one straight-line instruction.

    Args:
        state: changed in place.
        insn: no branch.
        pointer: content of the slots of the image's global offset table.
    """
    if "nzcv" in insn.writes:
        state.compare = None
    place = next((n for n, op in enumerate(insn.operands) if isinstance(op, Mem)), None)
    if place is not None:
        _memory(state, insn, place, pointer)
        return
    handler = _ARM64.get(insn.mnemonic)
    if handler is not None and handler(state, insn):
        return
    for name in insn.writes:
        if name != "nzcv":
            state.registers[name] = state.unknown()


def reads(state: State, insn: Insn) -> list[tuple[Value, int]]:
    """(address, bytes) of what an instruction loads. A pair is two loads."""
    for op in insn.operands:
        if isinstance(op, Mem) and insn.mnemonic.startswith("ld"):
            address = state.address(op)
            count = 2 if insn.mnemonic in _PAIRS else 1
            return [(address.plus(Value(n * op.size)), op.size) for n in range(count)]
    return []


def outcome(state: State, insn: Insn, taken: bool) -> bool:
    """Note what a conditional branch's outcome says. Returns False if it cannot be."""
    if insn.mnemonic.startswith("b."):
        return assume(state, _CONDITIONS.get(insn.mnemonic[2:], ""), taken)
    register = insn.operands[0]
    assert isinstance(register, Reg)
    sense = {"cbz": "je", "cbnz": "jne"}.get(insn.mnemonic)
    if sense is None:  # tbz, tbnz: of the sign bit, or of one that tells nothing
        bit = insn.operands[1]
        if not isinstance(bit, Imm) or bit.value != 8 * register.size - 1:
            return True
        sense = "jge" if insn.mnemonic == "tbz" else "jl"
    flags = state.compare  # these branches leave the flags alone
    state.compare = Compare(insn, state.register(register.name), Value(0))
    possible = assume(state, sense, taken)
    state.compare = flags
    return possible


def _memory(state: State, insn: Insn, place: int, pointer: Pointer | None) -> None:
    mem = insn.operands[place]
    assert isinstance(mem, Mem)
    address = state.address(mem)
    after = insn.operands[place + 1 :]
    name = insn.mnemonic
    if name.startswith(_ATOMIC) or (name.startswith("st") and "x" in name):
        state.memory[address] = state.unknown()
        for written in insn.writes:
            state.registers[written] = state.unknown()
        return
    parts = [op for op in insn.operands[:place] if isinstance(op, Reg)]
    for n, register in enumerate(parts):
        at = address.plus(Value(n * mem.size))
        if name.startswith("st"):
            _store(state, at, register, mem.size)
        elif name.startswith("ld"):
            value = state.read(at, mem.size)
            if pointer is not None and not at.terms and mem.size == 8:
                known = pointer(at.const)
                value = Value(known) if known is not None else value
            _set(state, register, value)
    if mem.base in insn.writes and not any(r.name == mem.base for r in parts):
        moved = state.unknown()  # written back, before or after the access
        if after and isinstance(after[0], Imm):
            moved = address.plus(Value(signed(after[0].value)))
        elif not after and insn.text.endswith("!"):
            moved = address
        state.registers[str(mem.base)] = moved


def _store(state: State, at: Value, register: Reg, size: int) -> None:
    if _vector(register):
        for n in range(0, max(size, 1), 4):
            state.memory[at.plus(Value(n))] = state.unknown()
    else:
        state.memory[at] = state.register(register.name) if size >= 4 else state.unknown()


def _vector(op: Reg) -> bool:
    return op.name[0] != "x" and op.name != "sp"


def _get(state: State, op: Operand) -> Value:
    if isinstance(op, Reg):
        if op.shift is None or _vector(op):
            return state.unknown()
        return state.register(op.name).times(1 << op.shift)
    return state.operand(op)


def _set(state: State, op: Operand, value: Value) -> None:
    assert isinstance(op, Reg)
    if op.name != "xzr":
        state.registers[op.name] = state.unknown() if _vector(op) else value


def _mov(state: State, insn: Insn) -> bool:
    if len(insn.operands) != 2:
        return False
    _set(state, insn.operands[0], _get(state, insn.operands[1]))
    return True


def _sum(state: State, insn: Insn) -> bool:
    """Addition and subtraction; with an s at the end they compare too."""
    if len(insn.operands) != 3:
        return False
    target, left, right = insn.operands
    a, b = _get(state, left), _get(state, right)
    if insn.mnemonic.startswith("add"):
        b = b.times(-1)
    _set(state, target, a.plus(b, -1))
    if insn.mnemonic.endswith("s"):
        state.compare = Compare(insn, a, b)
    return True


def _neg(state: State, insn: Insn) -> bool:
    _set(state, insn.operands[0], _get(state, insn.operands[1]).times(-1))
    return True


def _cmp(state: State, insn: Insn) -> bool:
    left, right = (_get(state, op) for op in insn.operands)
    state.compare = Compare(insn, left, right if insn.mnemonic == "cmp" else right.times(-1))
    return True


def _shift(state: State, insn: Insn) -> bool:
    """``lsl``, and ``sbfiz`` and ``ubfiz``, which widen a 32-bit index as well."""
    count = insn.operands[2]
    if not isinstance(count, Imm):
        return False
    if len(insn.operands) == 4:
        width = insn.operands[3]
        if not isinstance(width, Imm) or width.value < 32 - count.value:
            return False
    _set(state, insn.operands[0], _get(state, insn.operands[1]).times(1 << count.value))
    return True


def _mul(state: State, insn: Insn) -> bool:
    a, b = _get(state, insn.operands[1]), _get(state, insn.operands[2])
    if a.terms and b.terms:
        return False
    product = a.times(b.const) if a.terms else b.times(a.const)
    if len(insn.operands) == 4:
        sign = -1 if "sub" in insn.mnemonic else 1
        product = _get(state, insn.operands[3]).plus(product, sign)
    _set(state, insn.operands[0], product)
    return True


def _nothing(state: State, insn: Insn) -> bool:
    return True


_CONDITIONS = {
    "lt": "jl",
    "le": "jle",
    "gt": "jg",
    "ge": "jge",
    "eq": "je",
    "ne": "jne",
    "mi": "jl",
    "pl": "jge",
}
_ARM64 = {
    "mov": _mov,
    "adr": _mov,
    "adrp": _mov,
    "sxtw": _mov,
    "uxtw": _mov,
    "add": _sum,
    "adds": _sum,
    "sub": _sum,
    "subs": _sum,
    "neg": _neg,
    "cmp": _cmp,
    "cmn": _cmp,
    "lsl": _shift,
    "sbfiz": _shift,
    "ubfiz": _shift,
    "mul": _mul,
    "smull": _mul,
    "umull": _mul,
    "madd": _mul,
    "smaddl": _mul,
    "umaddl": _mul,
    "msub": _mul,
    "smsubl": _mul,
    "umsubl": _mul,
    "nop": _nothing,
    "bti": _nothing,
    "tst": _nothing,
}
