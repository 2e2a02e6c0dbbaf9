"""Drafts and their checks, device times, two recordings compared, timelines of backends."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
from collections import Counter
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

import pandas as pd
import perfetto_check
import pytest
from builders import TraceBuilder, sample_run
from test_backend_model import TID, Builder, opened, products

from profinfer.analysis import backendfindings, comparison, contexts, devicetimes, lifeledger
from profinfer.cli import group, run
from profinfer.elf.modules import open_program
from profinfer.elf.plugins import plugins
from profinfer.errors import UsageProblem
from profinfer.model.trace import Trace
from profinfer.probes.backend_catalog import BACKEND_SPECS, backends_apart
from profinfer.probes.plan import make_plan
from profinfer.render.backendtracks import backend_events
from profinfer.render.perfetto import write
from profinfer.render.timeline import Timeline
from profinfer.tracefile import schema

TARGET, DRAFT = 0xC0, 0xC1


# --- drafts --------------------------------------------------------------------------------


def drafted(path: Path) -> Trace:
    """A prompt, then three drafts of four tokens, of which 0, 1 and 4 are kept."""
    b = TraceBuilder()
    ts = [1000]

    def call(ctx: int, pos: int, n: int, outputs: int) -> None:
        at = ts[0]
        ts[0] += 1000
        b.call_begin(TID, at, n_tokens=n, pos_first=pos, pos_last=pos + n - 1, ctx=ctx,
                     seq=0 if n == 1 else -1)  # fmt: skip
        if n > 1:
            body = struct.pack("<QIIII", ctx, n, 0, 1, 0) + struct.pack("<iiII", 0, pos, n, outputs)
            b.record(schema.Kind.SEQS, TID, at, body.ljust(24 + 16 * 32, b"\0"))
        b.call_end(TID, at + 500)

    call(TARGET, 0, 8, 0)
    call(DRAFT, 0, 8, 1)
    for pos in (8, 9, 11):
        for step in range(4):
            call(DRAFT, pos + step, 1, 1)
        call(TARGET, pos, 5, 5)
        call(DRAFT, pos, 5, 1)
    call(TARGET, 16, 1, 1)
    return opened(b, path)


def test_checks_of_drafts_are_no_prompts(tmp_path: Path) -> None:
    trace = drafted(tmp_path)
    phases = trace.calls.groupby("ctx")["phase"].agg(lambda p: Counter(map(str, p)))
    assert phases[TARGET] == {"prefill": 1, "verify": 3, "decode": 1}
    assert phases[DRAFT] == {"prefill": 1, "decode": 12, "verify": 3}
    assert trace.calls["generation"].max() == 0  # all of it is one answer
    found = contexts.checks(trace)
    assert found["drafted"].tolist() == [4, 4, 4]
    assert found["accepted"].tolist() == [0, 1, 4]
    view = contexts.contexts(trace)
    assert view.frame["part"].tolist() == ["target", "draft"]
    assert view.frame["accepted"].tolist()[0] == 5
    assert (
        "5 of 12 drafted tokens were accepted (41.7 %), 2.67 tokens a check" in view.notes[0].text
    )


def test_the_whole_run_has_a_row_for_checks(tmp_path: Path) -> None:
    frame = lifeledger.ledger(drafted(tmp_path)).frame.set_index("part")
    assert frame["time_ns"]["verify.build"] == 6 * 500  # of both contexts, no graphs seen


def test_without_drafts_several_tokens_are_a_prompt(tmp_path: Path) -> None:
    b = TraceBuilder()
    for number, (pos, n) in enumerate([(0, 8), (8, 1), (9, 5), (14, 1)]):
        ts = 1000 * (number + 1)
        b.call_begin(TID, ts, n_tokens=n, pos_first=pos, pos_last=pos + n - 1)
        if n > 1:
            b.seqs(TID, ts, [(0, pos, n)])  # the logits of one token
        b.call_end(TID, ts + 500)
    trace = opened(b, tmp_path)
    assert trace.calls["phase"].tolist() == ["prefill", "decode", "prefill", "decode"]
    assert len(contexts.checks(trace)) == 0


# --- device times ---------------------------------------------------------------------------

VULKAN = """load_backend: something
----------------
Vulkan Timings:
ADD: 2 x 10084.5 us = 20168.9 us
FLASH_ATTN_EXT dst(64,9,1,1),  q(64,1,9,1),  k(64,256,3,1),  v(64,256,3,1),  m(256,1,1,1): 7 x 10 us = 70 us (0.4 GFLOPS/s)
MUL_MAT_ADD MUL_MAT_VEC q4_1 m=576 n=1 k=1536: 7 x 989.831 us = 6928.82 us (1.78707 GFLOPS/s)
MUL_MAT f16 m=64 n=5 k=32 batch=9: 1 x 2 us = 2 us
MUL_MAT_ID_VEC q4_0 m=64 n=2 k=128 n_expert=8: 3 x 1 us = 3 us
RMS_NORM_MUL RMS_NORM(576,1,1,1): 15 x 2 us = 30 us
what is this
Total time: 295697 us.
Vulkan Timings:
ADD: 1 x 1 us = 1 us
Total time: 1 us.
"""  # noqa: E501 - as the engine prints it


def test_the_vulkan_perf_logger_is_read() -> None:
    times = devicetimes.read(VULKAN, "vk.log")
    assert (times.backend, times.skipped) == ("Vulkan", 1)
    rows = times.rows
    assert rows["block"].tolist() == [0] * 6 + [1]
    assert rows["op"].tolist() == ["ADD", "FLASH_ATTN_EXT", "MUL_MAT", "MUL_MAT", "MUL_MAT_ID",
                                   "RMS_NORM", "ADD"]  # fmt: skip
    assert rows["problem"].tolist() == ["", "64x9 kv 256", "576x1536x1", "64x32x5 *9", "64x128x2",
                                        "576", ""]  # fmt: skip
    assert rows["types"].tolist()[2:5] == ["q4_1", "f16", "q4_0"]
    assert rows["runs"].tolist() == [2, 7, 7, 1, 3, 15, 1]
    assert rows["time_ns"].tolist()[2] == 6_928_820


def test_an_opencl_profile_is_read_and_named_by_its_tensors(tmp_path: Path) -> None:
    text = (
        "op name, kernel name, exec duration (ms), global size, local size, output size\n"
        "Qcur-0,kernel_mul_mat_q4_0_f32,0.250000,64x1x1,64x1x1,32x5x1x1\n"
        "nowhere,kernel_add,0.001000,64x1x1,64x1x1,576x1x1x1\n"
        "torn\n"
    )
    times = devicetimes.read(text, "cl_profiling.csv")
    assert (times.backend, times.skipped) == ("OpenCL", 1)
    b = Builder()
    b.call_begin(TID, 1000)
    b.split(1100, 1200, products(), "OpenCL")
    b.call_end(TID, 2000)
    trace = opened(b, tmp_path)
    view = devicetimes.device_times(trace, trace.select(), times)
    first = view.frame.iloc[0]
    assert (first["op"], first["problem"], first["types"]) == ("MUL_MAT", "32x64x5", "f32")
    assert first["time_ns"] == 250_000 and view.total is not None
    assert view.total["time_ns"] == 251_000
    assert any("1 line of the profile not understood" in note.text for note in view.notes)


def test_parts_of_a_profile_go_to_the_calls_of_their_splits(tmp_path: Path) -> None:
    b = Builder()
    for number, n in enumerate((5, 1)):
        ts = 1000 * (number + 1)
        b.call_begin(TID, ts, n_tokens=n, pos_first=5 * number)
        b.split(ts + 100, ts + 200, products(), "Vulkan")
        b.call_end(TID, ts + 500)
    trace = opened(b, tmp_path)
    times = devicetimes.read(VULKAN, "vk.log")
    decode = devicetimes.device_times(trace, trace.select(phase="decode"), times)
    assert decode.frame["op"].tolist() == ["ADD"] and decode.total is not None
    assert decode.total["time_ns"] == 1000
    short = devicetimes.read(VULKAN + VULKAN, "vk.log")
    whole = devicetimes.device_times(trace, trace.select(phase="decode"), short)
    assert any("they cannot be told apart by call" in note.text for note in whole.notes)


def test_device_times_are_in_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    b = Builder()
    for number, n in enumerate((5, 1)):
        ts = 1000 * (number + 1)
        b.call_begin(TID, ts, n_tokens=n, pos_first=5 * number)
        b.split(ts + 100, ts + 200, products(), "Vulkan")
        b.call_end(TID, ts + 500)
    trace, log, out = b.write(tmp_path / "vk.pf"), tmp_path / "vk.log", tmp_path / "vk.html"
    log.write_text(VULKAN)
    args = ["report", str(trace), "--device-times", str(log)]
    assert run(group, [*args, "--html", str(out)]) == 0
    page = out.read_text()
    assert 'id="backends-device_times"' in page and 'id="backends-2-device_times"' in page
    assert "On the device, by" in page and "FLASH_ATTN_EXT" in page
    # What would be passed over is refused.
    refused = [
        (["--html", str(out), "--op", "ADD"], "are of whole graphs"),
        (["--plots", str(tmp_path / "p")], "--by backend, or --html FILE"),
    ]
    for more, says in refused:
        assert run(group, [*args, *more]) == 2
        assert says in capsys.readouterr().err
    cpu = sample_run(layers=1).builder.write(tmp_path / "cpu.pf")
    args[1] = str(cpu)
    assert run(group, [*args, "--html", str(tmp_path / "cpu.html")]) == 2
    assert "no other backend than the CPU" in capsys.readouterr().err


def test_what_is_no_profile_is_refused() -> None:
    with pytest.raises(UsageProblem, match="no device times"):
        devicetimes.read("root:x:0:0\n", "/etc/passwd")


# --- comparisons and findings -------------------------------------------------------------------


def side(rows: list[tuple[str, str, int, int]], call_ns: float) -> comparison.Side:
    """(problem, backend, runs, time) of MUL_MATs, in one call of so many ns."""
    frame = pd.DataFrame(rows, columns=["problem", "backend", "runs", "time_ns"])
    table = frame.assign(op="MUL_MAT", types="q4_0").set_index(["op", "problem", "types"])
    return comparison.Side(table, call_ns, 1)


@pytest.mark.parametrize(
    ("call_ns", "names"), [(500_000, ["moved", "calls"]), (990_000, ["moved", "gain_eaten"])]
)
def test_whether_the_gain_is_eaten(call_ns: float, names: list[str]) -> None:
    frame = pd.DataFrame(
        {"backend": ["BLAS", "BLAS", "CPU"], "other_backend": ["CPU"] * 3,
         "saved_ns": [600_000.0, -100_000.0, 9_000.0]}
    )  # fmt: skip
    empty = side([], 0)
    here, there = replace(empty, call_ns=call_ns), replace(empty, call_ns=1_000_000)
    found = comparison.verdicts(frame, here, there)
    assert [f.name for f in found] == names
    assert "1 kind of operator won 600 µs and 1 lost 100 µs a call" in found[0].text
    if "gain_eaten" in names:
        assert found[1].share == pytest.approx(0.49)
        assert "of 500 µs that operators won a call, 490 µs (98.0 %)" in found[1].text


def test_copies_that_take_long_are_a_finding(tmp_path: Path) -> None:
    from builders import Node
    from test_backend_model import CPU_BASE, RPC_BASE

    def run(copy_ns: int) -> list[str]:
        b = Builder()
        b.call_begin(TID, 1000)
        x = Node("x", op="NONE", ne=(64,))
        b.copy(1100, x, CPU_BASE, RPC_BASE, schema.COPY_TENSOR, 21, schema.COPY_WHOLE)
        b.end(1100 + copy_ns, 21)
        b.split(5000, 5100, products(), "RPC")
        b.call_end(TID, 11_000)
        trace = opened(b, tmp_path)
        return [f.text for f in backendfindings.findings(trace, trace.select())]

    assert run(500) == []
    (text,) = run(2000)
    assert text.startswith(
        "copies between backends take 20.0 % of the calls' time: 1 copies of 256 B"
    )
    assert "from CPU to RPC" in text


# --- timelines ------------------------------------------------------------------------------------


def client(b: Builder) -> None:
    b.call_begin(TID, 1000)
    b.split(1100, 1150, products(), "RPC", backend=0xB2)
    b.sync(1400, 1800, 0xB2)
    b.call_end(TID, 2000)
    for ts, size, byte in ((1120, 1, 10), (1130, 8, 0), (1140, 400, 0)):  # GRAPH_COMPUTE
        b.work(ts, ts + 5, 24, size, byte, tid=90)


def test_backends_and_a_server_on_one_timeline(tmp_path: Path) -> None:
    b = Builder()
    client(b)
    trace = opened(b, tmp_path)
    server_builder = Builder()
    server_builder.call_begin(TID, 500)
    server_builder.call_end(TID, 3000)
    server_builder.work(1200, 1700, 26, tid=91)
    server = Trace.open(server_builder.write(tmp_path / "server.pf"))
    timeline = replace(Timeline.of_trace(trace), backends=backend_events(trace, None, server))
    out = io.BytesIO()
    write(timeline, out)
    data = out.getvalue()
    report = perfetto_check.check(data)
    assert report.problems == []
    (busy,) = report.on("backend RPC")
    assert (busy.begin, busy.dur, busy.name) == (1100, 700, "3 nodes")
    (wait,) = report.on("waits for RPC")
    assert (wait.begin, wait.dur) == (1400, 400)
    (message,) = report.on("RPC connection")
    assert (message.name, message.args["bytes"]) == ("GRAPH_COMPUTE", 409)
    (track,) = [d.name for d in report.tracks.values() if d.name.endswith(": serving")]
    (served,) = report.on(track)
    assert (served.begin, served.dur, served.name) == (1200, 500, "GRAPH_COMPUTE")
    begun, ended = Counter(), Counter()
    for _, packet in perfetto_check.packets(data):
        begun.update(packet.track_event.flow_ids)
        ended.update(packet.track_event.terminating_flow_ids)
    assert begun == ended and len(begun) == 2  # split to backend, message to server


def test_a_server_of_another_machine_is_refused(tmp_path: Path) -> None:
    b = Builder()
    client(b)
    trace = opened(b, tmp_path)
    other = Builder()
    other.meta["host"]["hostname"] = "elsewhere"
    client(other)
    server = Trace.open(other.write(tmp_path / "other.pf"))
    with pytest.raises(UsageProblem, match="another machine"):
        backend_events(trace, None, server)


@pytest.mark.parametrize(
    ("served", "says"),
    [
        ([], "is no recording of an RPC server"),
        ([(2_000_000_000, 26)], "is a recording at another time"),
        ([(10, 26)], "is a recording at another time"),
        ([(1200, 28)], "is a recording of other commands"),
    ],
)
def test_what_is_no_server_of_it_is_refused(
    tmp_path: Path, served: list[tuple[int, int]], says: str
) -> None:
    b = Builder()
    client(b)
    trace = opened(b, tmp_path)
    other = Builder()
    alloc = {"id": 28, "role": "work.serve", "kind": "uprobe"}
    alloc["function"] = "_ZN10rpc_server12alloc_bufferERK"
    other.meta["plan"]["probes"] = [*other.meta["plan"]["probes"], alloc]
    other.call_begin(TID, 1)
    for ts, function in served:
        other.work(ts, ts + 50, function, tid=91)
    other.call_end(TID, 3_000_000_000)
    server = Trace.open(other.write(tmp_path / "server.pf"))
    # Also where only some calls are exported, of which no message is drawn.
    for selection in (None, trace.select(phase="decode")):
        with pytest.raises(UsageProblem, match=says):
            backend_events(trace, selection, server)


def test_what_sent_nothing_has_no_server(tmp_path: Path) -> None:
    b = Builder()
    b.call_begin(TID, 1000)
    b.call_end(TID, 2000)
    trace = opened(b, tmp_path)
    server = Builder()
    server.work(1200, 1700, 26, tid=91)
    with pytest.raises(UsageProblem, match="sent nothing to an RPC server"):
        backend_events(trace, None, Trace.open(server.write(tmp_path / "server.pf")))


# --- what is probed, and when ---------------------------------------------------------------------

BACKEND = """
extern "C" int ggml_backend_vk_reg() { return 1; }
struct ggml_backend_vk_context; struct ggml_cgraph; struct ggml_tensor; struct vk_context { int a; };
struct ggml_backend;
__attribute__((noinline)) bool ggml_vk_build_graph(ggml_backend_vk_context *c, ggml_cgraph *g, int n,
    ggml_tensor *t, int a, bool b, bool d, bool e) { asm volatile("" :: "r"(c), "r"(g)); return n > a; }
__attribute__((noinline)) void ggml_vk_submit(vk_context &c, void *f) { c.a++; asm volatile("" :: "r"(f)); }
extern "C" bool use(ggml_backend_vk_context *c, ggml_cgraph *g, ggml_tensor *t, vk_context &v) {
    ggml_vk_submit(v, g); return ggml_vk_build_graph(c, g, 1, t, 0, true, true, true); }
namespace { __attribute__((noinline, used)) bool unused() { return true; } }
static __attribute__((noinline, used)) bool ggml_backend_vk_cpy_tensor_async(ggml_backend *a,
    ggml_backend *b, const ggml_tensor *s, ggml_tensor *d) { asm volatile("" :: "r"(a), "r"(b)); return s != d; }
"""  # noqa: E501


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_a_device_backend_gets_its_probes(build_fake_ggml, tmp_path: Path) -> None:
    program = build_fake_ggml()
    for file in program.parent.iterdir():
        if file.is_file():
            shutil.copy(file, tmp_path)
    source = tmp_path / "vk.cpp"
    source.write_text(BACKEND)
    library = tmp_path / "libggml-vulkan.so"
    subprocess.run(["g++", "-O2", "-fPIC", "-shared", "-o", library, source], check=True)
    found = open_program(tmp_path / program.name)
    images = (*found.images, *open_program(library).images)
    plan = make_plan(replace(found, images=images), "graph")
    roles = {}
    for probe in plan.probes:
        roles.setdefault(probe.role, []).append(probe)
    assert [p.kind for p in roles["work.node"]] == ["uprobe", "uretprobe"]
    assert "ggml_vk_build_graph" in roles["work.node"][0].function
    assert [p.kind for p in roles["work.submit"]] == ["uprobe", "uretprobe"]
    assert "cpy_tensor_async" in roles["copy.backend"][0].function
    assert {p.image for p in roles["work.node"]} == {"libggml-vulkan.so"}
    # What this engine has not, and others have, is not worth a word each.
    assert not any(s.role.startswith(("work.", "copy.set.2d")) for s in plan.skipped)


def test_plugins_are_looked_for_where_the_engine_looks(build_fake_ggml, tmp_path: Path) -> None:
    found = open_program(build_fake_ggml())
    (tmp_path / "libggml-blas.so").write_bytes(b"")
    named = {"GGML_BACKEND_PATH": str(tmp_path / "libggml-blas.so")}
    assert list(plugins(found, named, tmp_path)) == []  # it has no registry that would load one

    class Registry:
        path = found.path

        def function(self, name: str) -> bool:
            return name == "ggml_backend_load_all"

    loader = replace(found, others=(Registry(),))  # type: ignore[arg-type]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert list(plugins(loader, named, elsewhere)) == [tmp_path / "libggml-blas.so"]
    assert list(plugins(loader, {}, tmp_path)) == [tmp_path.resolve() / "libggml-blas.so"]
    assert list(plugins(loader, {}, elsewhere)) == []


@pytest.mark.parametrize(
    ("symbol", "role"),
    [  # as they stand in libraries of PyPI's cyllama-vulkan and cyllama-cuda12 0.2.18
        ("_ZL34ggml_backend_cuda_cpy_tensor_asyncP12ggml_backendS0_PK11ggml_tensorPS1_",
         "copy.backend"),
        ("_ZL32ggml_backend_vk_cpy_tensor_asyncP12ggml_backendS0_PK11ggml_tensorPS1_",
         "copy.backend"),
        ("_ZL14ggml_vk_submitRSt10shared_ptrI17vk_context_structEN2vk5FenceE", "work.submit"),
        ("_Z19ggml_vk_build_graphP23ggml_backend_vk_contextP11ggml_cgraphiP11ggml_tensoribbb",
         "work.node"),
        ("_Z28ggml_vk_submit_transfer_ctxP23ggml_backend_vk_context", None),
        ("_ZL9send_dataiPKvm", "work.send"),
        ("_ZN10rpc_server13graph_computeERKSt6vectorIhSaIhEE", "work.serve"),
        ("_ZN10rpc_server11create_nodeEmP12ggml_context", None),
    ],
)  # fmt: skip
def test_symbols_of_prebuilt_libraries(symbol: str, role: str | None) -> None:
    matching = {
        spec.role for spec in BACKEND_SPECS if any(fnmatchcase(symbol, name) for name in spec.names)
    }
    assert matching == ({role} if role else set())


def test_backends_with_a_memory_of_their_own() -> None:
    """Symbols of real libraries: CPU and BLAS compute where the CPU does."""
    cpu = ["ggml_backend_cpu_reg", "ggml_backend_cpu_init", "ggml_backend_blas_reg",
           "ggml_backend_buffer_init", "ggml_backend_dev_init", "ggml_backend_view_init",
           "ggml_backend_dev_backend_reg", "ggml_backend_reg_get"]  # fmt: skip
    assert backends_apart(cpu) == set()
    assert backends_apart([*cpu, "ggml_backend_rpc_reg", "ggml_backend_vk_init"]) == {"rpc", "vk"}
