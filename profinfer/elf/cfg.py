"""Layer 1: the control flow graph of one function: blocks, dominators, natural loops.

Owns the discovery of blocks from an entry on, jump tables of switches included. Calls do not
end a block. Must not know what is looked for in a function.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from profinfer.elf.disasm import Decoder, Imm, Insn, Mem, Reg
from profinfer.elf.semantics import step
from profinfer.elf.values import State, Value

_LIMIT = 200_000  # instructions of one function
_TABLE_LIMIT = 1024
_BEFORE = 12  # instructions between a comparison and the switch that it guards
# Calls that do not come back; what follows them in memory is other code.
_NO_RETURN = {
    "abort",
    "exit",
    "_exit",
    "ggml_abort",
    "__assert_fail",
    "__stack_chk_fail",
    "_Unwind_Resume",
    "__cxa_throw",
    "__cxa_rethrow",
}


@dataclass(frozen=True)
class Block:
    """Instructions that run one after another.

    Attributes:
        successors: begins of the blocks that may follow, empty after a return.
        unresolved: it ends with an indirect jump whose targets are not known.
    """

    begin: int
    insns: tuple[Insn, ...]
    successors: tuple[int, ...]
    unresolved: bool


@dataclass(frozen=True)
class Loop:
    """A natural loop: every cycle through its header, inner loops included."""

    header: int
    body: frozenset[int]


@dataclass(frozen=True)
class Cfg:
    """The blocks of a function by their begin.

    Attributes:
        entry: begin of the first block.
    """

    entry: int
    blocks: dict[int, Block]

    @cached_property
    def predecessors(self) -> dict[int, list[int]]:
        """Begins of the blocks before each block."""
        found: dict[int, list[int]] = {b: [] for b in self.blocks}
        for block in self.blocks.values():
            for following in block.successors:
                found[following].append(block.begin)
        return found

    @cached_property
    def dominators(self) -> dict[int, int]:
        """Immediate dominator of each reachable block; the entry's is itself."""
        return _dominators(self.entry, {b: block.successors for b, block in self.blocks.items()})

    def dominates(self, above: int, below: int) -> bool:
        """Whether every path from the entry to ``below`` passes ``above``."""
        at = below
        while at != above:
            if at == self.dominators[at]:
                return False
            at = self.dominators[at]
        return True

    @cached_property
    def loops(self) -> list[Loop]:
        """Natural loops, the smallest first."""
        bodies: dict[int, set[int]] = {}
        for block in self.blocks.values():
            for header in block.successors:
                if self.dominates(header, block.begin):
                    body = bodies.setdefault(header, {header})
                    todo = [block.begin]
                    while todo:
                        at = todo.pop()
                        if at not in body:
                            body.add(at)
                            todo += self.predecessors[at]
        loops = [Loop(header, frozenset(body)) for header, body in bodies.items()]
        return sorted(loops, key=lambda loop: len(loop.body))

    @cached_property
    def unresolved(self) -> frozenset[int]:
        """Blocks that end with a jump whose targets are not known."""
        return frozenset(b for b, block in self.blocks.items() if block.unresolved)

    @cached_property
    def returning(self) -> frozenset[int]:
        """Blocks from which the function can return; the others end in an abort."""
        back: set[int] = set()
        todo = [
            b
            for b, block in self.blocks.items()
            if block.insns[-1].flow in ("ret", "jmp") and not block.successors
        ]
        while todo:
            at = todo.pop()
            if at not in back:
                back.add(at)
                todo += self.predecessors[at]
        return frozenset(back)

    def reach(
        self, begins: Iterable[int], within: frozenset[int] | None = None, cut: Iterable[int] = ()
    ) -> set[int]:
        """Blocks that can be reached from some blocks, these included.

        Args:
            begins: where to start.
            within: only through these blocks.
            cut: blocks that are not entered.
        """
        stop = set(cut)
        seen: set[int] = set()
        todo = [b for b in begins if b not in stop and (within is None or b in within)]
        while todo:
            at = todo.pop()
            if at in seen:
                continue
            seen.add(at)
            todo += [
                b
                for b in self.blocks[at].successors
                if b not in stop and b not in seen and (within is None or b in within)
            ]
        return seen


def build_cfg(decoder: Decoder, entry: int) -> Cfg | None:
    """The graph of the function at ``entry``; None if it is too large to look at."""
    return _Builder(decoder, entry).build()


@dataclass
class _Builder:
    decoder: Decoder
    entry: int
    insns: dict[int, Insn] = field(default_factory=dict)
    following: dict[int, tuple[int, ...]] = field(default_factory=dict)
    indirect: dict[int, list[Insn]] = field(default_factory=dict)  # jump -> line before it
    ending: dict[int, int] = field(default_factory=dict)  # end of an instruction -> its address
    tables: dict[int, None] = field(default_factory=dict)  # addresses of data taken by lea

    def build(self) -> Cfg | None:
        todo = [self.entry]
        unresolved: set[int] = set()
        while True:
            if not self._discover(todo):
                return None
            todo = []
            unresolved = set()
            for at, line in self.indirect.items():
                targets = self._switch(line)
                if not targets:
                    unresolved.add(at)
                elif self.following[at] != targets:
                    self.following[at] = targets
                    todo += [t for t in targets if t not in self.insns]
            if not todo:
                return self._blocks(unresolved)

    def _discover(self, todo: list[int]) -> bool:
        while todo:
            at = todo.pop()
            line: list[Insn] = []
            while at not in self.insns:
                insn = self.decoder.at(at)
                if insn is None or len(self.insns) > _LIMIT:
                    return False
                self.insns[at] = insn
                self.ending[insn.end] = at
                line.append(insn)
                if insn.mnemonic == "lea" and isinstance(insn.operands[-1], Mem):
                    place = insn.operands[-1]
                    if place.base is None and place.index is None:
                        self.tables.setdefault(place.disp)
                after = self._after(insn)
                self.following[at] = after
                if insn.flow == "jmp" and insn.target is None:
                    self.indirect[at] = line
                if not after:
                    break
                todo += after[1:]
                at = after[0]
                if insn.flow in ("jmp", "jcc"):
                    line = []
        return True

    def _after(self, insn: Insn) -> tuple[int, ...]:
        match insn.flow:
            case "ret" | "trap":
                return ()
            case "call":
                name = self.decoder.call_name(insn)
                return () if name in _NO_RETURN else (insn.end,)
            case "jmp":
                if insn.target is None:
                    return ()
                return () if self._tail_call(insn.target) else (insn.target,)
            case "jcc" if insn.target is not None:
                return (insn.end, insn.target)
        return (insn.end,)

    def _tail_call(self, target: int) -> bool:
        """Whether a jump goes to another function's begin."""
        if self._inside(target):
            return False
        name = self.decoder.image.call_name(target)
        if name is not None:
            return ".cold" not in name
        bounds = self.decoder.image.bounds(target)
        return bounds is not None and bounds[0] == target

    def _switch(self, line: list[Insn]) -> tuple[int, ...]:
        """Targets of an indirect jump through a table, or nothing."""
        jump = line[-1]
        state = State(self.decoder.image.machine)
        for insn in line[:-1]:
            if insn.flow == "call":
                state.call()
            else:
                step(state, insn)
        if not jump.operands:
            return ()
        op = jump.operands[-1]
        if not isinstance(op, Mem | Reg):
            return ()
        value = state.operand(op)
        table = next((a for a, _n in value.terms if a[0] == "mem"), None)
        if table is None or not isinstance(table[1], Value):
            return ()
        size, address = table[2], table[1]
        if size == 8 and value.atom is not None and any(n == 8 for _a, n in address.terms):
            count = self._entries(line)
            return self._targets(address.const, None, count) if len(address.terms) == 1 else ()
        if size != 4 or not any(n == 4 for _a, n in address.terms):
            return ()
        count = self._entries(line)
        if len(address.terms) == 1 and len(value.terms) == 1:
            return self._targets(address.const, value.const, count)
        # The table's address was taken elsewhere: any table of this function may be meant, which
        # only adds paths.
        found: dict[int, None] = {}
        for base in self.tables:
            found |= dict.fromkeys(self._targets(base, base, count))
        return tuple(sorted(found))

    def _entries(self, line: list[Insn]) -> int:
        """Entries of a table, from the comparison before the jump; a limit if there is none."""
        into = line[0].address
        for _ in range(_BEFORE):
            before = self.ending.get(into)
            if before is None:
                break
            into = before
            jump = self.insns[before]
            if jump.mnemonic in ("ja", "jae"):
                return self._compared(jump, 1 if jump.mnemonic == "ja" else 0)
        for jump in self.insns.values():
            if jump.mnemonic in ("jb", "jbe") and jump.target == line[0].address:
                return self._compared(jump, 1 if jump.mnemonic == "jbe" else 0)
        return _TABLE_LIMIT

    def _compared(self, jump: Insn, more: int) -> int:
        at = jump.address
        for _ in range(_BEFORE):
            before = self.ending.get(at)
            if before is None:
                break
            at = before
            insn = self.insns[at]
            if insn.mnemonic == "cmp" and isinstance(insn.operands[1], Imm):
                return min(insn.operands[1].value + more, _TABLE_LIMIT)
            if "rflags" in insn.writes or insn.flow:
                break
        return _TABLE_LIMIT

    def _targets(self, at: int, base: int | None, count: int) -> tuple[int, ...]:
        image = self.decoder.image
        section = image.section_at(at)
        if section is None or not section.has_bytes or (base is not None and section.executable):
            return ()
        found: dict[int, None] = {}
        for i in range(count):
            if base is None:
                target = image.pointer(at + 8 * i)
            else:
                raw = image.read(at + 4 * i, 4)
                target = base + struct.unpack("<i", raw)[0] if len(raw) == 4 else None
            if not isinstance(target, int) or not self._ours(target):
                break
            found[target] = None
            if i and base is not None and at + 4 * (i + 1) in self.tables:
                break
        return tuple(sorted(found))

    @cached_property
    def _pieces(self) -> list[tuple[int, int]]:
        """Where the function's code lies: itself, and its part for the unlikely."""
        image = self.decoder.image
        own = image.bounds(self.entry)
        pieces = [own] if own else []
        function = image.function_at(self.entry)
        if function:
            for name in (f"{function.name}.cold", f"{function.base}.cold"):
                cold = image.function(name)
                if cold and cold.size:
                    pieces.append((cold.address, cold.address + cold.size))
        return pieces

    def _ours(self, target: int) -> bool:
        if any(begin <= target < end for begin, end in self._pieces):
            return True
        # Without symbols, a part that branches of the function lead to.
        bounds = self.decoder.image.bounds(target)
        return bounds is not None and any(
            insn.target is not None and bounds[0] <= insn.target < bounds[1]
            for insn in self._outward
        )

    @property
    def _outward(self) -> list[Insn]:
        return [i for i in self.insns.values() if i.flow == "jcc" and not self._inside(i.target)]

    def _inside(self, target: int | None) -> bool:
        return target is None or any(begin <= target < end for begin, end in self._pieces)

    def _blocks(self, unresolved: set[int]) -> Cfg:
        leaders = {self.entry}
        for at, after in self.following.items():
            if self.insns[at].flow in ("jmp", "jcc"):
                leaders |= set(after)
        blocks: dict[int, Block] = {}
        for begin in leaders:
            line: list[Insn] = []
            at = begin
            while True:
                insn = self.insns[at]
                line.append(insn)
                after = self.following[at]
                if insn.flow in ("jmp", "jcc") or not after or after[0] in leaders:
                    blocks[begin] = Block(begin, tuple(line), after, at in unresolved)
                    break
                at = after[0]
        return Cfg(self.entry, blocks)


def _dominators(entry: int, successors: dict[int, tuple[int, ...]]) -> dict[int, int]:
    """Immediate dominators (Cooper, Harvey, Kennedy)."""
    order: list[int] = []
    seen = {entry}
    stack = [(entry, iter(successors[entry]))]
    while stack:
        at, rest = stack[-1]
        following = next((b for b in rest if b not in seen), None)
        if following is None:
            order.append(at)
            stack.pop()
        else:
            seen.add(following)
            stack.append((following, iter(successors[following])))
    number = {b: i for i, b in enumerate(order)}
    before: dict[int, list[int]] = defaultdict(list)
    for b in order:
        for following in successors[b]:
            before[following].append(b)
    found = {entry: entry}
    changed = True
    while changed:
        changed = False
        for b in reversed(order[:-1]):
            known = [p for p in before[b] if p in found]
            new = known[0]
            for other in known[1:]:
                while new != other:
                    while number[new] < number[other]:
                        new = found[new]
                    while number[other] < number[new]:
                        other = found[other]
            if found.get(b) != new:
                found[b] = new
                changed = True
    return found


def postdominators(cfg: Cfg, region: Iterable[int], ends: Iterable[int] = ()) -> dict[int, int]:
    """Immediate postdominators in a region; -1 is its end.

    Args:
        cfg: the graph.
        region: blocks.
        ends: blocks that paths of the region end before entering; a path also ends where a
            block has no successor, but not where it only leaves the region.
    """
    inside, stop = set(region), set(ends)
    back: dict[int, list[int]] = {b: [] for b in (*inside, -1)}
    for b in inside:
        after = cfg.blocks[b].successors
        for s in after:
            if s in stop:
                back[-1].append(b)
            elif s in inside:
                back[s].append(b)
        if not after:
            back[-1].append(b)
    return _dominators(-1, {b: tuple(p) for b, p in back.items()})
