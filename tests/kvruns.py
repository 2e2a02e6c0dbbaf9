"""A generation whose attention grows with the position as planned, and with planned slow tokens."""

from __future__ import annotations

from typing import Any

from builders import Graph, TraceBuilder, llama_graph

LAYERS = 2
PROMPT = 4
PAD = 32  # cells by which the KV cache that attention reads is lengthened
SLOPE = 10  # ns that KQ takes longer with every position, in each layer
JUMP = 2_000  # ns that KQ takes longer with every PAD cells, in each layer
DISTURBED = 300_000  # ns of each planned disturbance
# Decode step -> what slows it down.
PLANTED = {20: "node", 26: "sampling", 40: "between", 50: "cpu", 70: "fault"}


def kv_run(tokens: int = 90, planted: dict[int, str] | None = None, **changes: Any) -> TraceBuilder:
    """A prompt of ``PROMPT`` tokens and ``tokens`` decode steps.

    A new graph, built when the KV cache gets longer, takes ``DISTURBED`` to build.
    """
    planted = PLANTED if planted is None else planted
    memory = {"recorded": True, "reads": {"recorded": True}}
    builder = TraceBuilder(memory=memory, **changes)
    builder.thread(77, 900_000_000, "llama")
    builder.thread(78, 900_000_000, "worker-78")
    builder.buffer(77, 900_000_000, gen=1, addr=0x5000, usage=0)
    builder.buffer(77, 900_000_000, gen=1, addr=0x5001, usage=1)
    for tid in (77, 78):
        builder.sched(tid, 900_000_000, "in", other=(tid, 77, "llama"))
    graph: Graph | None = None
    cells, ts = 0, 1_000_000_000
    for number in range(tokens + 1):
        n_tokens = 1 if number else PROMPT
        position = PROMPT + number - 1 if number else 0
        last = position + n_tokens - 1
        needed = -(-(last + 1) // PAD) * PAD
        build = DISTURBED if needed != cells and number else 400
        if needed != cells or number == 1:
            graph = llama_graph(layers=LAYERS, n_tokens=n_tokens, n_kv=needed, reuse=graph)
        cells = needed
        assert graph is not None
        names = [node.name for node in graph.nodes]
        what = planted.get(number - 1) if number else None

        def takes(node: int, thread: int) -> int:
            out = 1_000 + (7 * node + 13 * number) % 40  # noqa: B023
            if names[node].startswith("kq-"):  # noqa: B023
                out += SLOPE * last + JUMP * (cells // PAD)  # noqa: B023
            slow = {"node": (0, 1), "cpu": (1,), "fault": (1,), "disk": (1,)}.get(what or "", ())  # noqa: B023
            if names[node] == "ffn_up-1" and thread in slow:  # noqa: B023
                out += DISTURBED
            return out

        ts += DISTURBED if what == "between" else 5_000
        builder.call_begin(77, ts, n_tokens=n_tokens, pos_first=position, pos_last=last, seq=0)
        truth = builder.run_graph(graph, begin=ts + build, compute=takes)
        slow_op = next(
            op for op in truth.ops if names[op.node] == "ffn_up-1" and op.tid == 78
        )  # fmt: skip
        if what == "cpu":
            builder.sched(78, slow_op.begin_ns + 10, "out", other=(900, 900, "stress"))
            builder.sched(78, slow_op.begin_ns + 10 + DISTURBED, "in", other=(78, 77, "llama"))
        if what == "disk":  # asleep until its page was read, then another has the CPU
            sleep, awake = slow_op.begin_ns + 10, slow_op.begin_ns + 10 + DISTURBED * 9 // 10
            builder.sched(78, sleep, "out", state=2, other=(0, 0, "swapper/0"))
            builder.sched(78, awake, "wake", other=(44, 44, "kworker/1:1H"))
            builder.sched(78, sleep + DISTURBED, "in", other=(78, 77, "llama"))
        if what in ("fault", "disk"):
            builder.fault(78, slow_op.begin_ns + 10, 0x7E00_0000_0000, ns=DISTURBED, major=True)
        ts = truth.end_ns + 150
        builder.call_end(77, ts)
        ts += 100
        if number:
            builder.sample_begin(77, ts)
            ts += DISTURBED if planted.get(number) == "sampling" else 500
            builder.sample_end(77, ts)
    return builder
