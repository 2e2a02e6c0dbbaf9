"""Layer 1: the instruction of a function that a probe is best put on.

Owns the walk from a function's entry: as long as every call of the function passes, once,
and the arguments are where the caller put them. Must not know what is probed or why.
"""

from __future__ import annotations

from dataclasses import dataclass

from profinfer.elf.disasm import Decoder, Imm, Insn, Mem, Reg
from profinfer.elf.emulation import emulated_as, refused, running_kernel

ARGUMENTS = {
    "x86_64": ("rdi", "rsi", "rdx", "rcx", "r8", "r9"),
    "aarch64": tuple(f"x{i}" for i in range(8)),
}
_STACK = {"x86_64": "rsp", "aarch64": "sp"}
_LOOK = 24  # instructions looked at: arguments rarely live longer
_SCAN_LIMIT = 1 << 17  # bytes of a function searched for jumps back to its first line


@dataclass(frozen=True)
class Site:
    """A place for a probe.

    Attributes:
        address: virtual address in the image.
        offset: file offset, which the kernel wants.
        insn: the instruction as text.
        raw: its bytes.
        emulated: what the kernel emulates it as, or None if it is stepped.
        stack_delta: bytes the function has put on the stack before this instruction: stack
            arguments are that much further away, and a return probe needs 0. None: not known.
    """

    address: int
    offset: int
    insn: str
    raw: bytes
    emulated: str | None
    stack_delta: int | None


def entry_site(
    decoder: Decoder,
    address: int,
    *,
    arguments: int = 0,
    returns: bool = False,
    stack_arguments: bool = False,
    kernel: tuple[int, int] | None = None,
) -> Site:
    """The best instruction to see a function's call at.

    Args:
        decoder: of the image that holds the function.
        address: the function's entry.
        arguments: how many argument registers must still hold the arguments.
        returns: whether a return probe goes there too (the stack must be untouched).
        stack_arguments: whether arguments are read from the stack (it must be known how far).
        kernel: (major, minor), the running one by default.

    Returns:
        An emulated instruction if there is one that qualifies, else the entry.
    """
    kernel = kernel or running_kernel()
    machine = decoder.image.machine
    needed = set(ARGUMENTS[machine][:arguments])
    if stack_arguments and machine == "aarch64":
        # A struct that large is passed by a pointer to the caller's copy, in the next register.
        needed = set(ARGUMENTS[machine][: arguments + 1])
        stack_arguments = False
    delta: int | None = 0
    at = address
    chosen: Insn | None = None
    for _ in range(_LOOK):
        insn = decoder.at(at)
        if insn is None:
            break
        if emulated_as(insn.raw, machine, kernel):
            chosen = insn
            break
        if insn.flow or needed & insn.writes or (returns and _takes_return(insn)):
            break
        moved = _stack_moved(insn, _STACK[machine])
        if (moved is None and stack_arguments) or (moved != 0 and returns):
            break
        delta = None if moved is None or delta is None else delta + moved
        at = insn.end
    if chosen is None or (chosen.address != address and _reentered(decoder, address, chosen)):
        return at_insn(decoder, address, kernel=kernel)
    return at_insn(decoder, chosen.address, stack_delta=delta, kernel=kernel)


def at_insn(
    decoder: Decoder,
    address: int,
    *,
    stack_delta: int | None = 0,
    kernel: tuple[int, int] | None = None,
) -> Site:
    """The site of a given instruction. Raises ValueError if a probe cannot be put there."""
    insn = decoder.at(address)
    machine = decoder.image.machine
    if insn is None or refused(insn.raw, machine):
        raise ValueError(f"no probe can be put at {address:#x}")
    return Site(
        address=address,
        offset=decoder.image.file_offset(address),
        insn=_shown(decoder, insn),
        raw=insn.raw,
        emulated=emulated_as(insn.raw, machine, kernel or running_kernel()),
        stack_delta=stack_delta,
    )


def _shown(decoder: Decoder, insn: Insn) -> str:
    """The instruction for people: a call by the name of what it calls."""
    name = decoder.call_name(insn) if insn.flow in ("call", "jmp") else None
    return f"{insn.mnemonic} {name}" if name and not name.startswith("_Z") else insn.text


def _stack_moved(insn: Insn, stack: str) -> int | None:
    """Bytes by which an instruction grows the stack; None if that is not a constant."""
    if stack not in insn.writes and not (
        insn.operands and isinstance(insn.operands[0], Reg) and insn.operands[0].name == stack
    ):
        return 0
    if insn.mnemonic == "push":
        return 8
    if insn.mnemonic in ("stp", "str") and insn.text.endswith("]!"):  # arm64, pre-indexed
        place = insn.operands[-1]
        return -place.disp if isinstance(place, Mem) and place.base == stack else None
    if insn.mnemonic in ("cmp", "test"):
        return 0
    if insn.mnemonic == "sub" and isinstance(insn.operands[-1], Imm):
        return insn.operands[-1].value
    return None


def _takes_return(insn: Insn) -> bool:
    """Whether arm64 code saves or signs the return address, after which it cannot be changed."""
    return "x30" in insn.writes or any(
        isinstance(op, Reg) and op.name == "x30" for op in insn.operands
    )


def _reentered(decoder: Decoder, entry: int, chosen: Insn) -> bool:
    """Whether the function jumps back between its entry and the chosen instruction.

    The probe would then fire more than once a call.
    """
    bounds = decoder.image.bounds(entry)
    if bounds is None or bounds[1] - bounds[0] > _SCAN_LIMIT:
        return decoder.at(entry) is None or chosen.address - entry > 4  # endbr64 is no loop head
    return any(
        insn.flow in ("jmp", "jcc")
        and insn.target is not None
        and entry < insn.target <= chosen.address
        for insn in decoder.straight(*bounds)
    )
