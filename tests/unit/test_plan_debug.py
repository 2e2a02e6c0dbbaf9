"""Layouts and names from debug information, in the file itself and in files apart."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from profinfer.elf.modules import open_program
from profinfer.elf.symbols import ElfImage
from profinfer.errors import TargetError
from profinfer.probes.plan import ProbePlan, make_plan

COMPILERS = [c for c in ("gcc", "clang") if shutil.which(c)]
pytestmark = pytest.mark.skipif(not COMPILERS, reason="no C compiler")

# An engine that no layout file knows: every struct has something new in front.
ENGINE = """
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
enum ggml_tensor_flag { GGML_TENSOR_FLAG_INPUT = 1, GGML_TENSOR_FLAG_COMPUTE = 32 };
struct ggml_backend_buffer { void *news, *iface[9]; size_t size; int usage; };
struct ggml_backend_i { void *news; const char *(*get_name)(void *); };
struct ggml_backend { uint8_t (*guid)[16]; void *news; struct ggml_backend_i iface; };
typedef const int64_t dimension;
struct ggml_tensor {
    int64_t news; int type; struct ggml_backend_buffer *buffer; dimension ne[4]; size_t nb[4];
    int op; int32_t op_params[20]; int32_t flags; struct ggml_tensor *src[12];
    struct ggml_tensor *view_src; size_t view_offs; void *data; char name[72];
};
struct ggml_cgraph {
    int64_t news; int size, n_nodes, n_leafs; struct ggml_tensor **nodes, **leafs; uint64_t uid;
};
struct ggml_cplan { int64_t news; size_t work_size; int n_threads; };
#ifdef DECODE
int llama_decode(void *c) { return c != 0; }
#endif
const char *ggml_get_name(const struct ggml_tensor *t) { return t->NAME; }
void *ggml_get_data(const struct ggml_tensor *t) { return t->data; }
struct ggml_tensor **ggml_graph_nodes(struct ggml_cgraph *g) { return g->nodes; }
struct ggml_backend the_backend;
enum ggml_tensor_flag the_flag;
static int helper(struct ggml_cplan *p) { return p->n_threads; }
int ggml_graph_compute(struct ggml_cgraph *g, struct ggml_cplan *p) {
    return g->n_nodes + helper(p) + (the_backend.guid != 0);
}
"""


def build(folder: Path, compiler: str, *flags: str) -> Path:
    (folder / "ggml.c").write_text(ENGINE)
    out = folder / "libggml.so"
    command = [compiler, "-O2", "-shared", "-fPIC", "-DNAME=name", "-Wl,--build-id=none"]
    subprocess.run([*command, *flags, "-o", out, folder / "ggml.c"], check=True)
    return out


def plan_of(path: Path, *debug_files: Path) -> ProbePlan:
    return make_plan(open_program(path, library_path="", debug_files=debug_files))


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("version", ["-gdwarf-4", "-gdwarf-5", "-gz"])
def test_an_unknown_layout_is_read(tmp_path: Path, compiler: str, version: str) -> None:
    plan = plan_of(build(tmp_path, compiler, "-g", version))
    layout = plan.layout
    assert layout is not None and layout.id == "debug-information"
    assert "DWARF" in layout.evidence and "confirmed by the binary's code" in layout.evidence
    assert layout.tensor_size == 368 and layout.buffer_size == 96
    assert layout.tensor == {
        **{"type": 8, "buffer": 16, "ne": 24, "nb": 56, "op": 88, "op_params": 92, "flags": 172},
        **{"src": 176, "view_src": 272, "view_offs": 280, "data": 288, "name": 296},
        **{"op_params_size": 80, "max_src": 12, "name_size": 72},
    }
    assert layout.cgraph == {"n_nodes": 12, "n_leafs": 16, "nodes": 24, "leafs": 32, "uid": 40}
    assert layout.cplan == {"n_threads": 16}
    assert layout.backend == {"guid": 0, "get_name": 24}
    assert layout.buffer == {"usage": 88, "owner": 16}
    assert layout.flags["compute"] == 32


def skipped_because(plan: ProbePlan) -> str:
    assert plan.layout is None
    return next(s.reason for s in plan.skipped if s.role == "graph")


def test_without_debug_information_it_is_unknown(tmp_path: Path) -> None:
    plan = plan_of(build(tmp_path, COMPILERS[0], "-DDECODE"))
    assert "too little" in skipped_because(plan) or "no known layout" in skipped_because(plan)


def test_debug_information_of_another_build_is_refused(tmp_path: Path) -> None:
    """The code is what runs: here it reads the name somewhere else."""
    plan = plan_of(build(tmp_path, COMPILERS[0], "-g", "-DDECODE", "-UNAME", "-DNAME=name + 8"))
    assert "debug information is not this engine's" in skipped_because(plan)


def take_debug_apart(path: Path, apart: Path, *, link: bool) -> None:
    subprocess.run(["objcopy", "--only-keep-debug", path, apart], check=True)
    subprocess.run(["strip", "--strip-all", path], check=True)
    if link:
        subprocess.run(["objcopy", f"--add-gnu-debuglink={apart}", path], check=True)


@pytest.mark.parametrize("folder", [".", ".debug"])
def test_a_linked_debug_file_is_found(tmp_path: Path, folder: str) -> None:
    path = build(tmp_path, COMPILERS[0], "-g")
    apart = tmp_path / folder / "libggml.so.debug"
    apart.parent.mkdir(exist_ok=True)
    take_debug_apart(path, apart, link=True)
    image = ElfImage(path)
    assert image.section(".symtab") is None
    assert image.names_from == ".symtab of libggml.so.debug"
    layout = plan_of(path).layout
    assert layout is not None and "libggml.so.debug" in layout.evidence


def test_a_changed_debug_file_is_passed_over(tmp_path: Path) -> None:
    path = build(tmp_path, COMPILERS[0], "-g")
    apart = tmp_path / "libggml.so.debug"
    take_debug_apart(path, apart, link=True)
    apart.write_bytes(apart.read_bytes() + b"\0")
    assert ElfImage(path).debug is None


def test_a_debug_file_may_be_given(tmp_path: Path) -> None:
    path = build(tmp_path, COMPILERS[0], "-g", "-Wl,--build-id=sha1")
    apart = tmp_path / "elsewhere.debug"
    take_debug_apart(path, apart, link=False)
    assert ElfImage(path).debug is None
    plan = plan_of(path, apart)
    assert plan.layout is not None and "elsewhere.debug" in plan.layout.evidence
    assert plan.engine_json()["images"][0]["names"] == ".symtab of elsewhere.debug"
    other = tmp_path / "other"
    other.mkdir()
    wrong = build(other, COMPILERS[0], "-g", "-O1", "-Wl,--build-id=sha1")
    with pytest.raises(TargetError, match="not the debug file"):
        plan_of(path, wrong)


def test_a_stripped_program_with_an_engine_says_what_to_do(tmp_path: Path) -> None:
    source = tmp_path / "main.c"
    source.write_text(
        '#include <stdio.h>\nstatic const char *volatile texts[] = {"GGML_ASSERT", "token_embd"};\n'
        "int ggml_graph_compute(void) { return puts(texts[0]) + puts(texts[1]); }\n"
        "int main(void) { return ggml_graph_compute(); }\n"
    )
    path = tmp_path / "main"
    subprocess.run([COMPILERS[0], "-O1", "-o", path, source], check=True)
    open_program(path)
    subprocess.run(["strip", path], check=True)
    with pytest.raises(TargetError, match="names are stripped"):
        open_program(path)
