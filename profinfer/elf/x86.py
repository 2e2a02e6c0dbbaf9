"""Layer 1: what x86-64 instructions do to a symbolic state.

Owns the few instructions that address computations and loops are made of; any other makes
what it writes unknown.
"""

from __future__ import annotations

from profinfer.elf.disasm import Imm, Insn, Mem
from profinfer.elf.values import Compare, State, Value


def step(state: State, insn: Insn) -> None:
    """Execute one straight-line instruction."""
    if "rflags" in insn.writes:
        state.compare = None
    handler = _X86.get(insn.mnemonic) if state.machine == "x86_64" else None
    if handler is not None and handler(state, insn):
        return
    for op in insn.operands[:1]:  # an unknown instruction may write its first operand
        if isinstance(op, Mem) and insn.mnemonic not in _READ_ONLY:
            state.store(op, state.unknown())
    for name in insn.writes:
        if name not in ("rflags", "rsp", "rip"):
            state.registers[name] = state.unknown()
    if "rsp" in insn.writes and insn.mnemonic not in ("push", "pop"):
        state.registers["rsp"] = state.unknown()


_READ_ONLY = {"cmp", "test", "bt", "nop", "endbr64", "comiss", "ucomiss", "prefetcht0", "ptest"}


def _mov(state: State, insn: Insn) -> bool:
    target, source = insn.operands
    state.store(target, state.operand(source))
    return True


def _lea(state: State, insn: Insn) -> bool:
    target, source = insn.operands
    assert isinstance(source, Mem)
    state.store(target, state.address(source))
    return True


def _add(state: State, insn: Insn) -> bool:
    target, source = insn.operands
    state.store(target, state.operand(target).plus(state.operand(source)))
    return True


def _sub(state: State, insn: Insn) -> bool:
    target, source = insn.operands
    state.store(target, state.operand(target).plus(state.operand(source), -1))
    return True


def _inc(state: State, insn: Insn) -> bool:
    step = 1 if insn.mnemonic == "inc" else -1
    state.store(insn.operands[0], state.operand(insn.operands[0]).plus(Value(step)))
    return True


def _shl(state: State, insn: Insn) -> bool:
    count = insn.operands[-1]
    if len(insn.operands) != 2 or not isinstance(count, Imm):
        return False
    target = insn.operands[0]
    state.store(target, state.operand(target).times(1 << (count.value & 63)))
    return True


def _imul(state: State, insn: Insn) -> bool:
    factor = insn.operands[-1]
    if len(insn.operands) != 3 or not isinstance(factor, Imm):
        return False
    state.store(insn.operands[0], state.operand(insn.operands[1]).times(factor.value))
    return True


def _xor(state: State, insn: Insn) -> bool:
    if insn.operands[0] != insn.operands[1]:
        return False
    state.store(insn.operands[0], Value(0))
    return True


def _cmp(state: State, insn: Insn) -> bool:
    left, right = (state.operand(op) for op in insn.operands)
    state.compare = Compare(insn, left, right)
    return True


def _push(state: State, insn: Insn) -> bool:
    value = state.operand(insn.operands[0])
    state.registers["rsp"] = state.register("rsp").plus(Value(-8))
    state.memory[state.registers["rsp"]] = value
    return True


def _pop(state: State, insn: Insn) -> bool:
    value = state.read(state.register("rsp"), 8)
    state.registers["rsp"] = state.register("rsp").plus(Value(8))
    state.store(insn.operands[0], value)
    return True


def _cdqe(state: State, insn: Insn) -> bool:
    return True


_X86 = {
    "mov": _mov,
    "movabs": _mov,
    "movsxd": _mov,
    "lea": _lea,
    "add": _add,
    "sub": _sub,
    "inc": _inc,
    "dec": _inc,
    "shl": _shl,
    "sal": _shl,
    "imul": _imul,
    "xor": _xor,
    "cmp": _cmp,
    "push": _push,
    "pop": _pop,
    "cdqe": _cdqe,
    "nop": _cdqe,
    "endbr64": _cdqe,
    "test": _cdqe,
}
