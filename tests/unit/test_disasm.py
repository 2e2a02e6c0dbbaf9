"""Instructions: names of registers, what the kernel emulates, where a probe goes."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from profinfer.elf.disasm import Decoder, arm_name, full_name
from profinfer.elf.emulation import emulated_as, refused
from profinfer.elf.sites import entry_site
from profinfer.elf.symbols import ElfImage

KERNEL = (6, 18)
needs_as = pytest.mark.skipif(shutil.which("cc") is None, reason="no assembler")


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("53", "push"),  # push rbx
        ("4157", "push"),  # push r15
        ("4857", None),  # REX.W push rdi: another REX than 41
        ("ff7310", None),  # push [rbx+16]
        ("6a01", None),  # push 1
        ("e800000000", "call"),
        ("f2e800000000", "call"),  # bnd call
        ("ff15aabbccdd", None),  # call [rip+..]
        ("eb05", "jmp"),
        ("e900000000", "jmp"),
        ("f2e900000000", "jmp"),  # bnd jmp
        ("ff6068", None),  # jmp [rax+0x68]
        ("7407", "jcc"),
        ("0f8400010000", "jcc"),
        ("2e7407", None),  # branch hint: a segment prefix is refused
        ("662e0f1f840000000000", None),  # the long nop of compilers: the same
        ("667407", None),
        ("90", "nop"),
        ("f390", "nop"),  # pause
        ("4190", None),  # xchg r8, rax
        ("6690", "nop"),
        ("0f1f00", "nop"),
        ("0f1f440000", "nop"),
        ("0f1f4001", None),  # a nop, but not one of the kernel's
        ("f30f1efa", None),  # endbr64
        ("488d3d00000000", None),  # lea
        ("4889e5", None),  # mov
        ("85ff", None),  # test
        ("c3", None),  # ret
        ("5b", None),  # pop
    ],
)
def test_x86_instructions_the_kernel_emulates(code: str, kind: str | None) -> None:
    assert emulated_as(bytes.fromhex(code), "x86_64", KERNEL) == kind


def test_long_nops_are_emulated_only_by_newer_kernels() -> None:
    assert emulated_as(bytes.fromhex("0f1f00"), "x86_64", (6, 15)) is None
    assert emulated_as(bytes.fromhex("0f1f00"), "x86_64", (6, 16)) == "nop"
    assert emulated_as(b"\x90", "x86_64", (4, 9)) == "nop"


def test_word_sized_branches_are_refused() -> None:
    assert refused(bytes.fromhex("66e80000"), "x86_64")
    assert not refused(bytes.fromhex("6690"), "x86_64")


@pytest.mark.parametrize("code", ["2e7407", "662e0f1f840000000000", "3effe0", "f00fc10a"])
def test_segment_and_lock_prefixes_are_refused(code: str) -> None:
    assert refused(bytes.fromhex(code), "x86_64")


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        (0x94000010, "call"),  # bl
        (0x14000010, "jmp"),  # b
        (0xD63F0100, "jmp"),  # blr x8
        (0xD65F03C0, "jmp"),  # ret
        (0x54000040, "jcc"),  # b.eq
        (0x34000060, "jcc"),  # cbz
        (0xB5000060, "jcc"),  # cbnz x
        (0x36000060, "jcc"),  # tbz
        (0x90000010, "literal"),  # adrp
        (0x10000010, "literal"),  # adr
        (0x58000040, None),  # ldr x0, literal: refused
        (0x98000040, None),  # ldrsw, the same
        (0xD503201F, "nop"),
        (0xD503245F, None),  # bti c
        (0xA9BF7BFD, None),  # stp x29, x30, [sp, #-16]!
        (0xAA0003E1, None),  # mov
        (0xF9400000, None),  # ldr x0, [x0]
    ],
)
def test_arm64_instructions_the_kernel_emulates(word: int, kind: str | None) -> None:
    assert emulated_as(word.to_bytes(4, "little"), "aarch64", KERNEL) == kind


@pytest.mark.parametrize(
    ("part", "whole"),
    [("eax", "rax"), ("al", "rax"), ("ah", "rax"), ("bx", "rbx"), ("sil", "rsi"), ("edi", "rdi"),
     ("spl", "rsp"), ("bpl", "rbp"), ("r8d", "r8"), ("r15b", "r15"), ("r10w", "r10"),
     ("rip", "rip"), ("sp", "rsp"), ("dl", "rdx"),
     ("r8", "r8"), ("rflags", "rflags")],
)  # fmt: skip
def test_registers_by_their_whole_name(part: str, whole: str) -> None:
    assert full_name(part) == whole


@pytest.mark.parametrize(
    ("part", "whole"),
    [
        ("w3", "x3"),
        ("wzr", "xzr"),
        ("x29", "x29"),
        ("sp", "sp"),
        ("wsp", "sp"),
        ("lr", "x30"),
        ("d8", "v8"),
    ],
)
def test_arm_registers_by_their_whole_name(part: str, whole: str) -> None:
    assert arm_name(part) == whole


# function -> (instruction, emulated, stack delta)
ENTRIES = {
    "plain": ("push rbx", "push", 0),
    "branch_protected": ("push rbp", "push", 0),
    "tested": ("je", "jcc", 0),
    "spoilt": ("mov rdi, rsi", None, 0),
    "framed": ("call helper", "call", 24),
    "aligned": ("push rbp", "push", None),
    "looped": ("dec rsi", None, 0),
    "indirect": ("jmp qword ptr [rdi + 0x68]", None, 0),
}
ASSEMBLY = """
.intel_syntax noprefix
.text
.macro fn name
  .globl \\name
  .type \\name, @function
\\name:
  .cfi_startproc
.endm
.macro end name
  .cfi_endproc
  .size \\name, . - \\name
.endm
fn helper
  ret
end helper
fn plain
  push rbx
  pop rbx
  ret
end plain
fn branch_protected
  endbr64
  push rbp
  pop rbp
  ret
end branch_protected
fn tested
  test rdi, rdi
  je 1f
  mov rdi, rsi
1: ret
end tested
fn spoilt
  mov rdi, rsi
  push rbx
  pop rbx
  ret
end spoilt
fn framed
  sub rsp, 24
  mov rax, rdi
  call helper
  add rsp, 24
  ret
end framed
fn aligned
  lea r10, [rsp+8]
  and rsp, -64
  push rbp
  pop rbp
  lea rsp, [r10-8]
  ret
end aligned
fn looped
  dec rsi
1: test rsi, rsi
  jne 2f
  ret
2: dec rsi
  jmp 1b
end looped
fn indirect
  jmp qword ptr [rdi + 0x68]
end indirect
"""


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    folder = tmp_path_factory.mktemp("entries")
    (folder / "entries.s").write_text(ASSEMBLY)
    subprocess.run(
        ["cc", "-shared", "-nostdlib", "-Wl,-Bsymbolic", "-o", folder / "entries.so",
         folder / "entries.s"],
        check=True,
    )  # fmt: skip
    return Decoder(ElfImage(folder / "entries.so"))


def address(decoder: Decoder, name: str) -> int:
    f = decoder.image.function(name)
    assert f is not None
    return f.address


@needs_as
@pytest.mark.parametrize("name", ENTRIES)
def test_entry_site(entries: Decoder, name: str) -> None:
    text, emulated, delta = ENTRIES[name]
    site = entry_site(entries, address(entries, name), arguments=1, kernel=KERNEL)
    assert site.insn.startswith(text)
    assert (site.emulated, site.stack_delta) == (emulated, delta)
    assert site.raw == entries.image.read(site.address, len(site.raw))
    assert site.offset == entries.image.file_offset(site.address)


@needs_as
@pytest.mark.parametrize("name", ENTRIES)
def test_a_return_probe_sits_where_the_stack_is_untouched(entries: Decoder, name: str) -> None:
    site = entry_site(entries, address(entries, name), arguments=1, returns=True, kernel=KERNEL)
    assert site.stack_delta == 0
    if name in ("framed", "aligned"):
        assert site.address == address(entries, name)


@needs_as
def test_arguments_on_the_stack_need_a_known_distance(entries: Decoder) -> None:
    site = entry_site(entries, address(entries, "aligned"), stack_arguments=True, kernel=KERNEL)
    assert site.address == address(entries, "aligned")
    assert entry_site(entries, address(entries, "framed"), stack_arguments=True).stack_delta == 24


@needs_as
def test_an_argument_not_needed_may_be_lost(entries: Decoder) -> None:
    site = entry_site(entries, address(entries, "spoilt"), arguments=0, kernel=KERNEL)
    assert site.emulated == "push"


def test_arm64_file(tmp_path: Path) -> None:
    """A minimal hand-made arm64 image: stubs and entry sites need no arm64 toolchain."""
    compiler = shutil.which("aarch64-linux-gnu-gcc")
    if compiler is None:
        pytest.skip("no arm64 compiler")
    source = tmp_path / "a.c"
    source.write_text("int other(int); int f(int x) { return other(x) + other(x + 1); }")
    out = tmp_path / "a.so"
    subprocess.run(
        [compiler, "-O2", "-shared", "-fPIC", "-nostdlib", "-o", out, source], check=True
    )
    image = ElfImage(out)
    assert image.machine == "aarch64" and "other" in image.stubs.values()
    decoder = Decoder(image)
    f = image.function("f")
    assert f is not None
    calls = [decoder.call_name(i) for i in decoder.straight(*image.bounds(f.address) or (0, 0))
             if i.flow == "call"]  # fmt: skip
    assert calls == ["other", "other"]
