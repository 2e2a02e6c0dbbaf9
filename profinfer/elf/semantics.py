"""Layer 1: executes one instruction of either machine on a symbolic state."""

from __future__ import annotations

from collections.abc import Iterator

from profinfer.elf import arm64, x86
from profinfer.elf.disasm import Decoder, Insn, Mem
from profinfer.elf.symbols import ElfImage
from profinfer.elf.values import State, Value, assume

STACK = {"x86_64": "rsp", "aarch64": "sp"}


def step(state: State, insn: Insn, image: ElfImage | None = None) -> None:
    """Execute one straight-line instruction.

    Args:
        state: changed in place.
        insn: no branch.
        image: where the instruction is, so that addresses in its GOT are known.
    """
    if state.machine == "x86_64":
        x86.step(state, insn)
    else:
        arm64.step(state, insn, None if image is None else lambda at: _slot(image, at))


def _slot(image: ElfImage, address: int) -> int | None:
    """What a slot of the global offset table points to, if that is in the image."""
    section = image.section_at(address)
    if section is None or not section.name.startswith(".got"):
        return None
    target = image.pointer(address)
    return target if isinstance(target, int) and target else None


def reads(state: State, insn: Insn) -> Iterator[tuple[Value, int]]:
    """(address, bytes) of what an instruction reads from memory."""
    if state.machine != "x86_64":
        yield from arm64.reads(state, insn)
        return
    for position, op in enumerate(insn.operands):
        written_only = position == 0 and insn.mnemonic.startswith("mov")
        if isinstance(op, Mem) and insn.mnemonic != "lea" and not written_only:
            yield state.address(op), op.size


def outcome(state: State, insn: Insn, *, taken: bool) -> bool:
    """Note what a conditional jump's outcome says. Returns False if it cannot be."""
    if state.machine == "x86_64":
        return assume(state, insn.mnemonic, taken)
    return arm64.outcome(state, insn, taken)


def addresses_taken(decoder: Decoder, begin: int, end: int) -> Iterator[int]:
    """Addresses in the image that code computes: ``lea``, or ``adrp`` and what adds to it."""
    if decoder.image.machine == "x86_64":
        for insn in decoder.straight(begin, end):
            place = insn.operands[-1] if insn.mnemonic == "lea" else None
            if isinstance(place, Mem) and place.base is None and place.index is None:
                yield place.disp
        return
    state = State(decoder.image.machine)
    for insn in decoder.straight(begin, end):
        if insn.flow == "call":
            state.call()
        if insn.flow:
            continue
        arm64.step(state, insn, lambda at: _slot(decoder.image, at))
        if insn.mnemonic in ("add", "adr", "ldr"):
            for name in insn.writes:
                value = state.register(name)
                if name[0] == "x" and not value.terms:
                    yield value.const
