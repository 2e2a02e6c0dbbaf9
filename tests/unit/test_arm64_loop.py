"""The operator site of arm64 code, held against the cross-compiled loop run by qemu.

The same loop and checker as in ``test_plan_loop``; without qemu the proof alone is tested.
"""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest
from test_plan_loop import SOURCE, check

from profinfer.elf.calls import calls_to
from profinfer.elf.disasm import Decoder
from profinfer.elf.symbols import ElfImage
from profinfer.probes import operator_site
from profinfer.probes.operator_site import LoopSite, find_loop_sites, loop_functions

GCC = shutil.which("aarch64-linux-gnu-gcc")
QEMU = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
pytestmark = pytest.mark.skipif(GCC is None, reason="no gcc-aarch64-linux-gnu")

BUILDS = [
    (opt, loop, extra)
    for opt in ("-O1", "-O2", "-O3", "-Os")
    for loop in ((), ("-DOLD_LOOP",))
    for extra in ((), ("-mbranch-protection=standard", "-fno-omit-frame-pointer"))
] + [
    ("-O0", (), ()),
    ("-O2", ("-DONE_FUNCTION",), ()),
    ("-O3", ("-DONE_FUNCTION",), ("-march=armv8.2-a+dotprod",)),
    ("-O2", (), ("-moutline-atomics", "-mcpu=neoverse-v1")),
]


def build(folder: Path, *flags: str) -> Path:
    out = folder / "loop"
    assert GCC is not None
    # Static: qemu then needs no arm64 loader.
    subprocess.run(
        [GCC, "-std=gnu11", "-w", *flags, "-fPIE", "-static-pie", "-o", out, SOURCE], check=True
    )
    return out


def sites_of(path: Path, **offsets: int) -> list[LoopSite]:
    image = ElfImage(path)
    decoder = Decoder(image)
    given = {"n_nodes": 4, "nodes": 16} | offsets
    return [s for f in loop_functions(image) for s in find_loop_sites(decoder, f, **given)]


@pytest.mark.parametrize(("opt", "loop", "extra"), BUILDS)
def test_every_hit_sees_the_node_that_ended(
    tmp_path: Path, opt: str, loop: tuple[str, ...], extra: tuple[str, ...]
) -> None:
    path = build(tmp_path, opt, *loop, *extra)
    sites = sites_of(path)
    assert len(sites) == 1, "the loop's barrier call was not proven"
    assert sites[0].barrier_always == ("-DOLD_LOOP" in loop)
    assert (not sites[0].leaves) == ("-DOLD_LOOP" in loop)
    # gcc makes copies of the call after the loop; two more calls are inside operators.
    image = ElfImage(path)
    bounds = image.bounds(sites[0].entry)
    assert bounds is not None
    calls = set(calls_to(image, "ggml_barrier", *bounds))
    assert len(calls - {sites[0].end, *sites[0].leaves}) == 2
    here = platform.machine() == "aarch64"
    if QEMU or here:
        assert check(path, sites[0], [] if here else [QEMU]) >= 30


@pytest.mark.parametrize("wrong", [{"n_nodes": 8, "nodes": 16}, {"n_nodes": 4, "nodes": 24}])
def test_another_layout_proves_nothing(tmp_path: Path, wrong: dict[str, int]) -> None:
    assert sites_of(build(tmp_path, "-O2"), **wrong) == []


def test_an_index_kept_twice_is_not_guessed(tmp_path: Path) -> None:
    """gcc keeps index and 8 * index in two registers here; that they agree is not proven."""
    assert sites_of(build(tmp_path, "-O3", "-DONE_FUNCTION", "-DOLD_LOOP")) == []


@pytest.mark.parametrize("opt", ["-O1", "-O2", "-Os"])
def test_the_loops_flag_is_found(tmp_path: Path, opt: str) -> None:
    for loop, there in (((), True), (("-DOLD_LOOP",), False)):
        image = ElfImage(build(tmp_path, opt, *loop))
        found = [
            operator_site.tests_flag(Decoder(image), f, 148, 16) for f in loop_functions(image)
        ]
        assert any(found) is there
