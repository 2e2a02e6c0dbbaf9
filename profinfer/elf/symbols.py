"""Layer 1: one ELF file: its functions, addresses, bytes and relocated pointers.

Owns the reading of symbol tables, PLT stubs, unwind tables and relocations. Everything is
read on first use, straight from a mapping of the file, because a library with all of an
engine in it is 100 MB large. Must not import capstone (``disasm`` does) nor a higher layer.
"""

from __future__ import annotations

import bisect
import mmap
import os
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile

from profinfer.elf import debugfile, frames, plt
from profinfer.errors import TargetError

MACHINES = {"EM_X86_64": "x86_64", "EM_AARCH64": "aarch64"}

# Suffixes that compilers put on clones of one function: .isra.0, .part.3, .constprop.1,
# ._omp_fn.0, .lto_priv.0, .llvm.123. A ".cold" part is no entry of the function.
_CLONE = re.compile(r"^(?P<base>[^.@]+)(?P<suffix>(\.[A-Za-z_][\w]*(\.\d+)*|\.\d+)*)$")

_STT_OBJECT, _STT_FUNC, _STT_GNU_IFUNC = 1, 2, 10
_SYM = struct.Struct("<IBBHQQ")
_RELA = struct.Struct("<QQq")

# (symbolic, relative) relocation numbers per machine, from the psABI documents.
_RELOC_SYMBOLIC = {"x86_64": {1, 6, 7}, "aarch64": {257, 1025, 1026}}
_RELOC_RELATIVE = {"x86_64": {8}, "aarch64": {1027}}


@dataclass(frozen=True, slots=True)
class Function:
    """A function of an image; ``size`` 0 when the table does not tell."""

    name: str
    address: int
    size: int
    exported: bool = False

    @property
    def base(self) -> str:
        """The name without the compiler's clone suffixes."""
        return self.name.split(".", 1)[0]


@dataclass(frozen=True, slots=True)
class Section:
    """A section: name, virtual address (0: not loaded), file offset, size in bytes."""

    name: str
    address: int
    offset: int
    size: int
    entry_size: int
    executable: bool
    has_bytes: bool


@dataclass(frozen=True, slots=True)
class Segment:
    """A PT_LOAD segment."""

    address: int
    offset: int
    file_size: int
    memory_size: int
    executable: bool


class ElfImage:
    """An ELF executable or shared library of a supported machine.

    Attributes:
        path: the file, symbolic links resolved.
        machine: ``x86_64`` or ``aarch64``.
        kind: ``executable`` (fixed address), ``pie`` or ``shared``.
        soname: DT_SONAME, or the file's name.
        build_id: hex digits, or None.
        needed: DT_NEEDED names in order.
        runpath, rpath: library search folders as written, ``$ORIGIN`` unexpanded.

    Raises:
        TargetError: not readable, not an ELF file, 32-bit, or of another machine.
    """

    def __init__(self, path: str | Path) -> None:
        # Below /proc/PID/root a path leads into another mount namespace only as it stands.
        below_proc = str(path).startswith("/proc/")
        self.path = Path(path) if below_proc else Path(os.path.realpath(path))
        self._data = _open(self.path, str(path))
        try:
            self._elf = ELFFile(self._data)
            self._check()
            self._read_headers()
        except (ELFError, struct.error, ValueError, UnicodeDecodeError, KeyError) as error:
            raise TargetError(f"{path}: damaged ELF file ({error})") from error

    def _check(self) -> None:
        if self._elf.elfclass != 64:
            raise TargetError(
                f"{self.path}: a 32-bit program", "profinfer records 64-bit programs only"
            )
        machine = self._elf["e_machine"]
        if machine not in MACHINES or not self._elf.little_endian:
            raise TargetError(
                f"{self.path}: built for {str(machine).removeprefix('EM_')}",
                "profinfer knows x86-64 and 64-bit little-endian ARM",
            )
        if self._elf["e_type"] not in ("ET_EXEC", "ET_DYN"):
            raise TargetError(f"{self.path}: not a program or shared library, but an object file")
        self.machine: str = MACHINES[machine]

    def _read_headers(self) -> None:
        self.sections: tuple[Section, ...] = tuple(
            Section(
                name=s.name,
                address=s["sh_addr"],
                offset=s["sh_offset"],
                size=s["sh_size"],
                entry_size=s["sh_entsize"],
                executable=bool(s["sh_flags"] & 4),
                has_bytes=s["sh_type"] != "SHT_NOBITS",
            )
            for s in self._elf.iter_sections()
        )
        self.segments: tuple[Segment, ...] = tuple(
            Segment(
                s["p_vaddr"], s["p_offset"], s["p_filesz"], s["p_memsz"], bool(s["p_flags"] & 1)
            )
            for s in self._elf.iter_segments("PT_LOAD")
        )
        self.needed: tuple[str, ...] = ()
        self.runpath = self.rpath = ""
        self.soname = self.path.name
        dynamic = next(
            (s for s in self._elf.iter_sections() if isinstance(s, DynamicSection)), None
        )
        interpreted = any(s["p_type"] == "PT_INTERP" for s in self._elf.iter_segments())
        pie = interpreted
        if dynamic is not None:
            tags = list(dynamic.iter_tags())
            self.needed = tuple(t.needed for t in tags if t.entry.d_tag == "DT_NEEDED")
            for tag in tags:
                match tag.entry.d_tag:
                    case "DT_RUNPATH":
                        self.runpath = tag.runpath
                    case "DT_RPATH":
                        self.rpath = tag.rpath
                    case "DT_SONAME":
                        self.soname = tag.soname
                    case "DT_FLAGS_1":
                        pie = pie or bool(tag.entry.d_val & 0x08000000)  # DF_1_PIE
        self.kind = "executable" if self._elf["e_type"] == "ET_EXEC" else "shared"
        if self.kind == "shared" and pie:
            self.kind = "pie"

    @cached_property
    def build_id(self) -> str | None:
        """The linker's id of this very build, hex, or None."""
        for segment in self._elf.iter_segments("PT_NOTE"):
            for note in segment.iter_notes():
                if note["n_type"] == "NT_GNU_BUILD_ID":
                    return str(note["n_desc"])
        return None

    # --- what was stripped away -----------------------------------------------------------
    @cached_property
    def debug(self) -> ElfImage | None:
        """The separate file with this image's symbols and debug information, if there is one."""
        if self.section(".symtab") and self.section(".debug_info"):
            return None
        path = debugfile.find_debug_file(self)
        return ElfImage(path) if path else None

    @property
    def dwarf(self) -> Any:
        """The debug information as pyelftools sees it."""
        return self._elf.get_dwarf_info(relocate_dwarf_sections=False)

    @property
    def names_from(self) -> str:
        """Which table function names come from, for people."""
        if self.section(".symtab"):
            return ".symtab"
        if self.debug is not None and self.debug.section(".symtab"):
            return f".symtab of {self.debug.path.name}"
        return ".dynsym (stripped)" if self.section(".dynsym") else "nothing (stripped)"

    # --- addresses and bytes ------------------------------------------------------------
    def file_offset(self, address: int) -> int:
        """File offset of a loaded virtual address; raises ValueError outside the file."""
        for seg in self.segments:
            if seg.address <= address < seg.address + seg.file_size:
                return address - seg.address + seg.offset
        raise ValueError(f"address {address:#x} is not in the file")

    def address_of(self, offset: int) -> int:
        """Virtual address of a file offset; raises ValueError if it is not loaded."""
        for seg in self.segments:
            if seg.offset <= offset < seg.offset + seg.file_size:
                return offset - seg.offset + seg.address
        raise ValueError(f"file offset {offset:#x} is not loaded")

    def read(self, address: int, size: int) -> bytes:
        """Up to ``size`` bytes at a virtual address, as they are in the file."""
        offset = self.file_offset(address)
        return self._data[offset : offset + size]

    def holds(self, text: bytes) -> bool:
        """Whether the read-only data has some text."""
        return text in self.table(".rodata")

    def section(self, name: str) -> Section | None:
        """A section by name."""
        return next((s for s in self.sections if s.name == name), None)

    def section_at(self, address: int) -> Section | None:
        """The loaded section that holds an address."""
        for s in self.sections:
            if s.address and s.address <= address < s.address + s.size:
                return s
        return None

    def pointer(self, address: int) -> int | str | None:
        """The pointer stored at an address after relocation.

        Returns the address it points to, the name of an outside symbol, or None when the
        bytes are not in the file.
        """
        target = self._relocations.get(address)
        if target is not None:
            return target
        try:
            raw = self.read(address, 8)
        except ValueError:
            return None
        return int(struct.unpack("<Q", raw)[0]) if len(raw) == 8 else None

    def cstring(self, address: int, limit: int = 256) -> str | None:
        """The printable zero-terminated string at an address, or None."""
        try:
            raw = self.read(address, limit)
        except ValueError:
            return None
        text, zero, _ = raw.partition(b"\0")
        if not zero or not text.isascii():
            return None
        decoded = text.decode("ascii")
        return decoded if decoded.isprintable() else None

    # --- functions ----------------------------------------------------------------------
    @cached_property
    def functions(self) -> dict[str, Function]:
        """Every defined function by name, from .symtab and .dynsym."""
        found: dict[str, Function] = {}
        for table in (".dynsym", ".symtab"):
            for name, info, shndx, value, size in self._symbols(table):
                if shndx and value and info & 15 in (_STT_FUNC, _STT_GNU_IFUNC):
                    plain = name.split("@", 1)[0]
                    if plain not in found:
                        found[plain] = Function(plain, value, size, table == ".dynsym")
        return found

    def function(self, name: str) -> Function | None:
        """The function of exactly this name."""
        return self.functions.get(name)

    @cached_property
    def _clones(self) -> dict[str, list[Function]]:
        by_base: dict[str, list[Function]] = {}
        for f in self.functions.values():
            match = _CLONE.match(f.name)
            if match and match["suffix"] and ".cold" not in match["suffix"]:
                by_base.setdefault(match["base"], []).append(f)
        return by_base

    def clones(self, base: str) -> list[Function]:
        """The function and its compiler-made clones (``base.isra.0``), cold parts left out."""
        exact = self.functions.get(base)
        return ([exact] if exact else []) + self._clones.get(base, [])

    @cached_property
    def objects(self) -> dict[int, int]:
        """Address -> size in bytes of data with a symbol (tables), where a symbol tells."""
        return {
            value: size
            for table in (".dynsym", ".symtab")
            for _name, info, shndx, value, size in self._symbols(table)
            if shndx and size and info & 15 == _STT_OBJECT
        }

    @cached_property
    def _by_address(self) -> tuple[list[int], list[Function]]:
        ordered = sorted(self.functions.values(), key=lambda f: (f.address, f.size, f.exported))
        return [f.address for f in ordered], ordered

    def function_at(self, address: int) -> Function | None:
        """The function that begins at or spans an address."""
        starts, ordered = self._by_address
        i = bisect.bisect_right(starts, address) - 1
        if i < 0:
            return None
        f = ordered[i]
        return f if address == f.address or address < f.address + f.size else None

    @cached_property
    def frames(self) -> list[tuple[int, int]]:
        """(begin, end) of every piece of code with unwind data, sorted.

        They survive stripping, and so bound functions that have lost their names.
        """
        return frames.read_frames(self)

    def bounds(self, address: int) -> tuple[int, int] | None:
        """[begin, end) of the code around an address, by symbol or by unwind data."""
        f = self.function_at(address)
        if f and f.size:
            return f.address, f.address + f.size
        i = bisect.bisect_right(self.frames, (address, 1 << 64)) - 1
        if i >= 0 and self.frames[i][0] <= address < self.frames[i][1]:
            return self.frames[i]
        return None

    @cached_property
    def stubs(self) -> dict[int, str]:
        """PLT stub address -> name of the function it calls."""
        return plt.read_stubs(self)

    def call_name(self, address: int) -> str | None:
        """Name of what a direct call to this address calls."""
        name = self.stubs.get(address)
        if name:
            return name
        f = self.function_at(address)
        return f.name if f and f.address == address else None

    # --- tables -------------------------------------------------------------------------
    def table(self, name: str) -> bytes:
        """Raw bytes of a section, empty if there is none."""
        s = self.section(name)
        return self._data[s.offset : s.offset + s.size] if s and s.has_bytes else b""

    def _symbols(self, table: str) -> Iterator[tuple[str, int, int, int, int]]:
        if table == ".symtab" and not self.section(table) and self.debug is not None:
            yield from self.debug._symbols(table)
            return
        strings = self.table(".dynstr" if table == ".dynsym" else ".strtab")
        raw = self.table(table)
        for name, info, _other, shndx, value, size in _SYM.iter_unpack(
            raw[: len(raw) - len(raw) % _SYM.size]
        ):
            end = strings.find(b"\0", name)
            yield strings[name:end].decode("utf-8", "replace"), info, shndx, value, size

    @cached_property
    def dynamic_symbols(self) -> list[tuple[str, int]]:
        """(name, value) of .dynsym in index order; value 0 for outside symbols."""
        return [
            (name.split("@", 1)[0], value if shndx else 0)
            for name, _info, shndx, value, _size in self._symbols(".dynsym")
        ]

    @cached_property
    def slots(self) -> dict[int, str]:
        """Address of a pointer filled by the loader -> symbol name (GOT entries, tables)."""
        self._relocations  # noqa: B018  fills _slots
        return self._slots

    @cached_property
    def _relocations(self) -> dict[int, int | str]:
        symbolic, relative = _RELOC_SYMBOLIC[self.machine], _RELOC_RELATIVE[self.machine]
        symbols = self.dynamic_symbols
        found: dict[int, int | str] = {}
        self._slots: dict[int, str] = {}
        for table in (".rela.dyn", ".rela.plt"):
            raw = self.table(table)
            for offset, info, addend in _RELA.iter_unpack(raw[: len(raw) - len(raw) % _RELA.size]):
                kind, index = info & 0xFFFFFFFF, info >> 32
                if kind in relative:
                    found[offset] = addend
                elif kind in symbolic and index < len(symbols):
                    name, value = symbols[index]
                    self._slots[offset] = name
                    found[offset] = value + addend if value else name
        return found


def _open(path: Path, shown: str) -> mmap.mmap:
    """Map a file after the checks whose failures a user can act on."""
    if not path.exists():
        raise TargetError(f"{shown}: no such file")
    if path.is_dir():
        raise TargetError(f"{shown}: a folder, not a program")
    if not path.is_file():
        raise TargetError(f"{shown}: not a regular file")
    try:
        with path.open("rb") as file:
            head = file.read(4)
            if not head:
                raise TargetError(f"{shown}: the file is empty")
            if head[:2] == b"#!":
                raise TargetError(f"{shown}: a script, not an ELF program")
            if head != b"\x7fELF":
                raise TargetError(f"{shown}: not an ELF program")
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except PermissionError as error:
        raise TargetError(f"{shown}: permission denied", "run as a user who may read it") from error
    except OSError as error:
        raise TargetError(f"{shown}: {error.strerror or error}") from error
