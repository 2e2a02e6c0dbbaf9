"""Layer 2: where one operator of the graph loop ends, found in the machine code.

The loop that every thread of a graph runs is, in the engine's source,

    for (node_n = 0; node_n < cgraph->n_nodes && ...; node_n++) {
        node = cgraph->nodes[node_n];
        ... compute ...
        if (node_n + 1 < cgraph->n_nodes) ggml_barrier(tp);      // older: always
    }
    ggml_barrier(tp);                                            // newer only

A `call ggml_barrier` is the loop's own if a path from it, free of other calls, compares
something with ``cgraph->n_nodes`` and loads ``cgraph->nodes[next]`` with the same ``next``
and the same ``cgraph``. Then ``next`` is the ended node's index + 1 by the loop's meaning,
and the place that held it at the call (register or stack slot, plus a constant) gives the
index to a probe: a proof for this build, not a match of known bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from profinfer.elf.calls import calls_to
from profinfer.elf.disasm import Decoder, Imm, Insn, Mem, Reg
from profinfer.elf.flow import Load, Path, paths
from profinfer.elf.semantics import STACK, step
from profinfer.elf.symbols import ElfImage, Function
from profinfer.elf.values import Compare, State, Value, sign

BARRIER = "ggml_barrier"
LOOP_FUNCTIONS = (
    "ggml_graph_compute_thread",
    "ggml_graph_compute_secondary_thread",
    "ggml_graph_compute",
)


@dataclass(frozen=True)
class Location:
    """Where a value lies when a probe fires: a register, then pointers to follow.

    ``Location("r12", ())`` is the register itself; ``Location("rsp", (8,))`` is the memory
    at rsp + 8; each further number is added to the value read so far and read from again.
    """

    register: str
    offsets: tuple[int, ...] = ()

    def __str__(self) -> str:
        text = self.register
        for offset in self.offsets:
            text = f"[{text}{offset:+#x}]" if offset else f"[{text}]"
        return text


@dataclass(frozen=True)
class LoopSite:
    """The loop's own barrier call in one function.

    Attributes:
        function: the function (or clone) that holds the loop.
        entry: its entry address.
        end: address of the `call ggml_barrier` that ends an operator.
        index: the loop index at that call; index == node + bias.
        cgraph: the graph pointer at that call.
        leaves: addresses of the barrier call after the loop; compilers make copies of it.
        barrier_always: the loop calls the barrier after the last node too.
        proof: what was seen, for people.
        enter: address of the instruction before the loop that a thread passes once a graph; None:
            the function's entry.
    """

    function: Function
    entry: int
    end: int
    index: Location
    bias: int
    cgraph: Location
    leaves: tuple[int, ...]
    barrier_always: bool
    proof: str
    enter: int | None = None


def loop_functions(image: ElfImage) -> list[Function]:
    """Functions that may hold the graph loop, the likeliest first."""
    found: dict[int, Function] = {}
    for name in LOOP_FUNCTIONS:
        for f in image.clones(name):
            found.setdefault(f.address, f)
    return list(found.values())


def functions_by_calls(decoder: Decoder, callee: str, least: int = 2) -> list[Function]:
    """Functions without a name that call ``callee`` at least ``least`` times.

    Their bounds come from unwind data, their names are made of the address.
    """
    image = decoder.image
    counts: Counter[tuple[int, int]] = Counter()
    for address in calls_to(image, callee):
        bounds = image.bounds(address)
        if bounds:
            counts[bounds] += 1
    return [
        Function(f"sub_{begin:x}", begin, end - begin)
        for (begin, end), n in sorted(counts.items())
        if n >= least and image.function_at(begin) is None
    ]


def find_loop_sites(
    decoder: Decoder, function: Function, *, n_nodes: int, nodes: int
) -> list[LoopSite]:
    """The loop's own barrier calls in a function, proven; empty if there is none.

    Args:
        decoder: of the function's image.
        function: where to look.
        n_nodes: offset of ``ggml_cgraph::n_nodes`` in bytes.
        nodes: offset of ``ggml_cgraph::nodes`` in bytes.
    """
    bounds = decoder.image.bounds(function.address)
    if bounds is None:
        return []
    found = []
    for address in calls_to(decoder.image, BARRIER, *bounds):
        call = decoder.at(address)
        if call is not None and call.flow == "call":
            site = _prove(decoder, function, call, n_nodes, nodes)
            if site is not None:
                found.append(site)
    return found


_TESTS = ("test", "and", "bt", "tst", "ands")


def tests_flag(decoder: Decoder, function: Function, offset: int, bit: int) -> bool:
    """Whether a function tests a bit of a field at an offset, as the loop does with flags."""
    bounds = decoder.image.bounds(function.address)
    if bounds is None or not bit:
        return False
    held: set[str] = set()  # registers that hold the field
    for insn in decoder.straight(*bounds):
        fields = [op for op in insn.operands if isinstance(op, Mem) and op.disp == offset]
        masks = [op for op in insn.operands if isinstance(op, Imm) and op.value & 0xFF == bit]
        named = {op.name for op in insn.operands if isinstance(op, Reg)}
        if insn.mnemonic in ("tbz", "tbnz"):  # arm64: by the number of the bit
            number = insn.operands[1]
            if isinstance(number, Imm) and 1 << number.value == bit and named & held:
                return True
        if insn.mnemonic in _TESTS and masks and (fields or named & held):
            return True
        if insn.mnemonic in ("mov", "movzx", "ldr", "ldrb", "ldrh") and fields:
            held |= insn.writes
        else:
            held -= insn.writes
    return False


def _calls_barrier(decoder: Decoder, insn: Insn) -> bool:
    name = decoder.call_name(insn)
    return name is not None and name.split(".", 1)[0] == BARRIER


def _prove(
    decoder: Decoder, function: Function, call: Insn, n_nodes: int, nodes: int
) -> LoopSite | None:
    state = _after_call(decoder, function, call)

    def enough(now: State, loads: Sequence[Load], compares: Sequence[Compare]) -> bool:
        return next_node(now, loads[-1:], compares, n_nodes, nodes) is not None

    followed = list(paths(decoder, call.end, state, enough=enough))
    proven = {
        found
        for p in followed
        if (found := next_node(p.state, p.loads, p.compares, n_nodes, nodes)) is not None
    }
    if len(proven) != 1:
        return None  # no proof, or two that contradict each other
    following, cgraph_value = next(iter(proven))
    index = location(Value(0, following.terms))
    cgraph = location(cgraph_value)
    if index is None or cgraph is None:
        return None
    leaves = _leaves(decoder, call, followed, cgraph_value, n_nodes, nodes)
    guarded = _passes_over(decoder, function, call, n_nodes)
    # The last node may have a barrier call of its own to go to, beside the one of the loop's end.
    leaves |= {end for at in guarded if (end := _straight_to_barrier(decoder, at)) is not None}
    leaves -= {call.address}
    if guarded and not leaves:
        return None  # the last node's end would not be seen
    return LoopSite(
        function=function,
        entry=function.address,
        end=call.address,
        index=index,
        bias=1 - following.const,
        cgraph=cgraph,
        leaves=tuple(sorted(leaves)),
        barrier_always=not guarded,
        proof=(
            f"after the call the next node is {_sum(index, following.const)}, compared with "
            f"n_nodes and loaded from nodes of {cgraph}"
        ),
    )


def _after_call(decoder: Decoder, function: Function, call: Insn) -> State:
    """The state after a call, with what the code before it copied known as copies.

    Looks at the straight line that must have been run to reach the call: after a copy
    ``rbx = rbp`` either register may be used as the loop's index from there on.
    """
    line = _line_before(decoder, function, call)
    before = State(decoder.image.machine)
    for insn in line:
        step(before, insn, decoder.image)
    after = State(decoder.image.machine)
    pointer = STACK[decoder.image.machine]
    if before.register(pointer) == Value.of(("reg", pointer)):
        kept: dict[Value, Value] = {}  # what a place held before, without its constant -> place
        for name in _CALLEE_SAVED[decoder.image.machine]:
            value = before.register(name)
            bare = Value(0, value.terms)
            if bare in kept and value.terms:
                after.registers[name] = kept[bare].plus(Value(value.const))
            else:
                kept[bare] = Value.of(("reg", name)).plus(Value(-value.const))
        for address, value in before.memory.items():
            bare = Value(0, value.terms)
            if address.atom in _FRAME and bare in kept and value.terms:
                after.memory[address] = kept[bare].plus(Value(value.const))
    after.call()
    return after


def _line_before(decoder: Decoder, function: Function, call: Insn) -> list[Insn]:
    """The instructions before a call that nothing jumps between."""
    bounds = decoder.image.bounds(function.address)
    assert bounds is not None
    line: list[Insn] = []
    targets: set[int] = set()
    for insn in decoder.straight(*bounds):
        if insn.flow in ("jmp", "jcc") and insn.target is not None:
            targets.add(insn.target)
        if insn.address < call.address:
            line = [] if insn.flow else [*line, insn]
    while line and any(insn.address in targets for insn in line[1:]):
        line = line[1:]
    return [] if call.address in targets else line


_FRAME = {("reg", name) for name in ("rsp", "rbp", "sp", "x29")}
_CALLEE_SAVED = {
    "x86_64": ("rbx", "rbp", "r12", "r13", "r14", "r15"),
    "aarch64": tuple(f"x{n}" for n in range(19, 30)),
}


def next_node(
    now: State, loads: Sequence[Load], compares: Sequence[Compare], n_nodes: int, nodes: int
) -> tuple[Value, Value] | None:
    """(index of the next node, cgraph) if the next node is loaded after the loop test."""
    tests: dict[tuple[Value, Value], None] = {}
    for c in compares:
        for count, other in ((c.left, c.right), (c.right, c.left)):
            cgraph = _field_owner(count, n_nodes)
            if cgraph is None or other.atom is None:
                continue
            if sign(now, other.plus(count, -1)) == {-1}:  # the path has next < n_nodes
                tests.setdefault((other, cgraph))
    for _insn, address, size in loads:
        if size != 8:
            continue
        for following, cgraph in tests:
            if _is_element(address, following, cgraph, nodes):
                return following, cgraph
    return None


def _field_owner(value: Value, offset: int) -> Value | None:
    """The pointer X if the value is exactly ``*(X + offset)``."""
    address = value.load()
    return address.plus(Value(-offset)) if address is not None else None


def _is_element(address: Value, index: Value, cgraph: Value, nodes: int) -> bool:
    """Whether ``address`` is ``cgraph->nodes + 8 * index``."""
    rest = address.plus(index, -8)
    owner = _field_owner(rest, nodes)
    return owner is not None and _plain(owner) == _plain(cgraph)


def _reads_nodes(address: Value, cgraph: Value, nodes: int) -> bool:
    """Whether ``address`` is an element of ``cgraph->nodes``, whichever."""
    return any(
        (owner := _field_owner(Value.of(atom), nodes)) is not None
        and _plain(owner) == _plain(cgraph)
        for atom, _factor in address.terms
    )


def _plain(value: Value) -> str:
    return repr(value)


def _leaves(
    decoder: Decoder,
    call: Insn,
    followed: list[Path],
    cgraph: Value,
    n_nodes: int,
    nodes: int,
) -> set[int]:
    """The barrier calls that the loop's exits run into."""
    return {
        path.end.address
        for path in followed
        if path.end is not None
        and path.end.address != call.address
        and path.end.flow in ("call", "jmp")  # the last call of a function may be a jump
        and _calls_barrier(decoder, path.end)
        and not any(_reads_nodes(address, cgraph, nodes) for _insn, address, _size in path.loads)
        and any(
            _field_owner(v, n_nodes) == cgraph for c in path.compares for v in (c.left, c.right)
        )
    }


def _passes_over(decoder: Decoder, function: Function, call: Insn, n_nodes: int) -> list[int]:
    """Where it goes on if a comparison with a field at ``n_nodes`` passes over the loop's barrier.

    Looks at every conditional jump of the function with such a comparison before it, one of
    whose sides runs straight into the call; the others are returned. None: it is always called.
    """
    found = []
    bounds = decoder.image.bounds(function.address)
    assert bounds is not None
    window: list[Insn] = []
    for insn in decoder.straight(*bounds):
        if insn.flow == "jcc" and insn.target is not None:
            sides = (insn.target, insn.end)
            into = [_runs_into(decoder, side, call.address) for side in sides]
            if any(mentions(w, n_nodes) for w in window[-4:]) and any(into):
                found.append(sides[into.index(True) - 1])
        if insn.flow:
            window.clear()
        else:
            window.append(insn)
    return found


def _straight_to_barrier(decoder: Decoder, at: int, limit: int = 24) -> int | None:
    """The barrier call that is reached from an address whatever happens, or None."""
    for _ in range(limit):
        insn = decoder.at(at)
        if insn is None:
            return None
        if insn.flow in ("call", "jmp") and _calls_barrier(decoder, insn):
            return insn.address
        if insn.flow and not (insn.flow == "jmp" and insn.target is not None):
            return None
        at = insn.end if insn.flow != "jmp" or insn.target is None else insn.target
    return None


def mentions(insn: Insn, offset: int) -> bool:
    """Whether an instruction accesses a field at an offset of some object."""
    return any(
        getattr(op, "disp", None) == offset and getattr(op, "base", None) not in (None, "rsp", "sp")
        for op in insn.operands
    )


def _runs_into(decoder: Decoder, at: int, goal: int, limit: int = 12) -> bool:
    for _ in range(limit):
        if at == goal:
            return True
        insn = decoder.at(at)
        if insn is None or insn.flow in ("ret", "jcc", "call", "trap"):
            return False
        if insn.flow == "jmp":
            if insn.target is None:
                return False
            at = insn.target
        else:
            at = insn.end
    return False


def _sum(place: Location, constant: int) -> str:
    return f"{place} {constant:+d}" if constant else str(place)


def location(value: Value) -> Location | None:
    """Where a value can be read when the probe fires.

    None if it is no plain chain of registers and memory.
    """
    atom = value.atom
    if atom is None or value.const:
        return None
    if atom[0] == "reg":
        return Location(str(atom[1]))
    if atom[0] != "mem" or not isinstance(atom[1], Value):
        return None
    inner = atom[1]
    base = location(Value(0, inner.terms))
    return Location(base.register, (*base.offsets, inner.const)) if base else None
