"""A program that uses ggml alone, with no llama.cpp: graphs and operators, no tokens."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from profinfer.model.trace import Trace

pytestmark = pytest.mark.e2e

APP = """
import ctypes as c, sys
base = c.CDLL(sys.argv[1], mode=c.RTLD_GLOBAL)
cpu = c.CDLL(sys.argv[2])

class InitParams(c.Structure):
    _fields_ = [("size", c.c_size_t), ("buffer", c.c_void_p), ("no_alloc", c.c_bool)]

P, I = c.c_void_p, c.c_int64
def fn(lib, name, result, *args):
    f = getattr(lib, name); f.restype, f.argtypes = result, args
    return f
init = fn(base, "ggml_init", P, InitParams)
new2d = fn(base, "ggml_new_tensor_2d", P, P, c.c_int, I, I)
name = fn(base, "ggml_set_name", P, P, c.c_char_p)
mul_mat = fn(base, "ggml_mul_mat", P, P, P, P)
add = fn(base, "ggml_add", P, P, P, P)
soft_max = fn(base, "ggml_soft_max", P, P, P)
new_graph = fn(base, "ggml_new_graph", P, P)
expand = fn(base, "ggml_build_forward_expand", None, P, P)
compute = fn(cpu, "ggml_graph_compute_with_ctx", c.c_int, P, P, c.c_int)

ctx = init(InitParams(64 << 20, None, False))
w = name(new2d(ctx, 0, 256, 128), b"weights")
x = name(new2d(ctx, 0, 256, 32), b"input")
y = name(mul_mat(ctx, w, x), b"product")
z = name(add(ctx, y, y), b"twice")
out = name(soft_max(ctx, z), b"answer")
graph = new_graph(ctx)
expand(graph, out)
for _ in range(20):
    assert compute(ctx, graph, 2) == 0
print("done")
"""


def test_graphs_of_a_program_without_llama(tmp_path: Path, llama_bin: Path, run_profinfer) -> None:
    (tmp_path / "app.py").write_text(APP)
    out = tmp_path / "t.pf"
    libraries = [llama_bin / "libggml-base.so", llama_bin / "libggml-cpu.so"]
    command = [sys.executable, tmp_path / "app.py", *libraries]
    done = run_profinfer("record", "-o", out, "--", *command)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "done\n"
    trace = Trace.open(out)
    assert trace.problems == []
    assert len(trace.calls) == 0
    assert len(trace.graphs) == 20
    assert trace.graphs["complete"].all()
    assert list(trace.nodes["op"]) == ["MUL_MAT", "ADD", "SOFT_MAX"]
    assert list(trace.nodes["name"]) == ["product", "twice", "answer"]
    assert list(trace.nodes["shape"]) == ["128x32", "128x32", "128x32"]
    assert list(trace.nodes["src0_name"]) == ["weights", "product", "twice"]
    assert len(trace.ops) == 20 * 3 * 2
    report = run_profinfer("report", out)
    assert report.returncode == 0, report.stderr
    assert "MUL_MAT" in report.stdout
