#!/usr/bin/env python3
"""Build llama.cpp in many ways, record each build, and compare with what the engine itself says.

usage: tools/matrix.py [build|run|table]... [--only TEXT] [--jobs N]

A cell is one version of llama.cpp built one way. ``build`` compiles what is missing (sources are
those inside releases of llama-cpp-python), ``run`` records ``matrix_driver.c`` in every cell that
is built (root) and compares every node of its graph, ``table`` writes docs/matrix.md from the
results. Without a step: all three. Everything is kept in $PROFINFER_CACHE/matrix.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CACHE = Path(os.environ.get("PROFINFER_CACHE", Path.home() / ".cache/profinfer"))
HERE = CACHE / "matrix"
DRIVER = ROOT / "tools/matrix_driver.c"
STEPS = ("build", "run", "table")
PROMPT, DECODES = 7, 12  # as in matrix_driver.c


@dataclass(frozen=True)
class Cell:
    """One way to build one version.

    Attributes:
        name: of its folder.
        version: release of llama-cpp-python whose llama.cpp is built.
        linking: ``shared`` or ``static``.
        compiler: ``gcc`` or ``clang``.
        options: what else is particular, for people.
        cmake: the same for CMake.
        of: the cell that this one is a changed copy of, not built itself.
        strip: ``all``, or ``debug``: debug information in files of its own.
        engine_only: only ggml is compiled; libllama is the gcc build that `make setup` made.
    """

    name: str
    version: str
    linking: str = "shared"
    compiler: str = "gcc"
    options: str = ""
    cmake: tuple[str, ...] = ()
    of: str = ""
    strip: str = ""
    engine_only: bool = False


_NO_OMP = ("-DGGML_OPENMP=OFF",)
_O2 = ("-DCMAKE_C_FLAGS_RELEASE=-O2 -DNDEBUG", "-DCMAKE_CXX_FLAGS_RELEASE=-O2 -DNDEBUG")
NEW = "0.3.36"
CELLS = (
    Cell("0.3.36-gcc-shared", NEW, engine_only=True),
    Cell("0.3.36-gcc-shared-stripped", NEW, of="0.3.36-gcc-shared", strip="all"),
    Cell("0.3.36-gcc-shared-noomp", NEW, options="no OpenMP", cmake=_NO_OMP, engine_only=True),
    Cell(
        "0.3.36-gcc-shared-noomp-stripped", NEW, of="0.3.36-gcc-shared-noomp", strip="all",
        options="no OpenMP",
    ),
    Cell("0.3.36-gcc-shared-o2", NEW, options="-O2", cmake=_O2, engine_only=True),
    Cell(
        "0.3.36-gcc-shared-debug", NEW, options="RelWithDebInfo",
        cmake=("-DCMAKE_BUILD_TYPE=RelWithDebInfo",), engine_only=True,
    ),
    Cell(
        "0.3.36-gcc-shared-split", NEW, options="RelWithDebInfo, debug files apart",
        of="0.3.36-gcc-shared-debug", strip="debug",
    ),
    Cell(
        "0.3.36-gcc-shared-lto", NEW, options="LTO", cmake=("-DGGML_LTO=ON",), engine_only=True
    ),
    Cell("0.3.36-clang-shared", NEW, compiler="clang", engine_only=True),
    Cell(
        "0.3.36-clang-shared-stripped", NEW, compiler="clang", of="0.3.36-clang-shared",
        strip="all",
    ),
    Cell(
        "0.3.36-clang-shared-noomp", NEW, compiler="clang", options="no OpenMP", cmake=_NO_OMP,
        engine_only=True,
    ),
    Cell(
        "0.3.36-clang-shared-noomp-stripped", NEW, compiler="clang", options="no OpenMP",
        of="0.3.36-clang-shared-noomp", strip="all",
    ),
    Cell(
        "0.3.36-clang-shared-debug", NEW, compiler="clang", options="RelWithDebInfo",
        cmake=("-DCMAKE_BUILD_TYPE=RelWithDebInfo",), engine_only=True,
    ),
    Cell(
        "0.3.36-clang-shared-lto", NEW, compiler="clang", options="LTO", cmake=("-DGGML_LTO=ON",),
        engine_only=True,
    ),
    Cell(
        "0.3.36-gcc-shared-noomp-lto", NEW, options="no OpenMP, LTO",
        cmake=("-DGGML_LTO=ON", *_NO_OMP), engine_only=True,
    ),
    Cell("0.3.36-gcc-static", NEW, "static"),
    Cell("0.3.36-gcc-static-stripped", NEW, "static", of="0.3.36-gcc-static", strip="all"),
    Cell("0.3.36-clang-static", NEW, "static", "clang"),
    Cell("0.3.16-gcc-shared", "0.3.16"),
    Cell("0.3.16-gcc-shared-stripped", "0.3.16", of="0.3.16-gcc-shared", strip="all"),
    Cell("0.3.16-gcc-static", "0.3.16", "static"),
    Cell("0.3.16-clang-shared", "0.3.16", compiler="clang"),
    Cell("0.3.2-gcc-shared", "0.3.2"),
    Cell("0.3.2-gcc-shared-stripped", "0.3.2", of="0.3.2-gcc-shared", strip="all"),
    Cell("0.3.2-clang-shared", "0.3.2", compiler="clang"),
    Cell("0.3.2-gcc-shared-noomp", "0.3.2", options="no OpenMP", cmake=_NO_OMP),
    Cell("0.2.90-gcc-shared", "0.2.90"),
    Cell("0.2.90-gcc-shared-stripped", "0.2.90", of="0.2.90-gcc-shared", strip="all"),
    Cell("0.2.90-clang-shared", "0.2.90", compiler="clang"),
    Cell("0.2.90-gcc-shared-noomp", "0.2.90", options="no OpenMP", cmake=_NO_OMP),
    Cell("0.2.75-gcc-shared", "0.2.75"),
    Cell("0.2.75-clang-shared", "0.2.75", compiler="clang"),
)  # fmt: skip


# --- build ----------------------------------------------------------------------------------
def source_of(version: str) -> Path:
    """The source of llama.cpp inside a release; fetched once."""
    path = HERE / "src" / version
    made = CACHE / f"llama.cpp-{version}" / "src"
    if path.is_dir():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    if made.is_dir():
        return made
    fetch = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
    fetch += ["--no-binary", "llama-cpp-python", "-d", str(path.parent)]
    subprocess.run([*fetch, f"llama-cpp-python=={version}"], check=True)
    part = path.with_suffix(".part")
    inside = f"llama_cpp_python-{version}/vendor/llama.cpp/"
    with tarfile.open(path.parent / f"llama_cpp_python-{version}.tar.gz") as archive:
        for member in archive.getmembers():
            if member.name.startswith(inside):
                member.name = member.name.removeprefix(inside)
                archive.extract(member, part, filter="data")
    part.rename(path)
    return path


def build(cell: Cell, jobs: int) -> None:
    """Compile a cell and put what runs into its folder ``run``."""
    folder = HERE / "build" / cell.name
    run = folder / "run"
    if (run / "done").exists():
        return
    shutil.rmtree(run, ignore_errors=True)
    run.mkdir(parents=True)
    if cell.of:
        for file in (HERE / "build" / cell.of / "run").iterdir():
            shutil.copy2(file, run / file.name, follow_symlinks=False)
        strip(cell, run)
    else:
        compile_cell(cell, folder, run, jobs)
    (run / "done").touch()


def strip(cell: Cell, run: Path) -> None:
    """Take the symbols away, or move them to files beside."""
    for file in run.iterdir():
        if file.is_symlink() or not (".so" in file.name or file.name == "matrix-driver"):
            continue
        if cell.strip == "debug":
            apart = file.with_name(file.name + ".debug")
            subprocess.run(["objcopy", "--only-keep-debug", file, apart], check=True)
            subprocess.run(["strip", "--strip-all", file], check=True)
            subprocess.run(
                ["objcopy", f"--add-gnu-debuglink={apart.name}", file.name],
                check=True, cwd=run,
            )  # fmt: skip
        else:
            subprocess.run(["strip", "--strip-all", file], check=True)


def compile_cell(cell: Cell, folder: Path, run: Path, jobs: int) -> None:
    """CMake, ninja, and the driver."""
    source = source_of(cell.version)
    top = folder / "top"
    top.mkdir(exist_ok=True)
    (top / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.14)\nproject(matrix C CXX)\n"
        f"add_subdirectory({source} engine)\n"
        f"add_executable(matrix-driver {DRIVER})\n"
        "target_link_libraries(matrix-driver llama)\n"
        "set_target_properties(matrix-driver PROPERTIES LINKER_LANGUAGE CXX)\n"
    )
    flags = [
        "-DCMAKE_BUILD_TYPE=Release",
        f"-DBUILD_SHARED_LIBS={'ON' if cell.linking == 'shared' else 'OFF'}",
        f"-DCMAKE_RUNTIME_OUTPUT_DIRECTORY={folder / 'bin'}",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={folder / 'bin'}",
        "-DLLAMA_CURL=OFF",
        "-DGGML_CCACHE=OFF",
    ]
    if cell.compiler == "clang":
        flags += ["-DCMAKE_C_COMPILER=clang", "-DCMAKE_CXX_COMPILER=clang++"]
    target = "ggml" if cell.engine_only else "matrix-driver"
    log = HERE / "logs" / f"{cell.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as out:
        for command in (
            ["cmake", "-S", top, "-B", folder / "b", "-G", "Ninja", *flags, *cell.cmake],
            ["nice", "-n", "19", "ninja", "-C", folder / "b", f"-j{jobs}", target],
        ):
            subprocess.run(command, stdout=out, stderr=out, check=True)
    if cell.engine_only:
        engine = CACHE / f"llama.cpp-{NEW}/build/bin"
        for file in engine.glob("libllama.so*"):
            shutil.copy2(file, run / file.name, follow_symlinks=False)
    for place in (folder / "bin", folder / "b/bin"):
        for file in [*place.glob("lib*.so*"), *place.glob("matrix-driver")]:
            shutil.copy2(file, run / file.name, follow_symlinks=False)
    if cell.engine_only:
        include = [f"-I{source / 'include'}", f"-I{source / 'ggml/include'}"]
        link = [f"-L{run}", "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath-link,{run}"]
        compile_driver = ["gcc", "-w", "-O1", *include, DRIVER, "-o", run / "matrix-driver", *link]
        subprocess.run(compile_driver, check=True)


# --- run ------------------------------------------------------------------------------------
def truth(run: Path, model: Path, env: dict[str, str]) -> list[list[str]]:
    """Every node of the prompt's graph, as the engine shows it to its own callback."""
    command = [run / "matrix-driver", model, "dump"]
    said = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    if said.returncode:
        raise RuntimeError(f"the program itself fails: {said.stderr.strip()[-200:]}")
    return [line.split("\t")[1:] for line in said.stdout.splitlines() if line[:5] == "node\t"]


def differences(trace: Any, theirs: list[list[str]]) -> tuple[list[str], str]:
    """(what differs from the engine's own description, what was compared)."""
    wrong: list[str] = []
    calls, graphs = trace.calls, trace.graphs
    if list(calls["n_tokens"]) != [PROMPT] + [1] * DECODES:
        wrong.append(f"calls of {list(calls['n_tokens'])} tokens")
    prompt = graphs[graphs["call_id"] == calls.iloc[0]["call_id"]]
    of_prompt = [
        trace.nodes[trace.nodes["def_id"] == d].sort_values("idx") for d in prompt["def_id"]
    ]
    mine = [
        [row.name, row.op, row.type, shape(row), row.src0_name, row.src0_ne]
        for part in of_prompt
        for row in part.itertuples(index=False)
    ]
    if len(mine) != len(theirs):
        wrong.append(f"{len(mine)} nodes, not {len(theirs)}")
    for i, (ours, his) in enumerate(zip(mine, theirs, strict=False)):
        source = "x".join(his[5].split("x")) if his[5] else ""
        have = str(ours[5]) + "x1" * (source.count("x") - str(ours[5]).count("x"))
        if ours[:5] != his[:5] or (source and have != source):
            wrong.append(f"node {i} is {ours}, not {his[:6]}")
            break
    return wrong, f"{len(mine)} nodes"


def shape(row: Any) -> str:
    """As the driver prints it."""
    return f"{row.ne0}x{row.ne1}x{row.ne2}x{row.ne3}"


def operators(trace: Any) -> tuple[list[str], str]:
    """(what is wrong with the operators, what they are)."""
    wrong = [f"{k} = {v}" for k, v in trace.losses.items() if v]
    wrong += list(trace.problems)
    graphs, ops, nodes = trace.graphs, trace.ops, trace.nodes
    if not graphs["complete"].all():
        wrong.append(f"{int((~graphs['complete']).sum())} of {len(graphs)} graphs incomplete")
    if (graphs["threads_seen"] != 2).any():
        wrong.append(f"threads seen: {sorted(set(graphs['threads_seen']))}")
    # Every node with work was covered by exactly one operator of each thread.
    works = nodes[~nodes["empty"]].groupby("def_id").size()
    expected = int(graphs["def_id"].map(works).sum()) * 2
    covered = int(ops["fused"].sum())
    if covered != expected:
        wrong.append(f"{covered} nodes covered by operators, not {expected}")
    compute = (ops["end_ns"] - ops["begin_ns"]).sum()
    wait = (ops["release_ns"] - ops["end_ns"]).sum()
    busy = 2 * (graphs["end_ns"] - graphs["begin_ns"]).sum()
    if compute + wait > busy * 1.001:
        wrong.append("operators take longer than their graphs")
    seen = f"{len(ops)} operators, {int((ops['fused'] > 1).sum())} fused"
    if passed := len(trace.empty_ops):
        seen += f", {passed} barriers after empty nodes"
    return wrong, seen


def run_cell(cell: Cell, model: Path) -> dict[str, Any]:
    """Record a cell and judge it."""
    from profinfer.model.trace import Trace

    run = HERE / "build" / cell.name / "run"
    env = {**os.environ, "LD_LIBRARY_PATH": str(run), "PYTHONPATH": str(ROOT)}
    theirs = truth(run, model, env)
    path = HERE / "traces" / f"{cell.name}.pf"
    path.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "profinfer", "record", "--force", "-o", path, "--"]
    begun = time.monotonic()
    done = subprocess.run(
        [*command, run / "matrix-driver", model], env=env, capture_output=True, text=True,
        timeout=300,
    )  # fmt: skip
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        return {"verdict": "refused", "why": " ".join(said[-3:])}
    trace = Trace.open(path)
    plan = trace.meta.plan
    result: dict[str, Any] = {
        "seconds": round(time.monotonic() - begun, 1),
        "mode": plan.ops.mode,
        "why": plan.ops.extra.get("why", "") if hasattr(plan.ops, "extra") else "",
        "sites": [p.insn for p in plan.probes if p.role == "op.end"],
        "layout": trace.meta.engine.layout.id if trace.meta.engine.layout else None,
    }
    if not len(trace.graphs):
        return result | {"verdict": "token level only"}
    wrong, compared = differences(trace, theirs)
    if plan.ops.mode == "none":
        verdict = "graph level only"
    else:
        more, seen = operators(trace)
        wrong, compared = wrong + more, f"{compared}, {seen}"
        verdict = "op level right"
    return result | {"verdict": "WRONG" if wrong else verdict, "wrong": wrong, "seen": compared}


# --- table ----------------------------------------------------------------------------------
def main() -> int:
    """Run the steps that were named."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("steps", nargs="*", help="build, run, table; all by default")
    parser.add_argument("--only", default="", help="cells whose name holds this text")
    parser.add_argument("--jobs", type=int, default=2, help="of ninja")
    args = parser.parse_args()
    steps = args.steps or STEPS
    if unknown := set(steps) - set(STEPS):
        parser.error(f"no such step: {', '.join(sorted(unknown))}")
    cells = [c for c in CELLS if args.only in c.name]
    results = HERE / "results.json"
    known: dict[str, Any] = json.loads(results.read_text()) if results.exists() else {}
    for cell in cells:
        run = HERE / "build" / cell.name / "run"
        if "build" in steps and not (run / "done").exists():
            print(f"{cell.name}: building", flush=True)
            try:
                build(cell, args.jobs)
            except (subprocess.CalledProcessError, OSError) as error:
                known[cell.name] = {"verdict": "not built", "why": str(error)[:200]}
        if "run" in steps and (run / "done").exists():
            model = HERE / "models/tiny-dense.gguf"
            if not model.exists():
                make = [sys.executable, ROOT / "tools/make_models.py", model.parent]
                subprocess.run(make, check=True, stdout=subprocess.DEVNULL)
            try:
                known[cell.name] = run_cell(cell, model)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                known[cell.name] = {"verdict": "not run", "why": str(error)[:300]}
            print(f"{cell.name}: {json.dumps(known[cell.name])}", flush=True)
        HERE.mkdir(parents=True, exist_ok=True)
        results.write_text(json.dumps(known, indent=1))
    if "table" in steps:
        write_table(known)
    return int(any(r["verdict"] == "WRONG" for r in known.values()))


INTRO = """# Which builds of llama.cpp are seen

Written by `make matrix` (`tools/matrix.py`) from real builds and recordings; do not edit. Each
build ran `tools/matrix_driver.c`: a prompt of 7 tokens, then 12 tokens one by one, of a generated
model, on 2 threads. Builds are CMake's Release (-O3) with GGML_NATIVE and OpenMP unless said
otherwise, by gcc 12 and by clang 14 with its libomp. In rows with a star only ggml was compiled
this way; libllama is the gcc build.

**op level right** means: names, operators, types, shapes, sources and order of all nodes of the
prompt's graph are what the engine shows to its own evaluation callback; in every graph both
threads passed every node with work exactly once; nothing was lost, and no operator takes longer
than its graph. **graph level only**: nodes are compared the same way, but operators have no times.
**refused**: nothing is recorded, and the message says what to do.

"""


def write_table(known: dict[str, Any]) -> None:
    """docs/matrix.md, from the results."""
    rows = [
        "| llama-cpp-python | build | verdict | an operator's end is seen at |",
        "| --- | --- | --- | --- |",
    ]
    for cell in CELLS:
        result = known.get(cell.name, {"verdict": "not tried"})
        build_text = f"{cell.linking}, {cell.compiler}"
        build_text += f", {cell.options}" if cell.options else ""
        build_text += ", stripped" if cell.strip == "all" else ""
        base = next((c for c in CELLS if c.name == cell.of), cell)
        build_text += " *" if base.engine_only else ""
        verdict = result["verdict"]
        if verdict == "op level right":
            seen = ", ".join(dict.fromkeys(f"`{how(s)}`" for s in result["sites"]))
            seen += f"; {result['seen']}"
        else:
            text = "; ".join(result.get("wrong", ())) or result.get("why", "")
            seen = text.replace(str(HERE / "build" / cell.name / "run") + "/", "")
            seen = " ".join(seen.removeprefix("profinfer: ").split())
        rows.append(f"| {cell.version} | {build_text} | {verdict} | {seen} |")
    (ROOT / "docs/matrix.md").write_text(INTRO + "\n".join(rows) + "\n" + NOTES)


def how(site: str) -> str:
    """An instruction without its address."""
    return re.sub(r" 0x[0-9a-f]+$", "", site)


NOTES = """
A jump in the last column is the conditional jump that decides about the barrier, inlined or
OpenMP's, that follows it: the thread has finished the operator and does not wait yet. How such a
point is found and proven: [finding-operators.md](finding-operators.md).

Not tried: gcc -O0 and -Og, sanitizers, musl, backends as plug-ins (GGML_BACKEND_DL) beside those
of the tests, ARM, and other combinations of the columns.
"""


if __name__ == "__main__":
    raise SystemExit(main())
