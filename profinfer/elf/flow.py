"""Layer 1: what registers and stack slots hold along a path of machine code.

Owns a small symbolic execution. Values are linear: a sum of atoms with factors, and a
constant. An atom is a register's value at the start, the content of memory at a linear
address, or something unknown. Integer widths are ignored (sign and zero extension are the
identity): sound for the counts, indices and pointers asked about here. Stores through one
pointer are taken not to change what another pointer's memory holds, except that a call
forgets all memory but the stack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from profinfer.elf.disasm import Decoder, Imm, Insn, Mem, Operand, Reg

Atom = tuple[object, ...]  # ("reg", name) | ("mem", Value, size) | ("?", n)

CALLER_SAVED = {
    "x86_64": frozenset({"rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11"}),
    "aarch64": frozenset({f"x{i}" for i in range(19)}) | {"x30"},
}
_ZERO = {"xzr"}


@dataclass(frozen=True)
class Value:
    """``const + sum(factor * atom)``; ``terms`` is sorted by repr, without zero factors."""

    const: int
    terms: tuple[tuple[Atom, int], ...] = ()

    @staticmethod
    def of(atom: Atom) -> Value:
        """The value of one atom."""
        return Value(0, ((atom, 1),))

    def plus(self, other: Value, factor: int = 1) -> Value:
        """``self + factor * other``."""
        total = dict(self.terms)
        for atom, n in other.terms:
            total[atom] = total.get(atom, 0) + factor * n
        terms = tuple(sorted(((a, n) for a, n in total.items() if n), key=repr))
        return Value(_signed(self.const + factor * other.const), terms)

    def times(self, factor: int) -> Value:
        """``factor * self``."""
        return Value(0).plus(self, factor) if factor else Value(0)

    @property
    def atom(self) -> Atom | None:
        """The only atom, if the value is that atom plus a constant."""
        return self.terms[0][0] if len(self.terms) == 1 and self.terms[0][1] == 1 else None

    def load(self) -> Value | None:
        """The address read, if the value is exactly the content of memory."""
        atom = self.atom
        return atom[1] if atom and atom[0] == "mem" and not self.const else None  # type: ignore[return-value]


@dataclass(frozen=True)
class Compare:
    """A comparison of two values, at ``insn``."""

    insn: Insn
    left: Value
    right: Value


# (instruction, address read, bytes read)
Load = tuple[Insn, Value, int]


@dataclass
class State:
    """What is known at one point of a path."""

    machine: str
    registers: dict[str, Value] = field(default_factory=dict)
    memory: dict[Value, Value] = field(default_factory=dict)
    epoch: int = 0  # bumped by a call: memory read before is not memory read after
    unknowns: list[int] = field(default_factory=lambda: [0])
    compare: Compare | None = None

    def fork(self) -> State:
        """An independent copy, for the other side of a branch."""
        return State(
            self.machine,
            dict(self.registers),
            dict(self.memory),
            self.epoch,
            self.unknowns,
            self.compare,
        )

    def unknown(self) -> Value:
        """A value nothing is known of."""
        self.unknowns[0] += 1
        return Value.of(("?", self.unknowns[0]))

    def register(self, name: str) -> Value:
        """The value of a register; its start value unless it was written."""
        if name in _ZERO:
            return Value(0)
        return self.registers.get(name) or Value.of(("reg", name))

    def address(self, mem: Mem) -> Value:
        """The address of a memory operand."""
        if mem.segment:
            return self.unknown()
        total = Value(_signed(mem.disp))
        if mem.base:
            total = total.plus(self.register(mem.base))
        if mem.index:
            total = total.plus(self.register(mem.index), mem.scale)
        return total

    def read(self, address: Value, size: int) -> Value:
        """The content of memory."""
        known = self.memory.get(address)
        if known is not None:
            return known
        if self.epoch and not self._on_stack(address):
            return Value.of(("mem", address, size, self.epoch))
        return Value.of(("mem", address, size))

    def operand(self, op: Operand) -> Value:
        """The value of any operand."""
        if isinstance(op, Imm):
            return Value(_signed(op.value))
        if isinstance(op, Reg):
            return self.register(op.name)
        return self.read(self.address(op), op.size)

    def store(self, op: Operand, value: Value) -> None:
        """Write an operand. Writes of less than 4 bytes make the place unknown."""
        if isinstance(op, Reg):
            self.registers[op.name] = value if op.size >= 4 else self.unknown()
        elif isinstance(op, Mem):
            self.memory[self.address(op)] = value if op.size >= 4 else self.unknown()

    def call(self) -> None:
        """Forget what a call may change: argument registers, and memory off the stack."""
        for name in CALLER_SAVED[self.machine]:
            self.registers[name] = self.unknown()
        self.memory = {a: v for a, v in self.memory.items() if self._on_stack(a)}
        self.epoch += 1

    def _on_stack(self, address: Value) -> bool:
        return address.atom in (("reg", "rsp"), ("reg", "rbp"), ("reg", "sp"), ("reg", "x29"))

    def step(self, insn: Insn) -> None:
        """Execute one straight-line instruction."""
        handler = _X86.get(insn.mnemonic) if self.machine == "x86_64" else None
        if handler is not None and handler(self, insn):
            return
        for op in insn.operands[:1]:  # an unknown instruction may write its first operand
            if isinstance(op, Mem) and insn.mnemonic not in _READ_ONLY:
                self.store(op, self.unknown())
        for name in insn.writes:
            if name not in ("rflags", "rsp", "rip"):
                self.registers[name] = self.unknown()
        if "rsp" in insn.writes and insn.mnemonic not in ("push", "pop"):
            self.registers["rsp"] = self.unknown()


@dataclass(frozen=True)
class Path:
    """A path that was followed: its steps, and what ended it.

    Attributes:
        end: the last instruction: ``ret``, a call, a tail call, an indirect jump, or a jump back.
        loads: (instruction, address read, bytes) of every memory read.
        compares: every comparison.
    """

    end: Insn | None
    state: State
    loads: tuple[Load, ...]
    compares: tuple[Compare, ...]


def paths(
    decoder: Decoder,
    begin: int,
    state: State,
    *,
    limit: int = 96,
    width: int = 48,
    enough: Callable[[Sequence[Load], Sequence[Compare]], bool] | None = None,
) -> Iterator[Path]:
    """Every path from ``begin`` to the next call, return or indirect jump.

    Both sides of a branch are followed; an address is visited once a path; at most
    ``limit`` instructions a path and ``width`` paths. ``enough`` is asked after every read of
    memory whether the path has shown what was looked for.
    """
    todo: list[tuple[int, State, list[Load], list[Compare], frozenset[int]]]
    todo = [(begin, state, [], [], frozenset())]
    done = 0
    while todo and done < width:
        at, now, loads, compares, seen = todo.pop()
        end: Insn | None = None
        visited = set(seen)
        found = False
        while len(visited) < limit:
            insn = decoder.at(at)
            if insn is None or at in visited:
                break
            visited.add(at)
            end = insn
            for position, op in enumerate(insn.operands):
                written_only = position == 0 and insn.mnemonic.startswith("mov")
                if isinstance(op, Mem) and insn.mnemonic != "lea" and not written_only:
                    loads.append((insn, now.address(op), op.size))
                    if enough is not None and enough(loads, compares):
                        found = True
            if found:
                break
            if insn.flow in ("ret", "call", "trap") or _leaves(decoder, insn):
                break
            if insn.flow == "jmp":
                at = insn.target if insn.target is not None else insn.end
                continue
            if insn.flow == "jcc" and insn.target is not None:
                other = frozenset(visited)
                todo.append((insn.target, now.fork(), list(loads), list(compares), other))
                at = insn.end
                continue
            now.step(insn)
            if now.compare is not None:
                compares.append(now.compare)
                now.compare = None
            at = insn.end
        done += 1
        yield Path(end, now, tuple(loads), tuple(compares))


def _leaves(decoder: Decoder, insn: Insn) -> bool:
    """Whether an unconditional jump is indirect, or a tail call of another function.

    A part that the compiler moved away (``f.cold``) is still the same function.
    """
    if insn.flow != "jmp":
        return False
    if insn.target is None:
        return True
    name = decoder.call_name(insn)
    return name is not None and ".cold" not in name


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


# --- x86-64 ------------------------------------------------------------------------------
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
