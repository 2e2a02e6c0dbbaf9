"""Writes the small traces of this folder. Deterministic: the same code gives the same bytes.

Run: python tests/golden/make.py (``make golden`` rewrites the texts).
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
sys.path.insert(0, str(HERE.parent.parent))

from builders import TraceBuilder, llama_graph, sample_run  # noqa: E402
from moetraces import MoeRun  # noqa: E402


def takes(node: int, thread: int) -> int:
    """Some nanoseconds; the second thread is a little slower on every third node."""
    return 40_000 + 7_000 * (node % 11) + 9_000 * thread * (node % 3 == 0)


def generation() -> bytes:
    """A warm-up, a prompt of 12 tokens, 5 decoded tokens, 2 threads, 17 layers, fused norms."""
    run = sample_run(decode_tokens=5, prompt_tokens=12, layers=17, compute=takes, fuse_norms=True)
    return run.builder.bytes()


def pair() -> bytes:
    """Mode "pair", one thread."""
    run = sample_run(layers=2, compute=takes, tids=(77,), plan={"ops": {"mode": "pair"}})
    return run.builder.bytes()


def lossy() -> bytes:
    """One batch refused by the ring, no trailer but a count of losses."""
    builder = TraceBuilder()
    graph = llama_graph(layers=40)
    ts = 1_000_000_000
    for number in range(4):
        builder.call_begin(77, ts, n_tokens=1 if number else 5, pos_first=number * 5)
        truth = builder.run_graph(
            graph, begin=ts + 500, compute=takes, lose_batch=0 if number == 2 else None
        )
        ts = truth.end_ns + 300
        builder.call_end(77, ts)
        ts += 20_000
    builder.loss(ts)
    return builder.bytes(trailer=False)


def roofs() -> bytes:
    """The first one shorter, with roofs so low that its small operators come near them."""
    peaks = {"read": 0.1e9, "triad": 0.09e9, "fp32": 0.5e9, "int8": 2e9}
    calibration = {
        "schema": "profinfer.calibration/1",
        "machine": {"cpu_model": "Example CPU", "cpus": 2, "memory_bytes": 8 << 30},
        "created_utc": "2026-11-24T10:00:00Z",
        "method": "by hand",
        "roofs": [
            {
                "kind": kind, "threads": 2, "best": best, "median": 0.9 * best,
                "spread": 0.18 if kind == "read" else 0.02, "repeats": 25, "undisturbed": 20,
            }
            for kind, best in peaks.items()
        ],
    }  # fmt: skip
    run = sample_run(
        decode_tokens=2, prompt_tokens=12, compute=takes, fuse_norms=True, calibration=calibration
    )
    return run.builder.bytes()


def disturbed() -> bytes:
    """Four threads on two CPUs under a quota, another process on one of them, one event lost."""
    tids = (77, 78, 79, 80)
    limits = {
        "cpus": [0, 1],
        "cgroup": {"path": "/sys/fs/cgroup/x", "version": 2, "quota_us": 150_000,
                   "period_us": 100_000},
        "begin": {"periods": 0, "throttled": 0, "throttled_ns": 0},
        "end": {"periods": 9, "throttled": 4, "throttled_ns": 31_000_000},
    }  # fmt: skip
    run = sample_run(layers=2, compute=takes, tids=tids, limits=limits)
    builder = run.builder
    for number, graph in enumerate(run.graphs):
        step = (graph.end_ns - graph.begin_ns) // 9
        for at, tid in enumerate(tids):
            for turn in range(at % 2, 8, 2):
                off = graph.begin_ns + turn * step + 100 * at
                other = (900, 900, "stress") if tid == 80 else (tids[at - 1], 77, "llama")
                builder.sched(tid, off, "out", cpu=at % 2, other=other, prio=110)
                cpu = (at + number) % 2
                builder.sched(tid, off + step, "in", cpu=cpu, other=(tid, 77, "llama"))
        builder.sched(79, graph.end_ns, "out", cpu=0, state=0x2001)
        builder.sched(79, graph.end_ns + 3_000, "wake", cpu=1, other=(77, 77, "llama"))
        builder.sched(79, graph.end_ns + 4_000, "in", cpu=0, other=(79, 77, "llama"))
    return builder.bytes()


def evicted() -> bytes:
    """Four tokens of a model that does not fit: every weight is read and faulted in every time."""
    base, offset, step = 0x7E00_0000_0000, 4096, 1 << 16
    path = "/models/tiny.gguf"
    graph = llama_graph(layers=2)
    weights = [leaf for leaf in graph.leafs if leaf.name.endswith(".weight")]
    for number, leaf in enumerate(weights):
        leaf.data = base + number * step
    size = offset + step * len(weights)
    builder = TraceBuilder(
        memory={
            "recorded": True,
            "reads": {"recorded": True},
            "mappings": [[base, base + size - offset, offset, path]],
            "files": [{"path": path, "dev": [254, 0], "ino": 99, "size": size}],
            "limit_bytes": 20_000,
            "limit_from": "/sys/fs/cgroup/tiny/memory.max",
        }
    )
    builder.thread(77, 900_000_000, "llama")
    sizes = {"rss": 3 << 20, "file": 1 << 20, "read": 0, "minor": 700, "major": 0}
    ts = 1_000_000_000
    for at in range(0, size, step):  # loading
        builder.read(77, ts - 50_000_000 + 10 * at, at, min(step, size - at))
        builder.fault(77, ts - 50_000_000 + 10 * at, 0x5500_0000_0000 + at, n=16, ns=9_000)
    for number in range(4):
        sizes = {**sizes, "read": sizes["read"] + size, "major": number * len(weights)}
        builder.json_chunk(4, {"ts": ts - 1000, "what": "memory", **sizes})
        builder.call_begin(77, ts, n_tokens=1 if number else 5, pos_first=number * 5)
        truth = builder.run_graph(graph, begin=ts + 500, compute=takes)
        for op in truth.ops if number else ():
            for leaf in graph.nodes[op.node].src:
                if leaf in weights and leaf is not None and op.tid == 78:
                    where = (leaf.data or 0) - base + offset
                    builder.read(78, op.begin_ns + 20, where, leaf.strides()[3])
                    builder.fault(78, op.begin_ns + 10, leaf.data or 0, ns=12_000, major=True)
        ts = truth.end_ns + 300
        builder.call_end(77, ts)
        ts += 20_000
    return builder.bytes()


def counted() -> bytes:
    """Counters of an A76, of which one is counted during half of the time, and faults."""
    asked: list[dict[str, object]] = [
        {"name": "cycles", "side": "user", "hardware": True},
        {"name": "instructions", "side": "user", "hardware": True},
        {
            "name": "l3d_cache_refill", "side": "user", "hardware": True, "bytes": 64,
            "direction": "read",
        },
        {"name": "major-faults", "side": "both", "hardware": False},
    ]  # fmt: skip
    builder = TraceBuilder(plan={"counters": asked})

    def read(tid: int, ts: int) -> tuple[list[int], list[int], list[int]]:
        passed = ts - 1_000_000_000
        values = [2 * passed, 3 * passed, passed // 128, passed // 500_000]
        return values, [passed] * 4, [passed, passed, passed // 2, passed]

    builder.counting = read
    return sample_run(builder=builder, decode_tokens=2, compute=takes).builder.bytes()


def routed() -> bytes:
    """A mixture of 16 experts, of which few are liked; those long not needed fault and are slow."""
    rng = random.Random(7)
    run = MoeRun(layers=2, experts=16, used=2)

    def two() -> list[int]:
        drawn = rng.choices(range(16), [12, 9, 6, 4, *[1] * 12], k=9)
        return list(dict.fromkeys(drawn))[:2]

    for number in range(40):
        rows = (1 if number else 6, 1)
        run.decode([[two() for _ in range(n)] for n in rows], slow_ns=70_000)
    return run.builder.bytes()


TRACES = {
    "generation": generation,
    "pair": pair,
    "lossy": lossy,
    "roofs": roofs,
    "disturbed": disturbed,
    "evicted": evicted,
    "counted": counted,
    "routed": routed,
}


def main() -> None:
    """Write them all."""
    from builders import Node

    for name, make in TRACES.items():
        Node._next_addr = 0x7F00_0000_0000
        (HERE / f"{name}.pf").write_bytes(make())


if __name__ == "__main__":
    main()
