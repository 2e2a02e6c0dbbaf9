"""ELF files: what the reader says against what binutils and the compiler say."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from profinfer.elf.calls import calls_to
from profinfer.elf.disasm import Decoder
from profinfer.elf.symbols import ElfImage
from profinfer.errors import TargetError

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")

SOURCE = """
#include <stdio.h>
#include <stdlib.h>
static const char *NAMES[] = {"ALPHA", "BETA", "GAMMA"};
const char *name_of(unsigned i) { return NAMES[i]; }
__attribute__((noinline)) int twice(int x) { return puts("x") + 2 * x; }
static __attribute__((noinline)) int hidden(int x) { return twice(x) + abs(x) + puts("y"); }
int entry(int x) { return hidden(x) + twice(x + 1); }
int (*table[])(int) = {twice, entry};
"""


def tool(*command: str | Path) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def compile_library(folder: Path, *flags: str) -> Path:
    source, out = folder / "lib.c", folder / "libsmall.so.1"
    source.write_text(SOURCE)
    tool("cc", "-O1", "-fPIC", "-shared", "-Wl,-soname,libsmall.so.1", "-Wl,--build-id=0xc0ffee01",
         *flags, "-o", out, source)  # fmt: skip
    return out


@needs_cc
def test_functions_and_identity(tmp_path: Path) -> None:
    path = compile_library(tmp_path)
    image = ElfImage(path)
    assert (image.kind, image.machine) == ("shared", "x86_64")
    assert (image.soname, image.build_id) == ("libsmall.so.1", "c0ffee01")
    assert "libc.so.6" in image.needed
    for line in tool("nm", "-S", "--defined-only", path).splitlines():
        words = line.split()
        if len(words) == 4 and words[2] in "tT":
            f = image.functions[words[3]]
            assert (f.address, f.size) == (int(words[0], 16), int(words[1], 16))
            assert image.function_at(f.address + f.size - 1) == f
    assert image.functions["entry"].exported and not image.functions["hidden"].exported


@needs_cc
@pytest.mark.parametrize("flags", [(), ("-fcf-protection=full", "-Wl,-z,ibtplt"), ("-Wl,-z,now",)])
def test_stubs_name_what_they_call(tmp_path: Path, flags: tuple[str, ...]) -> None:
    image = ElfImage(compile_library(tmp_path, *flags))
    listed = {
        int(m[1], 16): m[2]
        for m in re.finditer(r"^([0-9a-f]+) <(\w+)@plt>:$", tool("objdump", "-d", image.path), re.M)
    }
    assert {"puts", "twice"} <= set(listed.values())
    assert {a: image.stubs.get(a) for a in listed} == listed


@needs_cc
@pytest.mark.parametrize("flags", [(), ("-fno-plt",)])
def test_calls_are_found_by_their_bytes(tmp_path: Path, flags: tuple[str, ...]) -> None:
    image = ElfImage(compile_library(tmp_path, *flags))
    decoder = Decoder(image)
    found = [decoder.call_name(insn) for a in calls_to(image, "twice") if (insn := decoder.at(a))]
    assert found == ["twice", "twice"]
    hidden = image.functions["hidden"]
    inside = list(calls_to(image, "twice", hidden.address, hidden.address + hidden.size))
    assert len(inside) == 1


@needs_cc
def test_stripped_code_keeps_its_bounds(tmp_path: Path) -> None:
    path = compile_library(tmp_path)
    full = ElfImage(path)
    stripped = tmp_path / "stripped.so"
    tool("strip", "-o", stripped, path)
    image = ElfImage(stripped)
    assert "hidden" not in image.functions and "entry" in image.functions
    for name in ("hidden", "entry", "twice", "name_of"):
        f = full.functions[name]
        assert image.bounds(f.address + 1) == (f.address, f.address + f.size)


@needs_cc
def test_tables_of_pointers_are_relocated(tmp_path: Path) -> None:
    image = ElfImage(compile_library(tmp_path))
    symbols = {w[2]: int(w[0], 16) for w in map(str.split, tool("nm", image.path).splitlines())
               if len(w) == 3}  # fmt: skip
    names = [image.pointer(symbols["NAMES"] + 8 * i) for i in range(3)]
    assert [image.cstring(p) for p in names if isinstance(p, int)] == ["ALPHA", "BETA", "GAMMA"]
    assert image.pointer(symbols["table"]) == image.functions["twice"].address
    assert image.objects[symbols["NAMES"]] == 24


@needs_cc
def test_addresses_and_offsets(tmp_path: Path) -> None:
    image = ElfImage(compile_library(tmp_path))
    f = image.functions["entry"]
    offset = image.file_offset(f.address)
    assert image.address_of(offset) == f.address
    assert image.read(f.address, 4) == image.path.read_bytes()[offset : offset + 4]
    section = image.section_at(f.address)
    assert section is not None and section.name == ".text"
    with pytest.raises(ValueError, match="not in the file"):
        image.file_offset(1 << 40)


def elf_header(machine: int = 62, wide: int = 2, kind: int = 3) -> bytes:
    head = b"\x7fELF" + bytes([wide, 1, 1]) + bytes(9)
    if wide == 1:
        return head + kind.to_bytes(2, "little") + machine.to_bytes(2, "little") + bytes(32)
    return head + kind.to_bytes(2, "little") + machine.to_bytes(2, "little") + bytes(44)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"#!/bin/sh\n", "a script"),
        (b"MZ plain bytes", "not an ELF program"),
        (b"\x7fELF", "damaged ELF file"),
        (elf_header()[:20], "damaged ELF file"),
        (elf_header(machine=3, wide=1), "32-bit"),
        (elf_header(machine=40, wide=1), "32-bit"),
        (elf_header(machine=243), "built for RISCV"),
        (elf_header(kind=1), "not a program or shared library"),
    ],
)
def test_what_is_no_program_is_said_in_one_line(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "odd"
    path.write_bytes(content)
    with pytest.raises(TargetError, match=message) as caught:
        ElfImage(path)
    assert "\n" not in caught.value.message


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="no such file"):
        ElfImage(tmp_path / "nothing")
    with pytest.raises(TargetError, match="a folder"):
        ElfImage(tmp_path)


@needs_cc
def test_any_cut_of_a_file_is_refused_or_read(tmp_path: Path) -> None:
    whole = compile_library(tmp_path).read_bytes()
    cut = tmp_path / "cut.so"
    for length in range(64, len(whole), len(whole) // 40):
        cut.write_bytes(whole[:length])
        try:
            image = ElfImage(cut)
            _ = image.functions, image.stubs, image.frames, image.build_id
        except TargetError:
            continue
