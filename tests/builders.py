"""Traces made in memory, from the bytes a kernel and a recorder would write.

``TraceBuilder`` has one method per record kind; ``run_graph`` plays a ggml graph loop over several
threads and returns what really happened, so that a test knows the right answer beforehand;
``sample_trace`` is a small whole run: warm-up, prefill, decode. No file is needed until ``write``.
"""

from __future__ import annotations

import copy
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from profinfer.tracefile.frames import pack_chunk_header, pack_file_header, padded
from profinfer.tracefile.metadata import TraceMetadata, merge
from profinfer.tracefile.packing import pack
from profinfer.tracefile.schema import (
    CNT_COUNT,
    CNT_LOST,
    CNT_OP_LOST,
    CNT_OP_RECORDS,
    CNT_SENT,
    FAULT_MAJOR,
    GRAPH_CHANGED,
    NUMBER_SHIFT,
    NUMBERS,
    OPS_CODE_LEAVE,
    OPS_COMPACT,
    OPS_DT_BITS,
    OPS_LAST,
    OPS_MAX_STEP,
    OPS_PER_BATCH,
    PTRS_LEAFS,
    PTRS_PER_RECORD,
    RING_DISCARD,
    RUNS_PER_RECORD,
    WARMUP_OFF,
    WARMUP_ON,
    ChunkKind,
    Kind,
    OpKind,
)

CALL_BEGIN, GRAPH_END = Kind.CALL_BEGIN, Kind.GRAPH_END
COPY_BEGIN, BACKEND_END = Kind.COPY_BEGIN, Kind.BACKEND_END

# ggml 0.25.3 (llama-cpp-python 0.3.36)
OPS = """NONE DUP ADD ADD_ID ADD1 ACC SUB MUL DIV SQR SQRT LOG SIN COS SUM SUM_ROWS CUMSUM MEAN
ARGMAX COUNT_EQUAL REPEAT REPEAT_BACK CONCAT SILU_BACK NORM RMS_NORM RMS_NORM_BACK GROUP_NORM
L2_NORM MUL_MAT MUL_MAT_ID OUT_PROD SCALE SET CPY CONT RESHAPE VIEW PERMUTE TRANSPOSE GET_ROWS
GET_ROWS_BACK SET_ROWS DIAG DIAG_MASK_INF DIAG_MASK_ZERO SOFT_MAX SOFT_MAX_BACK ROPE ROPE_BACK
CLAMP CONV_TRANSPOSE_1D IM2COL IM2COL_BACK IM2COL_3D COL2IM_1D CONV_2D CONV_3D CONV_2D_DW
CONV_TRANSPOSE_2D POOL_1D POOL_2D POOL_2D_BACK UPSCALE PAD PAD_REFLECT_1D ROLL ARANGE
TIMESTEP_EMBEDDING ARGSORT TOP_K LEAKY_RELU TRI FILL FLASH_ATTN_EXT FLASH_ATTN_BACK SSM_CONV
SSM_SCAN WIN_PART WIN_UNPART GET_REL_POS ADD_REL_POS RWKV_WKV6 GATED_LINEAR_ATTN RWKV_WKV7
SOLVE_TRI GATED_DELTA_NET LIGHTNING_INDEXER DSV4_HC_COMB DSV4_HC_PRE DSV4_HC_POST UNARY MAP_CUSTOM1
MAP_CUSTOM2 MAP_CUSTOM3 CUSTOM CROSS_ENTROPY_LOSS CROSS_ENTROPY_LOSS_BACK OPT_STEP_ADAMW
OPT_STEP_SGD GLU""".split()
UNARY_OPS = """ABS SGN NEG STEP TANH ELU RELU SIGMOID GELU GELU_QUICK SILU HARDSWISH HARDSIGMOID EXP
EXPM1 SOFTPLUS GELU_ERF XIELU FLOOR CEIL ROUND TRUNC""".split()
GLU_OPS = "REGLU GEGLU SWIGLU SWIGLU_OAI GEGLU_ERF GEGLU_QUICK SWIGLU_CLAMP".split()
TYPES: list[tuple[str, int, int] | None] = [
    ("f32", 1, 4),
    ("f16", 1, 2),
    ("q4_0", 32, 18),
    ("q4_1", 32, 20),
    None,
    None,
    ("q5_0", 32, 22),
    ("q5_1", 32, 24),
    ("q8_0", 32, 34),
    ("q8_1", 32, 36),
    ("q2_K", 256, 84),
    ("q3_K", 256, 110),
    ("q4_K", 256, 144),
    ("q5_K", 256, 176),
    ("q6_K", 256, 210),
    ("q8_K", 256, 292),
    *[None] * 8,
    ("i8", 1, 1),
    ("i16", 1, 2),
    ("i32", 1, 4),
    ("i64", 1, 8),
    ("f64", 1, 8),
    None,
    ("bf16", 1, 2),
]
EMPTY_OPS = {"NONE", "RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE"}
FLAG_COMPUTE = 16

PROBES = [
    (0, "call", "llama_decode", "libllama.so.0", "push rbx"),
    (1, "sample", "llama_sampler_sample", "libllama.so.0", "push rbp"),
    (2, "split", "ggml_backend_graph_compute_async", "libggml-base.so.0", "push rbx"),
    (3, "graph", "ggml_graph_compute", "libggml-cpu.so.0", "push rbp"),
    (4, "op-end", "ggml_graph_compute_thread", "libggml-cpu.so.0", "call ggml_barrier"),
    (5, "op-enter", "ggml_graph_compute_thread", "libggml-cpu.so.0", "push r15"),
    (6, "op-leave", "ggml_graph_compute_thread", "libggml-cpu.so.0", "call ggml_barrier"),
    (7, "warmup", "llama_set_warmup", "libllama.so.0", "push rbx"),
]

METADATA: dict[str, Any] = {
    "profinfer": "0.1.0",
    "created_utc": "2026-11-24T10:00:00Z",
    "target": {
        "argv": ["./llama-completion", "-m", "model.gguf", "-n", "4"],
        "cwd": "/home/user",
        "pid": 77,
        "exe": "/opt/llama/llama-completion",
    },
    "host": {
        "kernel": "6.18.0",
        "machine": "x86_64",
        "hostname": None,
        "cpu_model": "Example CPU",
        "cpus_online": 2,
        "topology": {"sockets": 1, "cores": 2, "threads_per_core": 1},
        "page_size": 4096,
        "memory_bytes": 8 << 30,
    },
    "clock": {
        "monotonic_ns": 1_000_000_000,
        "realtime_ns": 1_795_514_400_000_000_000,
        "boottime_ns": 1_000_000_000,
    },
    "engine": {
        "name": "llama.cpp",
        "version": "0.25.3",
        "evidence": "ggml_version() in libggml-base.so",
        "images": [
            {"path": "/opt/llama/libggml-cpu.so.0", "build_id": "c0ffee01", "role": "ggml-cpu"},
            {"path": "/opt/llama/libllama.so.0", "build_id": "c0ffee02", "role": "llama"},
        ],
        "layout": {
            "id": "ggml-2025",
            "evidence": "version table",
            "tensor_size": 336,
            "buffer_size": 128,
            "tensor": {
                "type": 0,
                "buffer": 8,
                "ne": 16,
                "nb": 48,
                "op": 80,
                "op_params": 84,
                "op_params_size": 64,
                "flags": 148,
                "src": 152,
                "max_src": 10,
                "view_src": 232,
                "view_offs": 240,
                "data": 248,
                "name": 256,
                "name_size": 64,
            },
            "cgraph": {"n_nodes": 4, "n_leafs": 8, "nodes": 16, "leafs": 40, "uid": 104},
            "cplan": {"n_threads": 16},
            "buffer": {"usage": 112},
            "flags": {"compute": FLAG_COMPUTE, "input": 1, "output": 2},
        },
        "ops": OPS,
        "ops_evidence": "GGML_OP_NAME in libggml-base.so",
        "unary_ops": UNARY_OPS,
        "glu_ops": GLU_OPS,
        "types": [t and {"name": t[0], "block": t[1], "size": t[2]} for t in TYPES],
        "types_evidence": "type_traits in libggml-base.so",
    },
    "plan": {
        "level": "op",
        "attached_by": "uprobe-multi link",
        "ops": {"mode": "site", "bias": 1, "barrier_always": False},
        "probes": [
            {
                "id": number,
                "role": role,
                "function": function,
                "image": image,
                "address": 0x1000 * (number + 1),
                "offset": 0x1000 * (number + 1),
                "insn": insn,
                "emulated": True,
                "cost_ns": 480,
                "kind": "uprobe",
            }
            for number, role, function, image, insn in PROBES
        ],
        "skipped": [
            {"function": "llama_process", "role": "call", "reason": "no such symbol in libllama.so"}
        ],
    },
    "sched": {
        "recorded": True,
        "why": None,
        "evidence": "BTF of the running kernel",
        "state_from": "argument 3 of sched_switch",
        "states": [[0x402, "I"], [0x80, "X"], [2, "D"], [1, "S"]],
        "recorder": 901,
    },
    "limits": {"cpus": [0, 1]},
    "ring_bytes": 16 << 20,
    "options": {},
}

TYPE_ID = {t[0]: i for i, t in enumerate(TYPES) if t}
OP_ID = {name: i for i, name in enumerate(OPS)}


def metadata(**changes: Any) -> TraceMetadata:
    """The sample metadata with ``changes`` merged in, e.g. ``plan={"ops": {"mode": "pair"}}``."""
    return TraceMetadata.from_json(merge(copy.deepcopy(METADATA), changes))


@dataclass(eq=False)
class Node:
    """A tensor of the engine. ``addr``, ``nb`` and ``data`` are made up when not given."""

    name: str
    op: str = "MUL_MAT"
    type: str = "f32"
    ne: tuple[int, ...] = (1, 1, 1, 1)
    src: tuple[Node | None, ...] = ()
    flags: int = FLAG_COMPUTE
    view_src: Node | None = None
    view_offs: int = 0
    params: bytes = b""
    buffer: int = 0x5000
    nb: tuple[int, ...] | None = None
    data: int | None = None
    addr: int = 0

    _next_addr = 0x7F00_0000_0000

    def __post_init__(self) -> None:
        self.ne = (*self.ne, 1, 1, 1, 1)[:4]
        if not self.addr:
            Node._next_addr += 336
            self.addr = Node._next_addr

    @property
    def empty(self) -> bool:
        return self.op in EMPTY_OPS or not self.flags & FLAG_COMPUTE

    def strides(self) -> tuple[int, ...]:
        if self.nb is not None:
            return self.nb
        kind = TYPES[TYPE_ID[self.type]]
        assert kind is not None
        _, block, size = kind
        row = size * self.ne[0] // block
        return (size, row, row * self.ne[1], row * self.ne[1] * self.ne[2])

    def raw(self, layout: dict[str, Any]) -> bytes:
        """The bytes of ``struct ggml_tensor``."""
        at = layout["tensor"]
        out = bytearray(layout["tensor_size"])
        put = struct.pack_into
        put("<i", out, at["type"], TYPE_ID[self.type])
        put("<Q", out, at["buffer"], self.buffer)
        put("<4q", out, at["ne"], *self.ne)
        put("<4Q", out, at["nb"], *self.strides())
        put("<i", out, at["op"], OP_ID[self.op])
        out[at["op_params"] : at["op_params"] + len(self.params)] = self.params
        put("<i", out, at["flags"], self.flags)
        for slot, source in enumerate(self.src):
            put("<Q", out, at["src"] + 8 * slot, source.addr if source else 0)
        put("<Q", out, at["view_src"], self.view_src.addr if self.view_src else 0)
        put("<Q", out, at["view_offs"], self.view_offs)
        put("<Q", out, at["data"], self.addr << 4 if self.data is None else self.data)
        name = self.name.encode()[: at["name_size"] - 1]
        out[at["name"] : at["name"] + len(name)] = name
        return bytes(out)


@dataclass(eq=False)
class Graph:
    """A ggml_cgraph."""

    nodes: list[Node]
    leafs: list[Node] = field(default_factory=list)
    cgraph: int = 0x6000_0000


class OpTruth(NamedTuple):
    """What a thread really did: ``node`` is the last one covered, ``fused`` how many."""

    node: int
    fused: int
    tid: int
    begin_ns: int
    end_ns: int
    release_ns: int


@dataclass
class GraphTruth:
    """What ``run_graph`` played; ``empties``: empty nodes with a barrier after them, fused 0."""

    begin_ns: int
    end_ns: int
    gen: int
    ops: list[OpTruth]
    empties: list[OpTruth] = field(default_factory=list)


OpEvent = tuple[int, OpKind, int]  # (ts, kind, arg)
Counting = Callable[[int, int], tuple[list[int], list[int], list[int]]]


def compact_records(events: Sequence[OpEvent]) -> list[int] | None:
    """A batch's records in the compact form, None if they do not fit it; one by one, as it says."""
    (base, first, arg), *rest = events
    if first not in (OpKind.END, OpKind.ENTER, OpKind.LEAVE) or (first is OpKind.LEAVE and rest):
        return None
    out = [first << 24 | arg]
    index = arg if first is OpKind.END else -1
    for place, (ts, kind, arg) in enumerate(rest, 1):
        step = arg - index
        if not 0 <= ts - base < 1 << OPS_DT_BITS:
            return None
        if kind is OpKind.END and 1 <= step <= OPS_MAX_STEP:
            out.append(step << OPS_DT_BITS | ts - base)
            index = arg
        elif kind is OpKind.LEAVE and place == len(rest):
            out.append(OPS_CODE_LEAVE << OPS_DT_BITS | ts - base)
        else:
            return None
    return out


class TraceBuilder:
    """A trace in the making. Records go to the stream in the order of the calls.

    Attributes:
        meta: the metadata as a JSON object; change it before ``bytes``.
        chunk_bytes: a RING chunk is cut when it is at least this long.
        counters: as the BPF program would have counted; kept up to date by the record methods.
        wide: write operator batches in the wide form; else what fits is compact.
        packed: the chunk of ring-buffer entries at hand becomes a PACKED one.
        numbers: begins and ends are numbered.
        refuses: whether the ring has no room for a record, by kind and ts.
        counting: what counters read of a thread at a time: values, ns enabled, ns running.
    """

    def __init__(self, *, chunk_bytes: int = 1 << 16, wide: bool = False, **changes: Any) -> None:
        self.meta = merge(copy.deepcopy(METADATA), changes)
        self.chunk_bytes = chunk_bytes
        self.wide = wide
        self.packed = False
        self.counters = [0] * CNT_COUNT
        self.records = 0
        self.threads: dict[str, str] = {}
        self.counting: Counting | None = None
        self.numbers = True
        self.refuses: Callable[[int, int], bool] = lambda kind, ts: False
        self._seq: dict[int, int] = {}
        self._numbers: dict[tuple[int, int], int] = {}
        self._chunks: list[tuple[int, bytes]] = []
        self._ring = bytearray()
        self._ring_bytes = 0
        self._last_ts = 0
        self._defined: dict[int, tuple[int, list[bytes]]] = {}
        self._sent: dict[int, bytes] = {}

    @property
    def layout(self) -> dict[str, Any]:
        return self.meta["engine"]["layout"]

    # -- records -----------------------------------------------------------------------------

    def record(self, kind: int, tid: int, ts: int, body: bytes, flags: int = 0) -> None:
        """Any record: the common header and ``body``."""
        if CALL_BEGIN <= kind <= GRAPH_END or COPY_BEGIN <= kind <= BACKEND_END:
            key = tid, min((kind - 1) // 2, 4)
            self._numbers[key] = self._numbers.get(key, 0) % NUMBERS + 1
            flags |= (self._numbers[key] if self.numbers else 0) << NUMBER_SHIFT
        if self.refuses(kind, ts):
            self.counters[CNT_LOST + kind] += 1
            return
        payload = struct.pack("<HHIQ", kind, flags, tid, ts) + body
        self._ring += struct.pack("<II", len(payload), 0) + payload.ljust(
            padded(len(payload)), b"\0"
        )
        self.records += 1
        if 0 < kind < CNT_LOST:
            self.counters[CNT_SENT + kind] += 1
        self._last_ts = max(self._last_ts, ts)
        if len(self._ring) >= self.chunk_bytes:
            self.flush()

    def discard(self, size: int = 24) -> None:
        """An entry that the BPF program reserved and gave back."""
        self._ring += struct.pack("<II", size | RING_DISCARD, 0) + bytes(padded(size))

    def thread(self, tid: int, ts: int, comm: str) -> None:
        self.threads[str(tid)] = comm
        self.record(Kind.THREAD, tid, ts, comm.encode()[:15].ljust(16, b"\0"))

    def sched(
        self,
        tid: int,
        ts: int,
        what: str,
        *,
        cpu: int = 0,
        state: int = 0,
        other: tuple[int, int, str] = (0, 0, "swapper/0"),
        prio: int = 120,
        kernel: bool = False,
    ) -> None:
        """``what``: out, preempt, in, wake or new. ``other``: tid, process, name."""
        flags = {"out": 1, "preempt": 17, "in": 2, "wake": 4, "new": 12}[what] | 32 * kernel
        name = other[2].encode().ljust(16, b"\0")
        body = struct.pack("<IIIIiI16s", cpu, state, other[0], other[1], prio, 0, name)
        self.record(Kind.SCHED, tid, ts, body, flags)

    def warmup(self, tid: int, ts: int, value: int, *, ctx: int = 0xC0, probe: int = 7) -> None:
        """``value``: schema.WARMUP_OFF, WARMUP_ON or WARMUP_RESET."""
        self.record(Kind.WARMUP, tid, ts, struct.pack("<QIi", ctx, probe, value))

    def call_begin(
        self,
        tid: int,
        ts: int,
        *,
        n_tokens: int = 1,
        pos_first: int = -1,
        pos_last: int = -1,
        ctx: int = 0xC0,
        probe: int = 0,
        flags: int = 0,
        seq: int = -1,
    ) -> None:
        """``seq``: the sequence of all its tokens; -1 where the kernel could not tell."""
        n_seqs = 1 if seq >= 0 else -1
        body = struct.pack("<QIiiiii", ctx, probe, n_tokens, pos_first, pos_last, n_seqs, seq)
        self.record(Kind.CALL_BEGIN, tid, ts, body, flags)

    def seqs(
        self,
        tid: int,
        ts: int,
        runs: Sequence[tuple[int, int, int]],
        *,
        n_tokens: int | None = None,
        ctx: int = 0xC0,
        flags: int = 0,
    ) -> None:
        """The sequences of a batch: (seq, pos, n_tokens) a run; ``ts`` is that of its call."""
        total = sum(n for _, _, n in runs) if n_tokens is None else n_tokens
        for first in range(0, len(runs), RUNS_PER_RECORD):
            part = runs[first : first + RUNS_PER_RECORD]
            body = struct.pack("<QIIII", ctx, total, 0, len(part), 0)
            body += b"".join(struct.pack("<iiII", s, p, n, 1) for s, p, n in part)
            last = first + RUNS_PER_RECORD >= len(runs)
            size = 24 + 16 * RUNS_PER_RECORD
            self.record(Kind.SEQS, tid, ts, body.ljust(size, b"\0"), flags if last else 0)

    def call_end(self, tid: int, ts: int, *, value: int = 0, probe: int = 0) -> None:
        self.record(Kind.CALL_END, tid, ts, struct.pack("<Ii", probe, value))

    def sample_begin(self, tid: int, ts: int, probe: int = 1) -> None:
        self.record(Kind.SAMPLE_BEGIN, tid, ts, struct.pack("<Ii", probe, 0))

    def sample_end(self, tid: int, ts: int, *, value: int = 0, probe: int = 1) -> None:
        self.record(Kind.SAMPLE_END, tid, ts, struct.pack("<Ii", probe, value))

    def split_begin(
        self,
        tid: int,
        ts: int,
        *,
        cgraph: int,
        n_nodes: int,
        backend: int = 0xB0,
        uid: int = 0,
        get_name: int = 0x4000,
        guid: bytes = bytes(range(16)),
        probe: int = 2,
    ) -> None:
        body = struct.pack("<QQQQ16sII", backend, cgraph, uid, get_name, guid, n_nodes, probe)
        self.record(Kind.SPLIT_BEGIN, tid, ts, body)

    def split_end(self, tid: int, ts: int, *, value: int = 0, probe: int = 2) -> None:
        self.record(Kind.SPLIT_END, tid, ts, struct.pack("<Ii", probe, value))

    def graph_begin(
        self,
        tid: int,
        ts: int,
        *,
        cgraph: int,
        gen: int,
        n_nodes: int,
        n_threads: int = 2,
        walk_ns: int = 0,
        uid: int = 0,
        flags: int = 0,
        probe: int = 3,
    ) -> None:
        body = struct.pack("<QQQIIII", cgraph, uid, gen, n_nodes, n_threads, walk_ns, probe)
        self.record(Kind.GRAPH_BEGIN, tid, ts, body, flags)

    def graph_end(self, tid: int, ts: int, *, value: int = 0, probe: int = 3) -> None:
        self.record(Kind.GRAPH_END, tid, ts, struct.pack("<Ii", probe, value))

    def ptrs(
        self, tid: int, ts: int, *, cgraph: int, gen: int, ptr: Sequence[int], first: int = 0,
        leafs: bool = False,
    ) -> None:  # fmt: skip
        """One piece (at most 64) of nodes[] or leafs[]."""
        filled = [*ptr, *[0] * (PTRS_PER_RECORD - len(ptr))]
        body = struct.pack(f"<QQII{PTRS_PER_RECORD}Q", cgraph, gen, first, len(ptr), *filled)
        self.record(Kind.PTRS, tid, ts, body, PTRS_LEAFS if leafs else 0)

    def tensor(self, tid: int, ts: int, *, gen: int, node: Node) -> None:
        body = struct.pack("<QQ", node.addr, gen) + node.raw(self.layout)
        self.record(Kind.TENSOR, tid, ts, body)

    def buffer(self, tid: int, ts: int, *, gen: int, addr: int, usage: int) -> None:
        raw = bytearray(self.layout["buffer_size"])
        struct.pack_into("<i", raw, self.layout["buffer"]["usage"], usage)
        self.record(Kind.BUFFER, tid, ts, struct.pack("<QQ", addr, gen) + raw)

    def ops(
        self,
        tid: int,
        events: Sequence[OpEvent],
        *,
        cgraph: int = 0,
        last: bool = True,
        seq: int | None = None,
        lose: bool = False,
    ) -> None:
        """One batch. ``lose``: it never got into the ring, only its number is used up."""
        if seq is None:
            seq = self._seq.get(tid, 0)
        self._seq[tid] = seq + 1
        if lose:
            self.counters[CNT_LOST + Kind.OPS] += 1
            self.counters[CNT_OP_LOST] += len(events)
            return
        base = events[0][0]
        flags = OPS_LAST if last else 0
        told = None if self.wide else compact_records(events)
        if told is not None:
            flags |= OPS_COMPACT
            packed = struct.pack(f"<{len(told)}I", *told)
        else:
            packed = b"".join(
                struct.pack("<II", ts - base, kind << 24 | arg) for ts, kind, arg in events
            )
        if self.counting is not None:
            self._counts(tid, seq, [ts for ts, _, _ in events])
        self.counters[CNT_OP_RECORDS] += len(events)
        body = struct.pack("<QII", cgraph, seq, len(events)) + packed
        self.record(Kind.OPS, tid, base, body, flags)

    def fault(
        self, tid: int, ts: int, addr: int, *, ns: int = 1000, n: int = 1, major: bool = False,
        last: int | None = None,
    ) -> None:  # fmt: skip
        """A major page fault, or a run of minor ones."""
        body = struct.pack("<QQIIQ", addr, addr if last is None else last, n, ns, ns)
        self.record(Kind.FAULT, tid, ts, body, FAULT_MAJOR if major else 0)

    def read(
        self, tid: int, ts: int, offset: int, size: int, *, ino: int = 99, dev: int = 254 << 20,
        flags: int = 0,
    ) -> None:  # fmt: skip
        """A read that a thread handed to the block layer."""
        self.record(Kind.READ, tid, ts, struct.pack("<QQII", ino, offset, dev, size), flags)

    def experts(
        self, tid: int, ts: int, ids: Sequence[Sequence[int]], *, node: int, cgraph: int,
        n_tokens: int | None = None, first: int = 0, ns: int = 400,
    ) -> None:  # fmt: skip
        """Experts of consecutive tokens, a row each."""
        used, whole = len(ids[0]), len(ids) if n_tokens is None else n_tokens
        body = struct.pack("<QIIIIII", cgraph, node, used, whole, first, len(ids), ns)
        flat = [expert for row in ids for expert in row]
        self.record(Kind.EXPERTS, tid, ts, body + struct.pack(f"<{len(flat)}i", *flat))

    def _counts(self, tid: int, seq: int, times: list[int]) -> None:
        """The COUNTS record of a batch."""
        assert self.counting is not None
        read = [self.counting(tid, ts) for ts in times]
        values, enabled, running = read[-1]
        k = len(values)
        body = struct.pack("<IIII", seq, len(times), k, 0)
        for held in (enabled, running):
            body += struct.pack("<6Q", *held, *[0] * (6 - k))
        body += b"".join(struct.pack(f"<{k}Q", *row) for row, _, _ in read)
        self.record(Kind.COUNTS, tid, times[0], body)

    # -- larger pieces -----------------------------------------------------------------------

    def define(self, graph: Graph, tid: int, ts: int) -> tuple[int, bool]:
        """Send what is new of a graph's definition, as the walk in the kernel does.

        Returns:
            (gen, changed) for the GRAPH_BEGIN record.
        """
        gen, known = self._defined.get(graph.cgraph, (0, []))
        pieces: list[tuple[bool, int, list[int]]] = []
        for leafs, tensors in ((False, graph.nodes), (True, graph.leafs)):
            pointers = [t.addr for t in tensors]
            pieces += [
                (leafs, i, pointers[i : i + PTRS_PER_RECORD])
                for i in range(0, len(pointers), PTRS_PER_RECORD)
            ]
        now = [repr(piece).encode() for piece in pieces]
        raws = {t.addr: (t, t.raw(self.layout)) for t in (*graph.nodes, *graph.leafs)}
        changed = [t for addr, (t, raw) in raws.items() if self._sent.get(addr) != raw]
        if now == known and not changed:
            return gen, False
        for piece, text in zip(pieces, now, strict=True):
            if text not in known:
                leafs, first, pointers = piece
                self.ptrs(
                    tid, ts, cgraph=graph.cgraph, gen=ts, ptr=pointers, first=first, leafs=leafs
                )
        for node in changed:
            self.tensor(tid, ts, gen=ts, node=node)
            self._sent[node.addr] = raws[node.addr][1]
        self._defined[graph.cgraph] = (ts, now)
        return ts, True

    def run_graph(
        self,
        graph: Graph,
        *,
        begin: int,
        tids: Sequence[int] = (77, 78),
        compute: Callable[[int, int], int] | int = 1000,
        fuse: Sequence[int] = (),
        end_gap: int = 100,
        walk_ns: int = 50,
        lose_batch: int | None = None,
        empties: bool = False,
    ) -> GraphTruth:
        """Play one ggml_graph_compute; the first tid is the main thread.

        Args:
            graph: what is computed.
            begin: ts of the GRAPH_BEGIN record; thread t enters the loop at begin + 10 * (t + 1).
            tids: the threads.
            compute: ns that (node index, thread number) takes, or one number for all.
            fuse: indices of nodes that run together with the next non-empty one.
            end_gap: ns from the last thread's leaving to the GRAPH_END record.
            walk_ns: stamped into the record.
            lose_batch: number of the batch of the last thread that the ring refuses.
            empties: threads pass empty nodes one by one too, and their barriers, as in engines of
                2025 and before; each takes a tenth of ``compute``.

        Returns:
            The truth that a reader should reconstruct.
        """
        plan = self.meta["plan"]["ops"]
        takes = compute if callable(compute) else lambda _node, _thread: compute
        gen, changed = self.define(graph, tids[0], begin - walk_ns)
        self.graph_begin(
            tids[0], begin, cgraph=graph.cgraph, gen=gen, n_nodes=len(graph.nodes),
            n_threads=len(tids), walk_ns=walk_ns, flags=GRAPH_CHANGED if changed else 0,
        )  # fmt: skip
        units: list[list[int]] = []
        for index, node in enumerate(graph.nodes):
            if node.empty:
                if empties:
                    units.append([index])
                continue
            if units and units[-1][-1] in fuse:
                units[-1].append(index)
            else:
                units.append([index])
        count = len(graph.nodes)
        start = [begin + 10 * (t + 1) for t in range(len(tids))]
        events: list[list[OpEvent]] = [[(ts, OpKind.ENTER, 0)] for ts in start]
        truth: list[OpTruth] = []
        empty_truth: list[OpTruth] = []
        leave = list(start)
        for unit in units:
            last = unit[-1]
            empty = graph.nodes[last].empty
            share = 10 if empty else 1
            ends = [start[t] + sum(takes(i, t) // share for i in unit) for t in range(len(tids))]
            release = max(ends)
            barrier = last + 1 < count or plan["barrier_always"]
            for t, tid in enumerate(tids):
                if plan["mode"] == "pair":
                    arg = graph.nodes[unit[0]].addr >> 4 & 0xFFFFFF
                    events[t].append((start[t], OpKind.BEGIN, arg))
                    if barrier:
                        events[t].append((ends[t], OpKind.BARRIER, 0))
                elif barrier:
                    events[t].append((ends[t], OpKind.END, last + plan["bias"]))
                row = OpTruth(last, len(unit), tid, start[t], ends[t], release)
                if not empty:
                    truth.append(row)
                elif barrier or plan["mode"] == "pair":
                    empty_truth.append(row._replace(fused=0))
                leave[t] = release if barrier else ends[t]
                start[t] = release
        if plan["mode"] != "none":
            batches: list[tuple[int, int, int, list[OpEvent]]] = []
            for t in range(len(tids)):
                events[t].append((leave[t], OpKind.LEAVE, 0))
                for number, i in enumerate(range(0, len(events[t]), OPS_PER_BATCH)):
                    part = events[t][i : i + OPS_PER_BATCH]
                    batches.append((part[-1][0], t, number, part))
            # In the order in which the threads flush them.
            for _, t, number, part in sorted(batches, key=lambda b: b[:3]):
                final = part[-1] is events[t][-1]
                lost = t == len(tids) - 1 and number == lose_batch
                self.ops(tids[t], part, cgraph=graph.cgraph, last=final, lose=lost)
        end = max(leave) + end_gap
        self.graph_end(tids[0], end)
        return GraphTruth(begin, end, gen, truth, empty_truth)

    # -- chunks ------------------------------------------------------------------------------

    def flush(self) -> None:
        """End the chunk of ring-buffer entries here."""
        if self._ring:
            self._ring_bytes += len(self._ring)
            entries = bytes(self._ring)
            packed = pack([memoryview(entries)], len(entries)) if self.packed else None
            kind = ChunkKind.RING if packed is None else ChunkKind.PACKED
            self._chunks.append((kind, packed or entries))
            self._ring.clear()

    def chunk(self, kind: int, payload: bytes) -> None:
        """Any chunk, unknown kinds and broken payloads included."""
        self.flush()
        self._chunks.append((kind, payload))

    def json_chunk(self, kind: int, value: dict[str, Any]) -> None:
        self.chunk(kind, json.dumps(value).encode())

    def loss(self, ts: int, counters: Sequence[int] | None = None) -> None:
        self.json_chunk(ChunkKind.LOSS, {"ts": ts, "counters": list(counters or self.counters)})

    def note(self, ts: int, text: str) -> None:
        self.json_chunk(ChunkKind.NOTE, {"ts": ts, "text": text})

    def update(self, **changes: Any) -> None:
        self.json_chunk(ChunkKind.UPDATE, changes)

    def trailer(self, **changes: Any) -> dict[str, Any]:
        """The trailer a clean end would write."""
        self.flush()
        return {
            "ended_ns": self._last_ts + 1000,
            "exit_code": 0,
            "exit_signal": None,
            "reason": "target exited",
            "counters": list(self.counters),
            "ring_records": self.records,
            "ring_bytes": self._ring_bytes,
            "threads": dict(self.threads),
            "functions": {"4000": "ggml_backend_cpu_get_name"},
            **changes,
        }

    def bytes(self, trailer: dict[str, Any] | bool = True) -> bytes:
        """The file. ``trailer``: True for a clean end, False for none, or its content."""
        self.flush()
        chunks = list(self._chunks)
        if trailer is not False:
            value = self.trailer() if trailer is True else trailer
            chunks.append((ChunkKind.TRAILER, json.dumps(value).encode()))
        out = bytearray(pack_file_header(json.dumps(self.meta).encode()))
        for seq, (kind, payload) in enumerate(chunks):
            out += pack_chunk_header(kind, len(payload), seq, zlib.crc32(payload))
            out += payload.ljust(padded(len(payload)), b"\0")
        return bytes(out)

    def write(self, path: Path, trailer: dict[str, Any] | bool = True) -> Path:
        """The file on disk."""
        path.write_bytes(self.bytes(trailer))
        return path


def llama_graph(
    *, layers: int = 2, n_tokens: int = 1, n_kv: int = 32, reuse: Graph | None = None
) -> Graph:
    """A small llama-like graph with the engine's names: norms, attention, KV write, FFN, output.

    Args:
        layers: transformer layers.
        n_tokens: tokens of the batch.
        n_kv: KV cells attended to.
        reuse: a graph of the same shape whose tensor addresses are taken over, as the engine's
            graph reuse does; only what depends on n_kv and n_tokens changes.
    """
    old = {t.name + t.op: t.addr for t in (*reuse.nodes, *reuse.leafs)} if reuse else {}
    nodes: list[Node] = []
    leafs: dict[str, Node] = {}

    def leaf(name: str, kind: str, *ne: int, flags: int = 0) -> Node:
        if name not in leafs:
            leafs[name] = Node(
                name, "NONE", kind, ne, flags=flags, addr=old.get(name + "NONE", 0),
                buffer=0x5001 if name.endswith(".weight") else 0x5000,
            )  # fmt: skip
        return leafs[name]

    def node(name: str, op: str, *src: Node, ne: tuple[int, ...], **more: Any) -> Node:
        made = Node(name, op, more.pop("type", "f32"), ne, src, addr=old.get(name + op, 0), **more)
        nodes.append(made)
        return made

    width, ff, vocab, heads, head = 64, 128, 256, 4, 16
    tokens = leaf("inp_tokens", "i32", n_tokens, flags=1)
    pos = leaf("inp_pos", "i32", n_tokens, flags=1)
    kv_idxs = leaf("k_idxs", "i64", n_tokens, flags=1)
    x = node(
        "embd", "GET_ROWS", leaf("token_embd.weight", "q8_0", width, vocab), tokens,
        ne=(width, n_tokens),
    )  # fmt: skip
    for il in range(layers):
        normed = node(f"norm-{il}", "RMS_NORM", x, ne=(width, n_tokens))
        weight = leaf(f"blk.{il}.attn_norm.weight", "f32", width)
        attn_norm = node(f"attn_norm-{il}", "MUL", normed, weight, ne=(width, n_tokens))
        wq = leaf(f"blk.{il}.attn_q.weight", "q4_1", width, width)
        q = node(f"Qcur-{il}", "MUL_MAT", wq, attn_norm, ne=(width, n_tokens))
        q = node(
            f"Qcur-{il} (reshaped)", "RESHAPE", q, ne=(head, heads, n_tokens), view_src=q
        )  # fmt: skip
        q = node(f"Qcur-{il}", "ROPE", q, pos, ne=(head, heads, n_tokens))
        wk = leaf(f"blk.{il}.attn_k.weight", "q4_1", width, width)
        k = node(f"Kcur-{il}", "MUL_MAT", wk, attn_norm, ne=(width, n_tokens))
        cache = leaf(f"cache_k_l{il}", "f16", width, 4096)
        node(
            f"cache_k_l{il} (view)", "SET_ROWS", k, kv_idxs, cache, ne=(width, 4096), type="f16",
            view_src=cache,
        )  # fmt: skip
        keys = node(
            f"cache_k_l{il} (view)", "VIEW", cache, ne=(head, n_kv, heads), type="f16",
            view_src=cache,
        )  # fmt: skip
        kq = node(f"kq-{il}", "MUL_MAT", keys, q, ne=(n_kv, n_tokens, heads))
        soft = node(f"kq_soft_max-{il}", "SOFT_MAX", kq, ne=(n_kv, n_tokens, heads))
        wo = leaf(f"blk.{il}.attn_output.weight", "q4_1", width, width)
        out = node(f"attn_out-{il}", "MUL_MAT", wo, soft, ne=(width, n_tokens))
        x = node(f"ffn_inp-{il}", "ADD", out, x, ne=(width, n_tokens))
        wup = leaf(f"blk.{il}.ffn_up.weight", "q4_1", width, ff)
        up = node(f"ffn_up-{il}", "MUL_MAT", wup, x, ne=(ff, n_tokens))
        glu = node(
            f"ffn_swiglu-{il}", "GLU", up, ne=(ff // 2, n_tokens), params=struct.pack("<i", 2)
        )  # fmt: skip
        wdown = leaf(f"blk.{il}.ffn_down.weight", "q4_1", ff // 2, width)
        down = node(f"ffn_out-{il}", "MUL_MAT", wdown, glu, ne=(width, n_tokens))
        x = node(f"l_out-{il}", "ADD", down, x, ne=(width, n_tokens))
    normed = node("norm", "RMS_NORM", x, ne=(width, n_tokens))
    weight = leaf("output_norm.weight", "f32", width)
    result = node("result_norm", "MUL", normed, weight, ne=(width, n_tokens))
    wout = leaf("output.weight", "q8_0", width, vocab)
    node("result_output", "MUL_MAT", wout, result, ne=(vocab, n_tokens), flags=FLAG_COMPUTE | 2)
    return Graph(nodes, list(leafs.values()), reuse.cgraph if reuse else 0x6000_0000)


@dataclass
class SampleRun:
    """A whole run and what is true of it. ``graphs`` in the order of the calls."""

    builder: TraceBuilder
    graphs: list[GraphTruth]
    definitions: list[Graph]
    call_ns: list[tuple[int, int]]


def sample_run(
    *,
    decode_tokens: int = 3,
    prompt_tokens: int = 5,
    layers: int = 2,
    tids: Sequence[int] = (77, 78),
    compute: Callable[[int, int], int] | int = 1000,
    fuse_norms: bool = False,
    empties: bool = False,
    start_ns: int = 1_000_000_000,
    builder: TraceBuilder | None = None,
    **changes: Any,
) -> SampleRun:
    """Warm-up call, prefill, ``decode_tokens`` decodes, a sample after the prefill and each decode.

    ``changes`` go into the metadata, unless there is a ``builder`` already. Deterministic: the same
    arguments give the same bytes, except for tensor addresses, which are reset here.
    """
    Node._next_addr = 0x7F00_0000_0000
    builder = builder or TraceBuilder(**changes)
    main = tids[0]
    ts = start_ns
    for tid in tids:
        builder.thread(tid, ts, "llama" if tid == main else f"worker-{tid}")
        ts += 10
    builder.buffer(main, ts, gen=ts, addr=0x5000, usage=0)
    builder.buffer(main, ts, gen=ts, addr=0x5001, usage=1)
    run = SampleRun(builder, [], [], [])
    calls = [("warmup", 2, 0, 32), ("prefill", prompt_tokens, 0, 32)]
    calls += [("decode", 1, prompt_tokens + i, 32 + i) for i in range(decode_tokens)]
    graph: Graph | None = None
    for phase, n_tokens, position, n_kv in calls:
        ts += 5_000
        if phase == "warmup":
            builder.warmup(main, ts, WARMUP_ON)
        begin = ts + 100
        builder.call_begin(
            main, begin, n_tokens=n_tokens, pos_first=position, pos_last=position + n_tokens - 1
        )
        graph = llama_graph(layers=layers, n_tokens=n_tokens, n_kv=n_kv, reuse=graph)
        builder.split_begin(
            main, begin + 200, cgraph=graph.cgraph, n_nodes=len(graph.nodes), uid=position + 1
        )
        fuse = [i for i, n in enumerate(graph.nodes) if n.op == "RMS_NORM"] if fuse_norms else []
        truth = builder.run_graph(
            graph, begin=begin + 400, tids=tids, compute=compute, fuse=fuse, empties=empties
        )
        builder.split_end(main, truth.end_ns + 50)
        ts = truth.end_ns + 150
        builder.call_end(main, ts)
        run.graphs.append(truth)
        run.definitions.append(graph)
        run.call_ns.append((begin, ts))
        if phase == "warmup":
            builder.warmup(main, ts + 50, WARMUP_OFF)
        else:
            builder.sample_begin(main, ts + 100)
            builder.sample_end(main, ts + 600)
            ts += 600
    return run


def sample_trace(**changes: Any) -> TraceBuilder:
    """``sample_run`` without the truth."""
    return sample_run(**changes).builder
