"""The operator site that the analysis proves, held against a program that runs there.

``test_plan_loop.c`` is the engine's graph loop with an int3 planted on the site: every hit
must see the true node index and graph, whatever the compiler made of the loop.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from profinfer.elf.disasm import Decoder
from profinfer.elf.symbols import ElfImage
from profinfer.probes.loop_point import find_loop_point
from profinfer.probes.loop_search import loop_sites
from profinfer.probes.operator_site import (
    Location,
    LoopSite,
    find_loop_sites,
    functions_by_calls,
    loop_functions,
)

SOURCE = Path(__file__).with_name("test_plan_loop.c")
COMPILERS = [c for c in ("gcc", "clang") if shutil.which(c)]
pytestmark = pytest.mark.skipif(not COMPILERS, reason="no C compiler")

BUILDS = [
    (opt, loop, extra)
    for opt in ("-O1", "-O2", "-O3", "-Os")
    for loop in ((), ("-DOLD_LOOP",))
    for extra in ((), ("-fcf-protection=full", "-fno-omit-frame-pointer"))
] + [
    ("-O0", (), ()),
    ("-O0", ("-DOLD_LOOP",), ()),
    ("-O2", ("-DONE_FUNCTION",), ()),
    ("-O3", ("-DONE_FUNCTION", "-DOLD_LOOP"), ("-march=haswell",)),
]


def build(folder: Path, compiler: str, *flags: str) -> Path:
    out = folder / "loop"
    subprocess.run(
        [compiler, "-std=gnu11", "-w", *flags, "-fPIE", "-pie", "-rdynamic", "-o", out, SOURCE],
        check=True,
    )
    return out


def sites_of(path: Path) -> list[LoopSite]:
    image = ElfImage(path)
    decoder = Decoder(image)
    functions = loop_functions(image) or functions_by_calls(decoder, "ggml_barrier")
    return [s for f in functions for s in find_loop_sites(decoder, f, n_nodes=4, nodes=16)]


def written(location: Location) -> str:
    return ",".join([location.register, *map(str, location.offsets)])


def run_at(
    path: Path, site: LoopSite, *around: int, runner: Sequence[str] = ()
) -> list[tuple[str, int, int]]:
    where = [hex(site.end), written(site.index), written(site.cgraph), *map(hex, around)]
    done = subprocess.run(
        [*runner, path, *where],
        check=True,
        capture_output=True,
        text=True,
    )
    return [(w, int(a), int(b)) for w, a, b in (line.split() for line in done.stdout.splitlines())]


def check(path: Path, site: LoopSite, runner: Sequence[str] = ()) -> int:
    """Compare every hit with the node that ran before it. Returns the number of hits."""
    hits, last, n_nodes, missed = 0, -1, 0, 0
    for what, a, b in run_at(path, site, runner=runner):
        if what == "graph":
            # The end of the last node is the barrier after the loop, unless always called.
            assert missed <= (0 if site.barrier_always else 1)
            n_nodes, last, missed = a, -1, 0
        elif what == "ran":
            last, missed = a, missed + 1
        else:
            assert (a - site.bias, b) == (last, 1)
            assert site.barrier_always or last + 1 < n_nodes
            hits, missed = hits + 1, 0
    return hits


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize(("opt", "loop", "extra"), BUILDS)
def test_every_hit_sees_the_node_that_ended(
    tmp_path: Path, compiler: str, opt: str, loop: tuple[str, ...], extra: tuple[str, ...]
) -> None:
    path = build(tmp_path, compiler, opt, *loop, *extra)
    sites = sites_of(path)
    assert len(sites) == 1, "the loop's barrier call was not proven"
    assert sites[0].barrier_always == ("-DOLD_LOOP" in loop)
    assert (not sites[0].leaves) == ("-DOLD_LOOP" in loop)
    assert check(path, sites[0]) >= 30


def test_the_leave_site_is_the_call_after_the_loop(tmp_path: Path) -> None:
    path = build(tmp_path, COMPILERS[0], "-O2", "-g")
    site = sites_of(path)[0]
    (leave,) = site.leaves
    found = subprocess.run(
        ["addr2line", "-e", path, hex(site.end), hex(leave)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()
    lines = [int(line.split(":")[1]) for line in found if ":" in line]
    source = SOURCE.read_text().splitlines()
    assert all("ggml_barrier(state->threadpool)" in source[n - 1] for n in lines)
    assert lines[0] < lines[1]


def test_a_stripped_program_is_found_by_its_calls(tmp_path: Path) -> None:
    path = build(tmp_path, COMPILERS[0], "-O2", "-fvisibility=hidden", "-Wl,--export-dynamic")
    stripped = tmp_path / "stripped"
    # What is left is what a stripped library exports.
    subprocess.run(["objcopy", "--strip-all", path, stripped], check=True)
    image = ElfImage(stripped)
    assert not image.clones("ggml_graph_compute_thread") or image.table(".symtab") == b""
    unstripped = sites_of(path)
    if image.function("ggml_barrier") is None:
        assert functions_by_calls(Decoder(image), "ggml_barrier") == []
        return
    assert [s.end for s in sites_of(stripped)] == [s.end for s in unstripped]


@pytest.mark.parametrize("wrong", [{"n_nodes": 8, "nodes": 16}, {"n_nodes": 4, "nodes": 24}])
def test_another_layout_proves_nothing(tmp_path: Path, wrong: dict[str, int]) -> None:
    image = ElfImage(build(tmp_path, COMPILERS[0], "-O2"))
    decoder = Decoder(image)
    assert [s for f in loop_functions(image) for s in find_loop_sites(decoder, f, **wrong)] == []


POINTS = [
    (opt, barrier, loop, extra)
    for opt in ("-O2", "-O3")
    for barrier in ("-DINLINE_BARRIER", "-DOMP_BARRIER")
    for loop in ((), ("-DOLD_LOOP",), ("-DONE_FUNCTION",), ("-DWORKER",))
    for extra in ((), ("-DOLD_LOOP",))
    if extra != loop
] + [
    ("-O1", "-DINLINE_BARRIER", (), ()),
    ("-Os", "-DOMP_BARRIER", ("-DOLD_LOOP",), ()),
    ("-O2", "", (), ()),
]


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize(("opt", "barrier", "loop", "extra"), POINTS)
def test_the_point_without_a_barrier_call(
    tmp_path: Path,
    compiler: str,
    opt: str,
    barrier: str,
    loop: tuple[str, ...],
    extra: tuple[str, ...],
) -> None:
    path = build(tmp_path, compiler, opt, *(f for f in (barrier, *loop, *extra) if f))
    image = ElfImage(path)
    decoder = Decoder(image)
    found = [
        site
        for f in loop_functions(image)
        if (site := find_loop_point(decoder, f, n_nodes=4, nodes=16, kernel=(6, 18)))
    ]
    assert len(found) == 1, "no point was proven"
    site = found[0]
    worker = "-DWORKER" in loop
    around = (site.enter or 0, *(site.leaves or (0,)))
    assert not worker or all(around)
    events = run_at(path, site, *around)
    last, n_nodes, entered, left, hits = -1, 0, 0, 0, 0
    for what, a, b in [*events, ("graph", 0, 0)]:
        if what == "graph":
            assert last == -1, "a node's end was not seen"
            assert left <= 1 and entered <= 1
            assert not n_nodes or (bool(entered), bool(left)) == tuple(map(bool, around))
            n_nodes, entered, left = a, 0, 0
        elif what == "ran":
            assert last == -1
            last = a
        elif what == "hit":
            assert (a - site.bias, b) == (last, 1)
            last, hits = -1, hits + 1
            assert bool(entered) == bool(site.enter) and not left
        else:
            entered, left = entered + (what == "enter"), left + (what == "leave")
    assert hits >= 60


@pytest.mark.parametrize("compiler", COMPILERS)
def test_half_the_threads_are_not_enough(tmp_path: Path, compiler: str) -> None:
    found = []
    for name in ("whole", "half"):
        folder = tmp_path / name
        folder.mkdir()
        more = ("-DMAIN_APART",) if name == "half" else ()
        path = build(folder, compiler, "-O2", "-DWORKER", "-DINLINE_BARRIER", *more)
        decoder = Decoder(ElfImage(path))
        found.append(loop_sites(decoder, n_nodes=4, nodes=16, kernel=(6, 18)))
    (whole, _), (half, why) = found
    assert len(whole) == 1 and whole[0].function.base == "ggml_graph_compute_secondary_thread"
    assert half == [] and "for the main thread" in why


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("barrier", ["-DINLINE_BARRIER", "-DOMP_BARRIER", ""])
def test_stripped_loops_are_found_from_the_functions_with_names(
    tmp_path: Path, compiler: str, barrier: str
) -> None:
    path = build(tmp_path, compiler, "-O2", "-DLOCAL", *([barrier] if barrier else []))
    stripped = tmp_path / "stripped"
    subprocess.run(["strip", "-o", stripped, path], check=True)
    found = []
    for each in (path, stripped):
        decoder = Decoder(ElfImage(each))
        sites, _why = loop_sites(decoder, n_nodes=4, nodes=16, kernel=(6, 18))
        found.append([(s.end, s.index, s.bias, s.cgraph) for s in sites])
    assert len(found[0]) == 1 and found[0] == found[1]


def test_locations_read_like_code() -> None:
    assert str(Location("r12")) == "r12"
    assert str(Location("rsp", (8,))) == "[rsp+0x8]"
    assert str(Location("rsp", (72, 512, 0))) == "[[[rsp+0x48]+0x200]]"
