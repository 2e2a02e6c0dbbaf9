"""Splits of other backends, copies, waits and their own work, out of records made by hand."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from builders import METADATA, Graph, Node, TraceBuilder, metadata

from profinfer.analysis import backends as view
from profinfer.analysis import backendwork, overview
from profinfer.analysis.hosttime import host_time
from profinfer.engine.catalog import guid_of
from profinfer.model.backendnames import BackendNames
from profinfer.model.backends import served_command
from profinfer.model.trace import Trace
from profinfer.tracefile import schema
from profinfer.tracefile.schema import Kind

TID, CALLER = 77, 0xC0
LIBRARY = "/opt/llama/libggml-rpc.so"
# Addresses of functions: in a symbol's place, in a library without symbols, nowhere.
CPU_BASE, RPC_BASE, NOWHERE = 0x10_0010, 0x20_0040, 0x99_0000
ROLES = {20: "sync", 21: "copy.tensor", 22: "copy.set", 23: "work.gemm", 24: "work.send",
         25: "work.recv", 26: "work.serve", 27: "copy.get.async"}  # fmt: skip
PROBES = [*METADATA["plan"]["probes"]] + [
    {"id": number, "role": role, "function": "_ZN10rpc_server13graph_computeERKSt6vectorIhSaIhEE"
     if role == "work.serve" else role, "kind": "uprobe"}
    for number, role in ROLES.items()
]  # fmt: skip


class Builder(TraceBuilder):
    def __init__(self) -> None:
        functions = [{"path": "/opt/llama/libggml-cpu.so.0", "offset": 0x10,
                      "name": "ggml_backend_cpu_buffer_get_base"}]  # fmt: skip
        super().__init__(
            plan={"probes": PROBES},
            engine={"functions": functions},
            maps=[[0x10_0000, 0x18_0000, 0, "/opt/llama/libggml-cpu.so.0"],
                  [0x20_0000, 0x28_0000, 0, LIBRARY]],
        )  # fmt: skip

    def end(self, ts: int, probe: int, tid: int = TID) -> None:
        self.record(Kind.BACKEND_END, tid, ts, struct.pack("<Ii", probe, 0))

    def sync(self, ts: int, end: int, backend: int, name: str = "RPC") -> None:
        guid = bytes.fromhex(guid_of(name))
        body = struct.pack("<QQ16sII", backend, 0, guid, 20, 0)
        self.record(Kind.SYNC_BEGIN, TID, ts, body)
        self.end(end, 20)

    def copy(
        self, ts: int, node: Node, source: int, target: int, what: int, probe: int, size: int
    ) -> None:
        body = struct.pack("<QQQQQQII", 0, 1, 2, size, source, target, what, probe)
        self.record(Kind.COPY_BEGIN, TID, ts, body + node.raw(self.layout))

    def work(self, ts: int, end: int, probe: int, *values: int, tid: int = TID) -> None:
        padded = (*values, 0, 0, 0, 0)[:4]
        self.record(Kind.WORK_BEGIN, tid, ts, struct.pack("<QQQQII", *padded, probe, 0))
        self.end(end, probe, tid)

    def split(
        self, ts: int, end: int, graph: Graph, name: str = "BLAS", backend: int = 0xB1
    ) -> None:
        _, changed = self.define(graph, TID, ts - 5)
        flags = schema.SPLIT_READ | (schema.SPLIT_CHANGED if changed else 0)
        guid = bytes.fromhex(guid_of(name))
        n = len(graph.nodes)
        body = struct.pack("<QQQQ16sII", backend, graph.cgraph, 0, 0, guid, n, 2)
        self.record(Kind.SPLIT_BEGIN, TID, ts, body, flags)
        if end:
            self.split_end(TID, end)


def products(cgraph: int = 0xD0) -> Graph:
    """A product of two heads, a view, and a product: three calls of the library."""
    weight = Node("blk.0.attn_q.weight", op="NONE", ne=(64, 32))
    x = Node("x", op="NONE", ne=(64, 5))
    heads = Node("kq-0", ne=(32, 5, 2), src=(weight, x))
    view_of = Node("kq-0 (view)", op="VIEW", ne=(32, 5), src=(heads,))
    last = Node("Qcur-0", ne=(32, 5), src=(weight, x))
    return Graph(nodes=[heads, view_of, last], leafs=[weight, x], cgraph=cgraph)


def opened(builder: TraceBuilder, path: Path) -> Trace:
    return Trace.open(builder.write(path / "t.pf"))


def test_library_calls_are_dealt_to_operators_in_order(tmp_path: Path) -> None:
    b = Builder()
    b.call_begin(TID, 1000, n_tokens=5, pos_first=0)
    b.split(2000, 0, products())
    for begin, end in ((2100, 2200), (2210, 2300), (2450, 2490)):
        b.work(begin, end, 23, 5, 32, 64)
    b.split_end(TID, 2500)
    b.call_end(TID, 3000)
    trace = opened(b, tmp_path)
    ops = trace.backend_ops
    assert trace.nodes["name"].to_numpy()[ops["node_id"]].tolist() == ["kq-0", "Qcur-0"]
    assert ops["begin_ns"].tolist() == [2000, 2300]
    assert ops["end_ns"].tolist() == [2300, 2490]
    assert ops["library_ns"].tolist() == [190, 40]
    result = backendwork.operators(trace, trace.select())
    assert result.total == {"calls": 2, "time_ns": 490, "share": 1.0, "library_share": 230 / 490}


def test_calls_that_do_not_fit_are_dealt_to_nobody(tmp_path: Path) -> None:
    b = Builder()
    b.split(2000, 0, products())
    b.work(2100, 2200, 23, 5, 32, 64)
    b.split_end(TID, 2500)
    trace = opened(b, tmp_path)
    assert len(trace.backend_ops) == 0 and len(trace.backend_work) == 1


def test_a_split_runs_what_was_read_last_of_its_graph(tmp_path: Path) -> None:
    one, other = products(), products()
    other.nodes.pop()
    b = Builder()
    b.split(2000, 2100, one)
    b.split(3000, 3100, one)
    b.split(4000, 4100, other)
    b.split(5000, 5100, other)
    trace = opened(b, tmp_path)
    assert trace.splits["def_id"].tolist() == [0, 0, 1, 1]
    assert trace.nodes.groupby("def_id").size().tolist() == [3, 2]
    assert trace.splits["backend"].tolist() == ["BLAS"] * 4


def test_a_cpu_split_has_no_definition_of_its_own(tmp_path: Path) -> None:
    b = Builder()
    b.split(2000, 2100, products())
    guid = bytes.fromhex(guid_of("CPU"))
    b.split_begin(TID, 3000, cgraph=0xD0, n_nodes=3, guid=guid)
    b.split_end(TID, 3100)
    assert opened(b, tmp_path).splits["def_id"].tolist() == [0, -1]


def test_copies_nest_and_know_their_ends(tmp_path: Path) -> None:
    tensor = Node("RPC0#inp_pos#0", op="NONE", type="f32", ne=(10, 3), nb=(4, 64, 192, 192))
    b = Builder()
    b.call_begin(TID, 1000)
    b.copy(1100, tensor, CPU_BASE, RPC_BASE, schema.COPY_TENSOR, 21, schema.COPY_WHOLE)
    b.copy(1110, tensor, 0, RPC_BASE, schema.COPY_SET, 22, 168)
    b.end(1190, 22)
    b.end(1200, 21)
    b.copy(1300, tensor, RPC_BASE, 0, schema.COPY_GET, 27, 40)
    b.end(1350, 27)
    b.copy(1400, tensor, 0, CPU_BASE, schema.COPY_SET, 22, 12)
    b.end(1410, 22)
    b.copy(1500, tensor, 0, NOWHERE, schema.COPY_SET, 22, 8)
    b.end(1510, 22)
    b.call_end(TID, 2000)
    trace = opened(b, tmp_path)
    copies = trace.copies
    # From the first byte to the last: 2 strides and a row of 40 bytes (ggml_nbytes).
    assert copies["bytes"].tolist() == [168, 168, 40, 12, 8]
    assert copies["source"].tolist() == ["CPU", "host", "RPC", "host", "host"]
    assert copies["target"].tolist() == ["RPC", "RPC", "host", "CPU", ""]
    assert copies["crosses"].tolist() == [True, True, True, False, True]
    assert copies["outermost"].tolist() == [True, False, True, True, True]
    assert copies["kind"].tolist() == ["copy", "set", "get", "set", "set"]
    shown = view.copies(trace, trace.select()).frame
    assert shown[["source", "target", "tensor"]].values.tolist()[0] == ["CPU", "RPC", "inp_pos"]
    assert trace.losses["unreadable"] == 0 and not trace.problems


def test_work_is_done_when_somebody_has_waited_for_it(tmp_path: Path) -> None:
    b = Builder()
    b.call_begin(TID, 1000)
    b.split(1100, 1150, products(), "RPC", backend=0xB2)
    b.split(1200, 1250, products(0xE0), "RPC", backend=0xB2)
    b.split(1300, 1400, products(0xF0), "BLAS", backend=0xB3)
    b.sync(1400, 1420, 0xB9)  # another one
    b.call_end(TID, 1500)
    b.sync(1600, 1900, 0xB2)
    b.call_begin(TID, 2500)
    b.split(2600, 2650, products(), "RPC", backend=0xB2)
    b.call_end(TID, 2700)
    trace = opened(b, tmp_path)
    assert trace.splits["done_ns"].tolist() == [1900, 1900, 1400, -1]
    assert trace.splits["instance"].tolist() == [1, 1, 1, 1]
    frame = view.by_backend(trace, trace.select()).frame.set_index("backend")
    # What is queued behind another counts once: 1100 to 1900, and the last one as it was seen.
    assert frame.loc["RPC", "busy_ns"] == 800 + 50
    assert frame.loc["RPC", "submit_ns"] == 150
    assert frame.loc["RPC", "wait_ns"] == 300 and frame.loc["BLAS", "wait_ns"] == 0
    assert frame.loc["RPC", "open_splits"] == 1
    host = host_time(trace)
    assert host.work.tolist() == [200, 50]
    assert host.waits.tolist() == [20, 0] and host.waits_between.tolist() == [300, 0]
    ledger = overview.ledger(trace, trace.select()).frame.set_index("part")["time_ns"]
    assert ledger.sum() == 1500 + 200  # from the first call to the second, and that one
    assert (ledger >= 0).all()


def test_two_backends_of_a_name_are_numbered(tmp_path: Path) -> None:
    b = Builder()
    b.call_begin(TID, 1000)
    b.split(1100, 1150, products(), "CUDA", backend=0xB2)
    b.split(1200, 1250, products(0xE0), "CUDA", backend=0xB3)
    b.call_end(TID, 1500)
    trace = opened(b, tmp_path)
    assert view.labels(trace.splits).tolist() == ["CUDA", "CUDA 2"]
    assert set(view.by_backend(trace, trace.select()).frame["backend"]) == {"CUDA", "CUDA 2"}


def test_messages_by_command(tmp_path: Path) -> None:
    b = Builder()
    b.call_begin(TID, 1000)
    b.call_end(TID, 9000)
    talker = 90
    # command 16 (GRAPH_RECOMPUTE), its length, its payload; then GET_TENSOR and the answer
    for ts, size, byte in ((2000, 1, 16), (2020, 8, 0), (2040, 4, 0), (3000, 1, 8), (3020, 8, 0),
                           (3040, 64, 0)):  # fmt: skip
        b.work(ts, ts + 10, 24, size, byte, 0x50, tid=talker)
    b.work(3100, 3500, 25, 8, 0, 0x50, tid=talker)
    b.work(3500, 3600, 25, 4096, 0, 0x50, tid=talker)
    # A message of one byte that no length follows is no command.
    b.work(4000, 4010, 24, 1, 3, 0x50, tid=talker)
    trace = opened(b, tmp_path)
    frame = backendwork.messages(trace, trace.select()).frame.set_index("command")
    assert frame.loc["GRAPH_RECOMPUTE", "sent_bytes"] == 13
    assert frame.loc["GET_TENSOR"].tolist() == [1, 74, 4104, 40, 500, 0]
    assert frame["messages"].sum() == 2


def test_a_server_is_told_by_what_it_serves(tmp_path: Path) -> None:
    b = Builder()
    b.work(1000, 1500, 25, 100, tid=90)  # brings the command that is served next
    b.work(1600, 1900, 26, tid=90)
    b.work(1900, 1950, 24, 8, 0, tid=90)  # its answer
    b.call_begin(TID, 100)
    b.call_end(TID, 3000)
    trace = opened(b, tmp_path)
    frame = backendwork.messages(trace, trace.select()).frame
    assert frame["command"].tolist() == ["GRAPH_COMPUTE"]
    assert frame.iloc[0].tolist()[1:] == [1, 8, 100, 50, 500, 300]


@pytest.mark.parametrize(
    ("symbol", "name"),
    [
        ("ggml_backend_cpu_get_name", "CPU"),
        ("_ZL25ggml_backend_cuda_get_nameP12ggml_backend", "CUDA"),
        ("ggml_backend_blas_get_name", "BLAS"),
        ("_ZL31ggml_backend_vk_buffer_get_baseP19ggml_backend_buffer", "Vulkan"),
        ("ggml_backend_opencl_buffer_free_buffer", "OpenCL"),
        ("ggml_backend_cuda_host_buffer_free_buffer", "CPU"),
        ("ggml_backend_cpu_buffer_get_base", "CPU"),
        ("ggml_backend_multi_buffer_free_buffer", ""),
        ("", ""),
    ],
)
def test_a_function_names_its_backend(symbol: str, name: str) -> None:
    meta = metadata(
        engine={"functions": [{"path": "/lib/engine.so", "offset": 64, "name": symbol}]},
        maps=[[4096, 8192, 0, "/lib/engine.so"]],
    )
    names = BackendNames(meta, None)
    assert names.owner(4096 + 64) == name
    assert names.backend(guid_of("RPC"), 4096 + 64) == "RPC"  # a GUID is better evidence
    assert names.owner(99) == ""


def test_a_library_names_its_backend_where_symbols_are_gone() -> None:
    meta = metadata(maps=[[4096, 8192, 0, "/x/libggml-vulkan.so"], [9000, 9999, 0, "/x/a.so"]])
    names = BackendNames(meta, None)
    assert names.owner(5000) == "Vulkan" and names.owner(9100) == ""


def test_names_of_served_commands() -> None:
    assert served_command("_ZN10rpc_server15graph_recomputeERK27rpc_msg") == "GRAPH_RECOMPUTE"
    assert served_command("send_data") == ""


def test_traces_without_any_of_it_have_empty_tables(tmp_path: Path) -> None:
    b = TraceBuilder()
    b.call_begin(TID, 1000)
    b.call_end(TID, 2000)
    trace = opened(b, tmp_path)
    for table in (trace.copies, trace.syncs, trace.backend_work, trace.backend_ops, trace.splits):
        assert len(table) == 0
    assert not view.has_others(trace)
    assert np.all(host_time(trace).work == 0)
