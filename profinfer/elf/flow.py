"""Layer 1: the paths that machine code can take, and what is known along them.

Owns a small symbolic execution: branches fork it, contradictory ones are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass

from profinfer.elf.disasm import Decoder, Insn
from profinfer.elf.semantics import outcome, reads, step
from profinfer.elf.values import Compare, State, Value

# (instruction, address read, bytes read)
Load = tuple[Insn, Value, int]


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
    enough: Callable[[State, Sequence[Load], Sequence[Compare]], bool] | None = None,
    through: Callable[[Insn], bool] | None = None,
    within: Container[int] | None = None,
) -> Iterator[Path]:
    """Every path from ``begin`` to the next call, return or indirect jump.

    Both sides of a branch are followed; an address is visited once a path; at most
    ``limit`` instructions a path and ``width`` paths. ``enough`` is asked after every read of
    memory whether the path has shown what was looked for; ``through`` of every call whether the
    path goes on after it. ``within``: addresses that a path may not leave.
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
            if insn is None or at in visited or (within is not None and at not in within):
                break
            visited.add(at)
            end = insn
            for address, size in reads(now, insn):
                loads.append((insn, address, size))
                if enough is not None and enough(now, loads, compares):
                    found = True
            if found:
                break
            if insn.flow == "call" and through is not None and through(insn):
                now.call()
                at = insn.end
                continue
            if insn.flow in ("ret", "call", "trap") or _leaves(decoder, insn):
                break
            if insn.flow == "jmp":
                at = insn.target if insn.target is not None else insn.end
                continue
            if insn.flow == "jcc" and insn.target is not None:
                other = now.fork()
                if outcome(other, insn, taken=True):
                    todo.append(
                        (insn.target, other, list(loads), list(compares), frozenset(visited))
                    )
                if not outcome(now, insn, taken=False):
                    break
                at = insn.end
                continue
            step(now, insn, decoder.image)
            if now.compare is not None and now.compare.insn is insn:
                compares.append(now.compare)
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
