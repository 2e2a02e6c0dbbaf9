"""Layer 2: the point that every thread passes once an operator, where no barrier call tells it.

Compilers inline ``ggml_barrier`` into the graph loop (clang; link-time optimization), and older
engines wait by OpenMP's barrier, which is passed over when there is one thread. What is looked
for then is any instruction of the loop

* that is passed exactly once after the calls that compute a node and before the next node: by
  the control flow graph, for every path;
* after which the thread waits, so that the end of the work and the wait are told apart;
* from which on, without leaving the loop, the next node is loaded as ``cgraph->nodes[next]``,
  ``next`` being less than ``cgraph->n_nodes``: by symbolic execution, as in ``operator_site``.

The last node passes it too. A loop for which this cannot be shown is not probed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from profinfer.elf.cfg import Block, Cfg, Loop, build_cfg, postdominators
from profinfer.elf.disasm import Decoder, Insn
from profinfer.elf.emulation import emulated_as, refused
from profinfer.elf.flow import Load, paths
from profinfer.elf.semantics import step
from profinfer.elf.sites import ARGUMENTS
from profinfer.elf.symbols import Function
from profinfer.elf.values import Compare, State, Value
from profinfer.probes.operator_site import (
    BARRIER,
    Location,
    LoopSite,
    location,
    mentions,
    next_node,
)

WAITS = {BARRIER, "GOMP_barrier", "__kmpc_barrier"}
# Calls in the loop that compute nothing.
_IDLE = {"ggml_op_is_empty", "__kmpc_global_thread_num", "omp_get_thread_num"}
_STACKS = ("rsp", "sp")


def find_loop_point(
    decoder: Decoder, function: Function, *, n_nodes: int, nodes: int, kernel: tuple[int, int]
) -> LoopSite | None:
    """The once-an-operator point of the graph loop in a function, proven; or None.

    Args:
        decoder: of the function's image.
        function: where to look.
        n_nodes: offset of ``ggml_cgraph::n_nodes`` in bytes.
        nodes: offset of ``ggml_cgraph::nodes`` in bytes.
        kernel: (major, minor) of the kernel that will run the probe.
    """
    if decoder.image.machine != "x86_64":
        return None
    cfg = build_cfg(decoder, function.address)
    if cfg is None:
        return None
    waiting = {
        b for b, block in cfg.blocks.items() if any(_waits(decoder, insn) for insn in block.insns)
    }
    for loop in cfg.loops:
        if not waiting & loop.body:
            continue
        found = _LoopView(decoder, cfg, loop, kernel, n_nodes)
        if not found.computing or found.opaque:
            continue
        for at, block in found.points():
            told = _prove(decoder, found, block, at, n_nodes, nodes)
            if told is None:
                continue
            index, bias, cgraph = told
            enter, leave = found.enter, found.leave
            if leave is None and found.enclosed:
                return None  # where one graph ends and the next begins would not be seen
            return LoopSite(
                function=function,
                entry=function.address,
                end=at,
                index=index,
                bias=bias,
                cgraph=cgraph,
                leaves=() if leave is None else (leave,),
                barrier_always=True,
                proof=(
                    f"every path through the loop passes {at:#x} once, after the work and before "
                    f"the wait; the next node is {index} {1 - bias:+d}, compared with n_nodes and "
                    f"loaded from nodes of {cgraph}"
                ),
                enter=enter,
            )
    return None


def _name(decoder: Decoder, insn: Insn) -> str | None:
    name = decoder.call_name(insn)
    return name.split(".", 1)[0] if name else None


def _waits(decoder: Decoder, insn: Insn) -> bool:
    """Whether an instruction belongs to a wait for other threads."""
    if insn.flow == "call":
        return _name(decoder, insn) in WAITS
    return insn.mnemonic == "pause" or insn.mnemonic.startswith("lock ")


def waits_inline(decoder: Decoder, insn: Insn) -> bool:
    """Whether an instruction waits for other threads, but not by calling the engine's barrier."""
    if insn.flow == "call":
        return _name(decoder, insn) in WAITS - {BARRIER}
    return insn.mnemonic == "pause"


@dataclass(frozen=True)
class _LoopView:
    decoder: Decoder
    cfg: Cfg
    loop: Loop
    kernel: tuple[int, int]
    n_nodes: int

    def computes(self, block: Block, insn: Insn) -> bool:
        """Whether a call may compute a node: every call that is not known to do something else."""
        if insn.flow != "call" or _name(self.decoder, insn) in WAITS | _IDLE:
            return False
        return not self._asks_user(block, insn)

    def _asks_user(self, block: Block, call: Insn) -> bool:
        """Whether a call is ``plan->abort_callback(plan->abort_callback_data)``.

        That is: through a pointer in memory, with the pointer after it as the argument.
        """
        if call.target is not None or not call.operands:
            return False
        line = list(block.insns[: block.insns.index(call)])
        begin = block.begin
        for _ in range(3):  # the pointer may have been tested in a block before
            before = self.cfg.predecessors[begin]
            if len(before) != 1:
                break
            begin = before[0]
            line = [*self.cfg.blocks[begin].insns, *line]
        state = State(self.decoder.image.machine)
        for insn in line:
            if insn.flow == "call":
                state.call()
            elif not insn.flow:
                step(state, insn)
        function = state.operand(call.operands[-1]).load()
        data = state.register(ARGUMENTS[self.decoder.image.machine][0]).load()
        return function is not None and data is not None and data == function.plus(Value(8))

    @cached_property
    def computing(self) -> frozenset[int]:
        """Blocks of the loop with calls that compute."""
        return frozenset(
            b
            for b in self.loop.body
            if any(self.computes(self.cfg.blocks[b], i) for i in self.cfg.blocks[b].insns)
        )

    @cached_property
    def code(self) -> frozenset[int]:
        """Addresses of the loop's instructions."""
        return frozenset(i.address for b in self.loop.body for i in self.cfg.blocks[b].insns)

    @cached_property
    def opaque(self) -> bool:
        """Whether the loop leads to a jump whose targets are not known."""
        unknown = self.cfg.unresolved
        return bool(unknown) and bool(self.cfg.reach([self.loop.header]) & unknown)

    @cached_property
    def exits(self) -> set[int]:
        """Blocks outside that the loop leads to, other than aborts."""
        return {
            s
            for b in self.loop.body
            for s in self.cfg.blocks[b].successors
            if s not in self.loop.body and s in self.cfg.returning
        }

    # --- the point ------------------------------------------------------------------------
    def points(self) -> Iterator[tuple[int, Block]]:
        """(address, block) of what is passed once an operator before the wait, the best first."""
        chain = [self.cfg.blocks[b] for b in self._after_all() if self._once(self.cfg.blocks[b])]
        found = [(insn, block) for block in chain[::-1] for insn in self._before_wait(block)]
        machine = self.decoder.image.machine
        cheap = [bool(emulated_as(insn.raw, machine, self.kernel)) for insn, _b in found]
        for wanted in (True, False):
            for (insn, block), emulated in zip(found, cheap, strict=True):
                if emulated is wanted and not refused(insn.raw, machine):
                    yield insn.address, block

    def _after_all(self) -> list[int]:
        """Blocks on every path from each computing call to the next round, in their order."""
        body, header = self.loop.body, self.loop.header
        above = postdominators(self.cfg, body, [header, *self.exits])
        common: list[int] | None = None
        for block in self.computing:
            if block not in above:
                continue  # leads to an abort only
            chain = [block]
            while above[chain[-1]] != -1:
                chain.append(above[chain[-1]])
            shared = set(chain)
            common = chain if common is None else [b for b in common if b in shared]
            if not common:
                break
        return common or []

    def _once(self, block: Block) -> bool:
        """Whether neither the block itself nor computing follows it in the same round."""
        after = self.cfg.reach(block.successors, self.loop.body, cut=[self.loop.header])
        return block.begin not in after and not after & self.computing

    def _before_wait(self, block: Block) -> list[Insn]:
        """Instructions of a block after its computing and before its first wait, the last first."""
        line = list(block.insns)
        begin = max((i + 1 for i, insn in enumerate(line) if self.computes(block, insn)), default=0)
        waits = [i for i, insn in enumerate(line) if i >= begin and _waits(self.decoder, insn)]
        if waits:
            return line[begin : waits[0] + 1][::-1]
        after = self.cfg.reach(block.successors, self.loop.body, cut=[self.loop.header])
        if any(_waits(self.decoder, insn) for b in after for insn in self.cfg.blocks[b].insns):
            return line[begin:][::-1]
        return []  # work and wait could not be told apart

    @cached_property
    def enclosed(self) -> bool:
        """Whether the function repeats the loop, as a worker thread does."""
        body = self.loop.body
        return any(body < other.body for other in self.cfg.loops)

    # --- around the loop ------------------------------------------------------------------
    def _repeats(self, begin: int) -> bool:
        """Whether a block outside is passed more often than the loop is entered."""
        return any(
            begin in other.body and self.loop.header not in other.body for other in self.cfg.loops
        )

    @cached_property
    def before(self) -> int | None:
        """The block outside that always comes before the loop, once each time."""
        at = self.loop.header
        while at in self.loop.body or self._repeats(at):
            if at == self.cfg.entry:
                return None
            at = self.cfg.dominators[at]
        again = self.cfg.reach(self.cfg.blocks[at].successors, cut=self.loop.body)
        return None if at in again and not self._tests_count(at) else at

    def _tests_count(self, begin: int) -> bool:
        """Whether a block reads n_nodes: it may pass over the loop, but only for an empty graph."""
        return any(mentions(insn, self.n_nodes) for insn in self.cfg.blocks[begin].insns)

    @cached_property
    def gate(self) -> int | None:
        """The block before the loop that is passed for an empty graph too."""
        if self.before is None or self._tests_count(self.before):
            return self.before
        above = self.cfg.dominators[self.before]
        return above if self._tests_count(above) and not self._repeats(above) else self.before

    @cached_property
    def enter(self) -> int | None:
        """An instruction that a thread passes once before the loop."""
        if self.before is None:
            return None
        line = self.cfg.blocks[self.before].insns
        return self._cheapest(line[::-1])

    @cached_property
    def leave(self) -> int | None:
        """An instruction that a thread passes once after the loop, whichever way it left it."""
        if self.gate is None or not self.exits:
            return None
        above = postdominators(self.cfg, self.cfg.reach(self.exits))
        common: list[int] | None = None
        for target in self.exits:
            chain = [target]
            while chain[-1] in above and above[chain[-1]] not in (-1, chain[-1]):
                chain.append(above[chain[-1]])
            common = chain if common is None else [b for b in common if b in chain]
        for b in common or ():
            alone = not any(b in other.body for other in self.cfg.loops)
            if b not in self.loop.body and (
                alone or (self.cfg.dominates(self.gate, b) and not self._repeats(b))
            ):
                return self._cheapest(self.cfg.blocks[b].insns)
        return None

    def _cheapest(self, line: Sequence[Insn]) -> int | None:
        machine = self.decoder.image.machine
        possible = [insn for insn in line if not refused(insn.raw, machine)]
        for insn in possible:
            if emulated_as(insn.raw, machine, self.kernel):
                return insn.address
            if insn.flow:
                break
        return possible[0].address if possible else None


def _prove(
    decoder: Decoder, view: _LoopView, block: Block, point: int, n_nodes: int, nodes: int
) -> tuple[Location, int, Location] | None:
    """(where the index lies, index - ended node, where the graph lies) at a point; or None."""
    state = State(decoder.image.machine)
    given: list[Compare] = []
    for insn in block.insns:
        if insn.address == point:
            break
        if insn.flow == "call":
            state.call()
        else:
            step(state, insn)
        if state.compare is not None and state.compare.insn is insn:
            given.append(state.compare)
    there = state.fork()

    def enough(now: State, loads: Sequence[Load], compares: Sequence[Compare]) -> bool:
        return next_node(now, loads[-1:], [*given, *compares], n_nodes, nodes) is not None

    def through(insn: Insn) -> bool:
        return insn.target is None or _name(decoder, insn) in WAITS | _IDLE

    proven: dict[tuple[Location, int], Location | None] = {}
    for path in paths(decoder, point, state, enough=enough, through=through, within=view.code):
        found = next_node(path.state, path.loads, [*given, *path.compares], n_nodes, nodes)
        if found is None:
            continue
        following, cgraph = found
        index = _place(there, following, constant=False)
        if index is None:
            return None
        graph = _place(there, cgraph, constant=True)
        key = (index[0], 1 - following.const + index[1])
        if graph is not None and not graph[1]:
            proven[key] = graph[0]
        else:
            proven.setdefault(key, None)
    if len(proven) != 1:
        return None
    (place, bias), graph_place = next(iter(proven.items()))
    return (place, bias, graph_place) if graph_place is not None else None


def _place(there: State, value: Value, *, constant: bool) -> tuple[Location, int] | None:
    """Where the terms of a value lie in a state, and the constant that is found with them.

    ``constant``: the loop does not change the value, so memory read later holds it already.
    """
    bare = Value(0, value.terms)
    atom = value.atom
    if atom is None:
        return None
    for name in _REGISTERS:
        held = there.register(name)
        if Value(0, held.terms) == bare:
            return Location(name), held.const
    for address, held in there.memory.items():
        if Value(0, held.terms) == bare and address.atom is not None:
            stack = address.atom[1] if address.atom[0] == "reg" else None
            if stack in _STACKS and there.register(str(stack)) == Value.of(("reg", stack)):
                return Location(str(stack), (address.const,)), held.const
    if len(atom) == 4:  # memory as it is after a call
        if not constant:
            return None
        atom = atom[:3]
    place = location(Value.of(atom))
    if place is None or there.register(place.register) != Value.of(("reg", place.register)):
        return None
    return place, 0


_REGISTERS = (
    *("rbx", "rbp", "r12", "r13", "r14", "r15"),
    *("rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11"),
)
