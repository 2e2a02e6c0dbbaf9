"""Control flow graphs of real compilers' code: switches, loops, dominators."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from profinfer.elf.cfg import Cfg, build_cfg, postdominators
from profinfer.elf.disasm import Decoder
from profinfer.elf.symbols import ElfImage

COMPILERS = [c for c in ("gcc", "clang") if shutil.which(c)]
pytestmark = [
    pytest.mark.skipif(not COMPILERS, reason="no C compiler"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="x86-64 jump tables"),
]

CASES = 24
SOURCE = f"""
#include <stdlib.h>
{"".join(f"void work_{i}(int *p);" for i in range(CASES))}
void other(int *p);
int neighbour(int n, int *p) {{
    switch (n) {{
    {"".join(f"case {i}: other(p + {7 * i}); return {i * i};" for i in range(20))}
    }}
    return -1;
}}
void run(const int *ops, int n, int *p) {{
    for (int i = 0; i < n; i++) {{
        if (ops[i] == 1000) continue;
        switch (ops[i]) {{
        {"".join(f"case {i + 3}: work_{i}(p + i); break;" for i in range(CASES))}
        default: abort();
        }}
        while (*(volatile int *)p) {{ }}
    }}
    other(p);
}}
"""


def graph(folder: Path, compiler: str, *flags: str) -> tuple[Cfg, Decoder]:
    (folder / "s.c").write_text(SOURCE)
    out = folder / "s.so"
    subprocess.run([compiler, "-shared", "-w", *flags, "-o", out, folder / "s.c"], check=True)
    decoder = Decoder(ElfImage(out))
    run = decoder.image.function("run")
    assert run is not None
    cfg = build_cfg(decoder, run.address)
    assert cfg is not None
    return cfg, decoder


def calls(cfg: Cfg, decoder: Decoder) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for begin, block in cfg.blocks.items():
        for insn in block.insns:
            if insn.flow in ("call", "jmp") and (name := decoder.call_name(insn)):
                found.setdefault(name, set()).add(begin)
    return found


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("flags", ["-O1 -fPIC", "-O2 -fPIC", "-O3 -fPIC -fcf-protection=full"])
def test_a_switch_is_followed_and_its_neighbour_is_not(
    tmp_path: Path, compiler: str, flags: str
) -> None:
    cfg, decoder = graph(tmp_path, compiler, *flags.split())
    names = calls(cfg, decoder)
    assert {f"work_{i}" for i in range(CASES)} <= names.keys()
    assert not cfg.unresolved
    run = decoder.image.function("run")
    assert run is not None
    inside = [b for b in cfg.blocks if run.address <= b < run.address + run.size]
    cold = [b for b in cfg.blocks if b not in inside]
    assert all(".cold" in (decoder.image.function_at(b) or run).name for b in cold)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_loops_dominators_and_what_never_returns(tmp_path: Path, compiler: str) -> None:
    cfg, decoder = graph(tmp_path, compiler, "-O2", "-fPIC")
    names = calls(cfg, decoder)
    working = {b for i in range(CASES) for b in names[f"work_{i}"]}
    outer = [loop for loop in cfg.loops if working <= loop.body]
    assert len(outer) == 1
    spins = [loop for loop in cfg.loops if not working & loop.body]
    assert spins and all(loop.body < outer[0].body for loop in spins)
    assert not names["other"] & outer[0].body  # only the tail call after the loop
    assert not names["abort"] & (outer[0].body | cfg.returning)
    assert all(cfg.dominates(outer[0].header, b) for b in working)
    # The spin comes after every case, whichever ran.
    above = postdominators(cfg, outer[0].body, [outer[0].header])
    after = []
    for b in working:
        chain = [b]
        while above[chain[-1]] != -1:
            chain.append(above[chain[-1]])
        after.append(set(chain))
    assert set.intersection(*after) & {loop.header for loop in spins}
