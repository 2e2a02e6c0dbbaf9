"""Layer 4: a probe plan becomes the text of one BPF program.

The C lies in ``bpf/``; here it is only put together: wire format, prelude, the fragments the
level needs, and one small handler a probe. Values of the plan arrive as ``-D`` definitions, so
that what is not wanted is not compiled.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass
from pathlib import Path

from profinfer.capture.kernelmap import possible_cpus
from profinfer.capture.only import EVERYTHING, Only
from profinfer.capture.steps import Steps
from profinfer.capture.uprobes import AttachPoint
from profinfer.engine.catalog import guid_of
from profinfer.errors import EnvironmentProblem
from profinfer.probes.experts import EXPERTS_OP, IDS_SOURCE, ids_type, no_experts
from profinfer.probes.operator_site import Location
from profinfer.probes.plan import Probe, ProbePlan

RING_BYTES = 16 << 20
_PAGE = 4096
_MAX_THREADS = 1024
_MAX_MAIN_THREADS = 64
_MAX_TENSORS = 1 << 17
# 4 pieces of 64 nodes a step, 33 steps: 8,448 nodes a graph. Each piece a step takes the verifier
# 28 ms more.
_PIECES_PER_STEP = 4
# 33 steps and the first: 4,352 tokens a batch; the engine's default is 2,048.
_TOKENS_PER_STEP = 128
# What no engine reaches: LLAMA_MAX_SEQ is 64 or 256.
_MAX_SEQS = 4096
_CPU_GUID = struct.unpack("<QQ", bytes.fromhex(guid_of("CPU")))

# Role and kind of a probe -> the C function it runs. {id} is the probe's number, {pushed} the
# bytes on the stack above the return address at the chosen instruction.
_HANDLERS = {
    ("call.batch", "uprobe"): "pf_batch_begin(ctx, {id}, {flags}, {pushed})",
    ("call.process", "uprobe"): "pf_process_begin(ctx, {id})",
    ("call.batch", "uretprobe"): "pf_call_end(ctx, {id})",
    ("call.process", "uretprobe"): "pf_call_end(ctx, {id})",
    ("sample", "uprobe"): "pf_sample_begin(ctx, {id})",
    ("sample", "uretprobe"): "pf_sample_end(ctx, {id})",
    ("warmup.set", "uprobe"): "pf_warmup_set(ctx, {id})",
    ("warmup.reset", "uprobe"): "pf_warmup_reset(ctx, {id})",
    ("request.post", "uprobe"): "pf_request_post(ctx, {id})",
    ("request.posts", "uprobe"): "pf_request_posts(ctx, {id})",
    ("request.launch", "uprobe"): "pf_request_launch(ctx, {id})",
    ("split", "uprobe"): "pf_split_begin(ctx, {id})",
    ("split", "uretprobe"): "pf_split_end(ctx, {id})",
    ("graph", "uprobe"): "pf_graph_begin(ctx, {id})",
    ("graph", "uretprobe"): "pf_graph_end(ctx, {id})",
    ("leafs", "uprobe"): "pf_leafs(ctx, {id})",
    ("sync", "uprobe"): "pf_sync_begin(ctx, {id})",
    ("sync.event", "uprobe"): "pf_event_begin(ctx, {id})",
    ("op.enter", "uprobe"): "pf_loop_enter(ctx)",
    ("op.end", "uprobe"): "pf_loop_barrier(ctx, {index}, {cgraph})",
    ("op.leave", "uprobe"): "pf_loop_leave(ctx)",
    ("op.leave", "uretprobe"): "pf_loop_leave(ctx)",
    ("op.begin", "uprobe"): "pf_op_begin(ctx, PT_REGS_PARM2(ctx))",
    ("op.barrier", "uprobe"): "pf_barrier(ctx)",
}

# A copy: what it is, flags, then the arguments (from 1) of backend, tensor and the other end, and
# how many bytes; 0 where there is none.
_COPIES = {
    "copy.set": ("SET", 0, 0, 1, 2, "{4}"),
    "copy.get": ("GET", 0, 0, 1, 2, "{4}"),
    "copy.fill": ("FILL", 0, 0, 1, 0, "{4}"),
    "copy.set.2d": ("SET", 0, 0, 1, 2, "{4} * {5}"),
    "copy.get.2d": ("GET", 0, 0, 1, 2, "{4} * {5}"),
    "copy.set.async": ("SET", 1, 1, 2, 3, "{5}"),
    "copy.get.async": ("GET", 1, 1, 2, 3, "{5}"),
    "copy.set.2d.async": ("SET", 1, 1, 2, 3, "{5} * {6}"),
    "copy.get.2d.async": ("GET", 1, 1, 2, 3, "{5} * {6}"),
    "copy.tensor": ("TENSOR", 0, 0, 1, 2, "PF_COPY_WHOLE"),
    "copy.tensor.async": ("TENSOR", 1, 2, 3, 4, "PF_COPY_WHOLE"),
    "copy.backend": ("TENSOR", 1, 2, 3, 4, "PF_COPY_WHOLE"),
}
# Which arguments a WORK record keeps.
_WORK = {
    "work.gemm": "{4}, {5}, {6}",
    "work.send": "{3}, pf_lone_byte({2}, {3}), {1}",
    "work.recv": "{3}, 0, {1}",
    "work.node": "{2}, {3}, 0",
    "work.serve": "0, 0, 0",
    "work.submit": "0, 0, 0",
}
# The sixth has no name of its own in every BCC.
_SIXTH = {"x86_64": "ctx->r9", "aarch64": "ctx->regs[5]"}


@functools.cache
def _handlers(machine: str) -> dict[tuple[str, str], str]:
    """All handlers, with those of copies, waits and backends' own functions."""
    arguments = [f"(u64)PT_REGS_PARM{n}(ctx)" for n in range(1, 6)] + [f"(u64){_SIXTH[machine]}"]
    found = {}
    for role, (what, flags, backend, tensor, other, size) in _COPIES.items():
        given = [arguments[n - 1] if n else "0" for n in (backend, tensor, other)]
        size = size.format("", *arguments)
        start = f"pf_copy_begin(ctx, {{id}}, PF_COPY_{what}, {flags}, "
        found[role, "uprobe"] = start + f"{', '.join(given)}, {size})"
    for role, values in _WORK.items():
        found[role, "uprobe"] = f"pf_work_begin(ctx, {{id}}, {values.format('', *arguments)})"
    roles = (*_COPIES, *_WORK, "sync", "sync.event")
    ends = {(role, "uretprobe"): "pf_backend_end(ctx, {id})" for role in roles}
    ends["sync", "uretprobe"] = "pf_sync_end(ctx, {id})"
    return _HANDLERS | found | ends


@dataclass(frozen=True)
class Source:
    """What BCC is given.

    Attributes:
        text: the C program.
        cflags: its definitions.
        points: where each handler is attached.
        tail_calls: program array -> function that its only entry holds.
    """

    text: str
    cflags: list[str]
    points: list[AttachPoint]
    tail_calls: dict[str, str]


def bpf_folder() -> Path:
    """The folder of C files: shipped inside the package, else the checkout's."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "_bpf", package.parent / "bpf"):
        if (folder / "events.h").is_file():
            return folder
    raise EnvironmentProblem(
        "profinfer's BPF sources are missing from this installation",
        hint="reinstall profinfer",
    )


def headers_folder() -> Path:
    """The header tree BCC compiles against instead of kernel headers."""
    return bpf_folder() / "kernel-headers"


# Register names of the disassembler -> fields of struct pt_regs.
_X86_FIELDS = {f"r{name}": name for name in ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp")} | {
    f"r{n}": f"r{n}" for n in range(8, 16)
}
_ARM64_FIELDS = {f"x{n}": f"regs[{n}]" for n in range(31)} | {"sp": "sp"}
_FIELDS = {"x86_64": _X86_FIELDS, "aarch64": _ARM64_FIELDS}


def _value(location: Location, machine: str, *, bits: int) -> str:
    """C expression for a value at a probe: a register, or memory reached through pointers."""
    field = _FIELDS[machine][location.register]
    text = f"(u64)ctx->{field}"
    for n, offset in enumerate(location.offsets):
        last = n + 1 == len(location.offsets)
        text = f"pf_user_u{bits if last else 64}({text} + {offset})"
    return f"(u{bits})({text})"


def _handler(probe: Probe, entry_id: int, machine: str) -> str:
    """The body of the function a probe runs.

    A return carries the number of its entry's probe, so that the two make a pair.
    """
    values: dict[str, int | str] = {"id": entry_id, "pushed": probe.stack_delta or 0, "flags": 0}
    if probe.role == "call.batch" and probe.function == "llama_encode":
        values["flags"] = "PF_CALL_ENCODE"
    if probe.index is not None and probe.cgraph is not None:
        index = _value(probe.index, machine, bits=32)
        values["index"] = f"{index} + {probe.index_add}" if probe.index_add else index
        values["cgraph"] = _value(probe.cgraph, machine, bits=64)
    return _handlers(machine)[probe.role, probe.kind].format(**values)


def _definitions(plan: ProbePlan, ring_bytes: int) -> dict[str, int | str]:
    values: dict[str, int | str] = {
        "PF_RING_PAGES": ring_bytes // _PAGE,
        "PF_MAX_THREADS": _MAX_THREADS,
        "PF_MAX_MAIN_THREADS": _MAX_MAIN_THREADS,
        "PF_MAX_TENSORS": _MAX_TENSORS,
        "PF_PIECES_PER_STEP": _PIECES_PER_STEP,
        "PF_TOKENS_PER_STEP": _TOKENS_PER_STEP,
        "PF_MAX_SEQS": _MAX_SEQS,
        "PF_PROCESS_ENCODE": 0,  # enum llama_process_type
    }
    if plan.ops.mode == "pair":
        values["PF_OPS_WIDE"] = 1
    layout = plan.layout
    if layout is None:
        return values
    values |= {
        "PF_TENSOR_SIZE": layout.tensor_size,
        "PF_BUFFER_SIZE": layout.buffer_size,
        "PF_TENSOR_BUFFER": layout.tensor["buffer"],
        "PF_TENSOR_VIEW_SRC": layout.tensor["view_src"],
        "PF_BUFFER_FUNCTION": layout.buffer["owner"],
        "PF_CPU_GUID_LOW": f"{_CPU_GUID[0]:#x}ull",
        "PF_CPU_GUID_HIGH": f"{_CPU_GUID[1]:#x}ull",
        "PF_CGRAPH_N_NODES": layout.cgraph["n_nodes"],
        "PF_CGRAPH_NODES": layout.cgraph["nodes"],
        "PF_CGRAPH_N_LEAFS": layout.cgraph["n_leafs"],
        "PF_CGRAPH_LEAFS": layout.cgraph["leafs"],
        "PF_CPLAN_N_THREADS": layout.cplan["n_threads"],
        "PF_BACKEND_GUID": layout.backend["guid"],
        "PF_BACKEND_GET_NAME": layout.backend["get_name"],
    }
    if "uid" in layout.cgraph:
        values["PF_CGRAPH_UID"] = layout.cgraph["uid"]
    if layout.batch_ext:
        values |= {
            "PF_EXT_TOKENS": layout.batch_ext["tokens"],
            "PF_EXT_MAX": layout.batch_ext["n_tokens_max"],
            "PF_EXT_TOKEN_SIZE": layout.batch_ext["token_size"],
            "PF_EXT_POS": layout.batch_ext["pos"],
        }
        if "seq_first" in layout.batch_ext:
            values |= {
                "PF_EXT_SEQS": layout.batch_ext["seq_first"],
                "PF_EXT_SEQ_VALUE": layout.batch_ext["seq_value"],
                "PF_EXT_OUTPUT": layout.batch_ext["output"],
            }
    return values


def _routing(plan: ProbePlan) -> dict[str, int]:
    """What reading the router's choice needs; nothing where ``probes.experts`` says why not."""
    layout = plan.layout
    if layout is None or no_experts(plan) is not None:
        return {}
    values = {
        "PF_MUL_MAT_ID": plan.facts.ops.index(EXPERTS_OP),
        "PF_TYPE_I32": ids_type(plan.facts) or 0,
        "PF_OPS_BIAS": plan.ops.bias,
        "PF_TENSOR_IDS": layout.tensor["src"] + 8 * IDS_SOURCE,
    }
    fields = ("type", "ne", "nb", "op", "flags", "data")
    values |= {f"PF_TENSOR_{name.upper()}": layout.tensor[name] for name in fields}
    if "compute" in layout.flags:
        values["PF_FLAG_COMPUTE"] = layout.flags["compute"]
    return values


def build_source(
    plan: ProbePlan,
    *,
    ring_bytes: int = RING_BYTES,
    sched: dict[str, int] | None = None,
    steps: Steps | None = None,
    memory: dict[str, int] | None = None,
    counters: int = 0,
    only: Only = EVERYTHING,
    experts: bool = True,
) -> Source:
    """Put the program of a plan together.

    Args:
        plan: what is probed, and where.
        ring_bytes: size of the ring buffer, a power of two.
        sched: the kernel's layouts for the scheduler's events, None to leave these out.
        steps: decode steps that operators are wanted of, None for all that runs.
        memory: the kernel's layouts for page faults and reads, None to leave these out.
        counters: counters read at each operator record; with none, nothing of it is compiled.
        only: operators and threads to leave records of.
        experts: read which experts tokens are routed to, where the plan allows it.

    Raises:
        TargetError: the engine cannot be narrowed to these operators.
    """
    folder = bpf_folder()
    machine = plan.images[0].elf.machine
    roles = {probe.role for probe in plan.probes}
    walks = plan.reads_graphs
    files = ["events.h", "prelude.bpf.c"]
    files += ["counters.bpf.c"] if counters else []
    files += [f"{n}.bpf.c" for n in ("calibrate", "gate", "batch", "calls")]
    if any(role.startswith("request.") for role in roles):
        files.append("server.bpf.c")
    routing = _routing(plan) if experts else {}
    files += ["routes.bpf.c"] if routing else []
    if walks or any(role.startswith("op.") for role in roles):
        files += ["filter.bpf.c", "ops.bpf.c"]
    if walks:
        files.append("graph.bpf.c")
        files.append("backends.bpf.c")
    files += ["experts.bpf.c"] if routing else []
    if sched:
        files.append("sched.bpf.c")
    if memory:
        files.append("memory.bpf.c")
    text = ["#include <linux/ptrace.h>"]
    for name in files:
        # BCC only rewrites map accesses of the main text, so the files are joined, not included.
        text += [f'#line 1 "bpf/{name}"', (folder / name).read_text()]
    text.append('#line 1 "handlers"')
    points, entries = [], {}
    for probe in plan.probes:
        if probe.kind == "uprobe":
            entries[probe.role, probe.function, probe.path] = probe.id
        entry_id = entries.get((probe.role, probe.function, probe.path), probe.id)
        name = f"pf_probe_{probe.id}"
        body = _handler(probe, entry_id, machine)
        text.append(f"int {name}(struct pt_regs *ctx) {{ return {body}; }}")
        points.append(AttachPoint(name, probe.path, probe.offset, probe.kind == "uretprobe"))
    values: dict[str, int | str] = {**_definitions(plan, ring_bytes), **only.definitions(plan)}
    values |= routing | (sched or {}) | (memory or {})
    values |= steps.definitions if steps else {}
    values |= {"PF_WAITS": 1} if "sync" in roles else {}
    if counters:
        values |= {"PF_COUNTERS": counters, "PF_CPUS": possible_cpus()}
    flags = [f"-D{key}={value}" for key, value in values.items()]
    tail_calls = {"batch_steps": "pf_batch_step"}
    if walks:
        tail_calls["steps"] = "pf_walk_step"
    if routing:
        tail_calls |= {"route_steps": "pf_route_step", "expert_steps": "pf_expert_step"}
    return Source("\n".join(text) + "\n", flags, points, tail_calls)
