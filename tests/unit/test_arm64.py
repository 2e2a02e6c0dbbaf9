"""arm64: what instructions do, where probes go, and whole plans of cross-compiled engines."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from profinfer.elf.arm64 import outcome, reads, step
from profinfer.elf.arm64_uprobe import arm64_refused
from profinfer.elf.disasm import Decoder
from profinfer.elf.modules import open_program
from profinfer.elf.semantics import addresses_taken
from profinfer.elf.sites import entry_site
from profinfer.elf.symbols import ElfImage
from profinfer.elf.values import State, Value
from profinfer.engine.catalog import layouts
from profinfer.probes.plan import ProbePlan, make_plan

GCC = shutil.which("aarch64-linux-gnu-gcc")
pytestmark = pytest.mark.skipif(GCC is None, reason="no gcc-aarch64-linux-gnu")
PROGRAMS = Path(__file__).parents[1] / "testprogs"
X0, X1, X2 = (Value.of(("reg", f"x{n}")) for n in range(3))

# Code -> x0 afterwards.
CODE = {
    "add x0, x1, x2, lsl #3": X1.plus(X2, 8),
    "add x0, x1, w2, sxtw #3": X1.plus(X2, 8),
    "add x0, x1, #1, lsl #12": X1.plus(Value(4096)),
    "sub w0, w1, #1": X1.plus(Value(-1)),
    "sbfiz x0, x1, #3, #32": X1.times(8),
    "mov w0, #56\nsmaddl x0, w1, w0, x2": X2.plus(X1, 56),
    "neg x0, x1": X1.times(-1),
    "str x1, [sp, #-32]!\nldr x0, [sp], #32": X1,
    "stp x1, x2, [sp, #16]\nldr x0, [sp, #24]": X2,
    "ldp x1, x0, [x1, #8]": Value.of(("mem", X1.plus(Value(16)), 8)),
    "ldr w0, [x1, #4]": Value.of(("mem", X1.plus(Value(4)), 4)),
    "ldr x0, [x1, w2, uxtw #3]": Value.of(("mem", X1.plus(X2, 8), 8)),
    "sub sp, sp, #32\nstr x1, [sp, #8]\nadd sp, sp, #32\nldr x0, [sp, #-24]": X1,
}
UNKNOWN = [
    "add x0, x1, x2, lsr #3",
    "and x0, x1, x2",
    "cset w0, eq",
    "umov w0, v0.s[1]",
    "str x1, [sp]\nldadd x2, x3, [sp]\nldr x0, [sp]",
    "stp q0, q1, [sp]\nldr x0, [sp, #16]",
    "ldadd x1, x0, [x2]",
    "movk x0, #1, lsl #16",
]


def assemble(folder: Path, code: str) -> tuple[Decoder, int]:
    assert GCC is not None
    source, out = folder / "code.s", folder / "code.so"
    source.write_text(
        ".arch armv8.5-a\n.text\n.globl f\n.hidden f\n.type f, %function\n"
        f"f:\n{code}\nret\n.size f, . - f\n"
    )
    subprocess.run([GCC, "-shared", "-nostdlib", "-o", out, source], check=True)
    image = ElfImage(out)
    function = image.function("f")
    assert function is not None
    return Decoder(image), function.address


def run_line(folder: Path, code: str) -> Value:
    decoder, at = assemble(folder, code)
    state = State("aarch64")
    while (insn := decoder.at(at)) and not insn.flow:
        step(state, insn)
        at = insn.end
    return state.register("x0")


@pytest.mark.parametrize("code", CODE)
def test_instructions(tmp_path: Path, code: str) -> None:
    assert run_line(tmp_path, code) == CODE[code]


@pytest.mark.parametrize("code", UNKNOWN)
def test_what_is_not_understood_is_unknown(tmp_path: Path, code: str) -> None:
    assert any(atom[0] == "?" for atom, _factor in run_line(tmp_path, code).terms)


def test_a_pair_is_two_loads_and_a_store_is_none(tmp_path: Path) -> None:
    decoder, at = assemble(tmp_path, "ldp w1, w2, [x0, #4]\nstr x1, [x0]")
    insns = list(decoder.straight(at, at + 8))
    found = [reads(State("aarch64"), i) for i in insns]
    assert found == [[(X0.plus(Value(4)), 4), (X0.plus(Value(8)), 4)], []]


@pytest.mark.parametrize(
    ("code", "taken", "other"),
    [
        ("mov w0, #3\ncmp w0, #4\nb.lt .+8", True, False),
        ("mov w0, #3\ncmp w0, #4\nb.ge .+8", False, True),
        ("mov w0, #0\ncbz w0, .+8", True, False),
        ("mov w0, #5\nsubs w0, w0, #5\nb.ne .+8", False, True),
        ("mov w0, #5\ntbnz w0, #31, .+8", False, True),
        ("mov w0, #5\ntbnz w0, #2, .+8", True, True),  # a bit that tells nothing
        ("mov w0, #3\ncmp w0, #4\nb.hi .+8", True, True),  # unsigned
        ("mov w0, #3\ncmp w0, #4\nccmp w1, #0, #0, ne\nb.lt .+8", True, True),
    ],
)
def test_branches(tmp_path: Path, code: str, taken: bool, other: bool) -> None:
    decoder, at = assemble(tmp_path, code)
    state = State("aarch64")
    while (insn := decoder.at(at)) and not insn.flow:
        step(state, insn)
        at = insn.end
    assert insn is not None and insn.flow == "jcc"
    assert outcome(state.fork(), insn, True) is taken
    assert outcome(state.fork(), insn, False) is other


# code -> instruction chosen, with a return probe
SITES = {
    "cbz x0, 1f\nstp x29, x30, [sp, #-16]!\n1:": "cbz",
    "stp x29, x30, [sp, #-16]!\nadrp x2, f": "stp",  # the return address is saved there
    "paciasp\nadrp x2, f": "paciasp",  # and signed here
    "mov x9, x0\nadrp x2, f": "adrp",
    "sub sp, sp, #16\nadrp x2, f": "sub",
    "mov x1, x2\nadrp x2, f": "mov",  # the second argument is gone
}


@pytest.mark.parametrize("code", SITES)
def test_a_return_probe_comes_before_the_return_address_is_used(tmp_path: Path, code: str) -> None:
    decoder, at = assemble(tmp_path, code)
    site = entry_site(decoder, at, arguments=2, returns=True, kernel=(6, 18))
    assert site.insn.split()[0] == SITES[code]


def test_a_batch_is_reached_through_the_next_register(tmp_path: Path) -> None:
    decoder, at = assemble(tmp_path, "mov x1, x2\nadrp x2, f")
    site = entry_site(decoder, at, arguments=1, stack_arguments=True, kernel=(6, 18))
    assert site.address == at
    site = entry_site(decoder, at, arguments=1, kernel=(6, 18))
    assert site.address == at + 4


@pytest.mark.parametrize(
    ("word", "is_refused"),
    [
        (0x58000040, True),  # ldr literal
        (0xC85FFC20, True),  # ldaxr
        (0xC8DFFC20, False),  # ldar
        (0xF8210041, False),  # ldadd
        (0xD4200000, True),  # brk
        (0xD503233F, False),  # paciasp
        (0xD50323BF, True),  # autiasp
        (0xD503245F, False),  # bti c
        (0xD503203F, True),  # yield
        (0xD65F0BFF, True),  # retaa
        (0xD65F03C0, False),  # ret
        (0xD63F083F, True),  # blraaz
        (0xD51BD040, True),  # msr tpidr_el0
        (0xD53BD040, False),  # mrs tpidr_el0
        (0xD5033BBF, False),  # dmb ish
        (0xA9BF7BFD, False),  # stp
    ],
)
def test_what_the_kernel_refuses(word: int, is_refused: bool) -> None:
    assert arm64_refused(word.to_bytes(4, "little")) is is_refused


def test_functions_whose_address_is_taken(tmp_path: Path) -> None:
    decoder, at = assemble(tmp_path, "adrp x1, g\nadd x1, x1, :lo12:g\nbl g\ng: nop")
    assert at + 12 in set(addresses_taken(decoder, at, at + 12))


# --- whole engines ------------------------------------------------------------------------
@pytest.fixture(scope="module", params=["none", "standard"])
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if GCC is None or shutil.which("make") is None:
        pytest.skip("no gcc-aarch64-linux-gnu or make")
    out = tmp_path_factory.mktemp("arm64")
    flags = f"-mbranch-protection={request.param}"
    command = ["make", "-s", "-C", PROGRAMS, f"OUT={out}", f"CC={GCC}", f"CFLAGS_EXTRA={flags}"]
    subprocess.run(command, check=True)
    return out / "fake_ggml"


@pytest.fixture(scope="module")
def plan(engine: Path) -> ProbePlan:
    return make_plan(open_program(engine))


def test_an_engine_gives_the_same_facts_as_on_x86(plan: ProbePlan) -> None:
    assert plan.layout is not None and plan.layout.id == layouts()[0].id
    assert len(plan.facts.ops) > 90 and plan.facts.ops[:2] == ("NONE", "DUP")
    assert plan.facts.types[0] == {"name": "f32", "block": 1, "size": 4}
    assert plan.facts.version == "0.25.3"


def test_an_engines_operators_are_seen_by_one_probe(plan: ProbePlan) -> None:
    assert plan.ops.mode == "site"
    ends = [p for p in plan.probes if p.role == "op.end"]
    assert ends and all(p.emulated == "call" and p.insn == "bl ggml_barrier" for p in ends)
    assert all(p.index and p.index.register[0] in "xs" for p in ends)
    assert {"op.enter", "op.leave", "call.batch", "graph"} <= {p.role for p in plan.probes}


def test_the_structs_are_laid_out_as_on_x86(tmp_path: Path) -> None:
    assert GCC is not None
    layout = layouts()[0]
    structs = {
        "ggml_tensor": ("ne", "nb", "op", "op_params", "flags", "src", "view_src", "data", "name"),
        "ggml_cgraph": ("n_nodes", "n_leafs", "nodes", "leafs"),
    }
    known = {"ggml_tensor": layout.tensor, "ggml_cgraph": layout.cgraph}
    lines = ['#include "fake_ggml.h"', "#include <stddef.h>"] + [
        f'_Static_assert(offsetof(struct {s}, {field}) == {known[s][field]}, "{field}");'
        for s, fields in structs.items()
        for field in fields
    ]
    source = tmp_path / "layout.c"
    source.write_text("\n".join(lines))
    subprocess.run([GCC, "-fsyntax-only", f"-I{PROGRAMS}", source], check=True)


def test_probes_says_that_costs_are_estimates(call_profinfer: Any, engine: Path) -> None:
    done = call_profinfer("probes", engine)
    assert done.returncode == 0
    assert "ns/hit is an estimate: not measured on aarch64" in done.stdout
    data = json.loads(call_profinfer("probes", "--format", "json", engine).stdout)
    assert (data["machine"], data["costs"]) == ("aarch64", "estimate")


@pytest.mark.skipif(platform.machine() == "aarch64", reason="here such programs run")
def test_record_refuses_a_program_of_another_machine(
    run_profinfer: Any, engine: Path, tmp_path: Path
) -> None:
    done = run_profinfer("record", "-o", tmp_path / "t.pf", "--", engine)
    assert done.returncode != 0
    assert f"built for aarch64, and this machine is {platform.machine()}" in done.stderr
    assert not (tmp_path / "t.pf").exists()


def test_the_bpf_program_reads_arm64_registers(run_profinfer: Any, engine: Path) -> None:
    text = run_profinfer("record", "--print-bpf", "--", engine).stdout
    (line,) = [x for x in text.splitlines() if "pf_loop_barrier(ctx, (u32)" in x]
    assert "ctx->regs[" in line
