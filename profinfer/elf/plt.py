"""Layer 1: which outside function a PLT stub calls.

Owns the decoding of .plt, .plt.sec and .plt.got. Must not import capstone: the stubs are
fixed byte patterns of the linker, and a library has thousands of them.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from profinfer.elf.symbols import ElfImage, Section

_SECTIONS = (".plt", ".plt.sec", ".plt.got")


def read_stubs(image: ElfImage) -> dict[int, str]:
    """Address of each stub -> symbol name. Also maps stubs of static IFUNCs to nothing."""
    decode = _x86_64 if image.machine == "x86_64" else _aarch64
    found: dict[int, str] = {}
    for name in _SECTIONS:
        section = image.section(name)
        if section and section.has_bytes:
            found.update(decode(image, section))
    return found


def _x86_64(image: ElfImage, section: Section) -> dict[int, str]:
    """Stubs hold ``[bnd] jmp *slot(%rip)`` = ``[f2] ff 25 disp32``, after an optional endbr64.

    The linker aligns stubs to 16 bytes (8 in a .plt.got without IBT), and the first stub
    of .plt (lazy binding) jumps through GOT[2], which no relocation names.
    """
    raw = image.table(section.name)
    step = section.entry_size or 16
    found: dict[int, str] = {}
    at = raw.find(b"\xff\x25")
    while at >= 0:
        if at + 6 <= len(raw):
            slot = section.address + at + 6 + struct.unpack_from("<i", raw, at + 2)[0]
            name = image.slots.get(slot)
            if name:
                found[section.address + at - at % step] = name
        at = raw.find(b"\xff\x25", at + 2)
    return found


def _aarch64(image: ElfImage, section: Section) -> dict[int, str]:
    """Stubs are ``adrp x16, page; ldr x17, [x16, #lo]; add x16, x16, #lo; br x17``.

    A ``bti c`` comes before where branch protection is on.
    """
    raw = image.table(section.name)
    words = [w for (w,) in struct.iter_unpack("<I", raw[: len(raw) - len(raw) % 4])]
    found: dict[int, str] = {}
    for i in range(len(words) - 1):
        adrp, ldr = words[i], words[i + 1]
        if adrp & 0x9F00001F != 0x90000010 or ldr & 0xFFC003FF != 0xF9400211:
            continue
        pages = (adrp >> 29 & 3) | (adrp >> 5 & 0x7FFFF) << 2
        pages -= (pages & 1 << 20) << 1
        pc = section.address + 4 * i
        slot = (pc & ~0xFFF) + (pages << 12) + ((ldr >> 10 & 0xFFF) << 3)
        name = image.slots.get(slot)
        if name:
            begin = pc - 4 if i and words[i - 1] == 0xD503245F else pc
            found[begin] = name
    return found
