"""Layer 1: values known symbolically, and the state of a machine that holds them.

Values are linear: a sum of atoms with factors, and a constant. An atom is a register's value
at the start, the content of memory at a linear address, or something unknown. Integer widths
are ignored (sign and zero extension are the identity): sound for the counts, indices and
pointers asked about here. Stores through one pointer are taken not to change what another
pointer's memory holds, except that a call forgets all memory but the stack.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from profinfer.elf.disasm import Imm, Insn, Mem, Operand, Reg

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
        return Value(signed(self.const + factor * other.const), terms)

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


@dataclass
class State:
    """What is known at one point of a path.

    Attributes:
        epoch: number of calls passed: memory read before one is not memory read after.
        compare: what the flags were set by, None if that is not known.
        signs: difference of two values -> the signs it can still have (-1, 0, 1).
    """

    machine: str
    registers: dict[str, Value] = field(default_factory=dict)
    memory: dict[Value, Value] = field(default_factory=dict)
    epoch: int = 0
    unknowns: list[int] = field(default_factory=lambda: [0])
    compare: Compare | None = None
    signs: dict[Value, frozenset[int]] = field(default_factory=dict)

    def fork(self) -> State:
        """An independent copy, for the other side of a branch."""
        return State(
            self.machine,
            dict(self.registers),
            dict(self.memory),
            self.epoch,
            self.unknowns,
            self.compare,
            dict(self.signs),
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
        total = Value(signed(mem.disp))
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
            return Value(signed(op.value))
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


def signed(value: int) -> int:
    """The low 64 bits as a signed number."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def assume(state: State, mnemonic: str, taken: bool) -> bool:
    """Note what a conditional jump's outcome says. Returns False if it cannot be.

    Signed and equality conditions only; others say nothing.
    """
    signs = _SIGNS.get(mnemonic)
    if signs is None or state.compare is None:
        return True
    possible = signs if taken else frozenset({-1, 0, 1}) - signs
    difference = state.compare.left.plus(state.compare.right, -1)
    left = sign(state, difference) & possible
    if difference.terms:
        spelling, flip = _spelling(difference)
        state.signs[spelling] = frozenset(flip * s for s in left)
    return bool(left)


def sign(state: State, difference: Value) -> frozenset[int]:
    """The signs (-1, 0, 1) that a value can have on this path."""
    if not difference.terms:
        return frozenset({(difference.const > 0) - (difference.const < 0)})
    spelling, flip = _spelling(difference)
    possible = state.signs.get(spelling, frozenset({-1, 0, 1}))
    for other, signs in state.signs.items():  # x >= 0 says that x + 1 > 0
        if other.terms == spelling.terms:
            if other.const < spelling.const and -1 not in signs:
                possible &= {1}
            elif other.const > spelling.const and 1 not in signs:
                possible &= {-1}
    return frozenset(flip * s for s in possible)


def _spelling(difference: Value) -> tuple[Value, int]:
    """One spelling for both a - b and b - a, and the factor between them."""
    flip = -1 if difference.terms[0][1] < 0 else 1
    return difference.times(flip), flip


_SIGNS = {
    "jl": frozenset({-1}),
    "jle": frozenset({-1, 0}),
    "jg": frozenset({1}),
    "jge": frozenset({0, 1}),
    "je": frozenset({0}),
    "jne": frozenset({-1, 1}),
}
