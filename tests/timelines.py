"""Timelines for the tests of the Perfetto export: tables in a few lines, any size.

``synthetic`` makes a run of one prefill and many decode steps on a made-up model, with every
time distinct enough to be recognised; ``python tests/timelines.py N [COUNTER...]`` measures an
export of it.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from profinfer.model.counts import Counter
from profinfer.render.about import Recording
from profinfer.render.timeline import OpCounts, Timeline

PID, WORKER = 4000, 4001
START = 1_000_000_000_000

RECORDING = Recording(
    pid=PID,
    process="llama-cli",
    argv=("./llama-cli", "-m", "tiny.gguf"),
    monotonic_ns=START,
    realtime_ns=1_800_000_000_000_000_000,
    facts={"engine": "llama.cpp 1.2.3", "version": "0.1.0"},
)


def nodes(n: int, definitions: int = 1) -> pd.DataFrame:
    """n nodes a definition: MUL_MAT, RMS_NORM, MUL, VIEW (empty) in turn."""
    idx = np.tile(np.arange(n), definitions)
    kind = idx % 4
    total = n * definitions
    frame = pd.DataFrame(
        {
            "node_id": np.arange(total, dtype=np.int32),
            "def_id": np.repeat(np.arange(definitions, dtype=np.int32), n),
            "idx": idx.astype(np.int32),
            "op": pd.Categorical(np.array(["MUL_MAT", "RMS_NORM", "MUL", "VIEW"])[kind]),
            "name": [f"t-{i}" for i in idx],
            "type": pd.Categorical(["f32"] * total),
            "ne0": 1536,
            "ne1": 4,
            "ne2": 1,
            "ne3": 1,
            "src0_name": "w",
            "src0_type": "q4_1",
            "src0_ne": "576x1536x1x1",
            "src1_name": "x",
            "src1_type": "f32",
            "src1_ne": "576x4x1x1",
            "weight": np.where(kind == 0, "blk.0.w", ""),
            "empty": kind == 3,
            "view": kind == 3,
            "role": pd.Categorical(np.array(["ffn", "norm", "norm", "view"])[kind]),
            "layer": pd.array(np.where(idx < 4, -1, idx // 4), dtype="Int32"),
            "params": "",
        }
    )
    return frame


def synthetic(
    tokens: int = 5,
    n_nodes: int = 12,
    threads: int = 2,
    seed: int = 0,
    start: int = START,
    counters: tuple[str, ...] = (),
) -> Timeline:
    """One prefill of 4 tokens, then ``tokens - 1`` decode steps, one graph each.

    Every RMS_NORM runs fused with the MUL after it. Thread 0 owns the graphs. Of the counters,
    the k-th counts k + 2 times the nanoseconds that an operator computes.
    """
    rng = np.random.default_rng(seed)
    table = nodes(n_nodes)
    idx = np.arange(n_nodes)
    outputs = idx[(idx % 4 == 0) | (idx % 4 == 2)]
    m = len(outputs)
    compute = rng.integers(1_000, 9_000, (tokens, m, threads))
    # Per graph: the operators of all threads begin when the slowest has ended the one before.
    slowest = compute.max(axis=2)
    walk, gap = 700, 50_000
    length = slowest.sum(axis=1) + 4_000 + walk
    call_begin = start + np.cumsum(length + gap) - (length + gap)
    call_end = call_begin + length
    graph_begin = call_begin + 2_000 + walk
    release = graph_begin[:, None] + 500 + np.cumsum(slowest, axis=1)
    begin = release - slowest
    graph_end = release[:, -1] + 500
    tid = PID + np.arange(threads)
    shape = (tokens, threads, m)

    def flat(values: np.ndarray) -> np.ndarray:
        return np.broadcast_to(values, shape).reshape(-1)

    ops = pd.DataFrame(
        {
            "graph_id": flat(np.arange(tokens)[:, None, None]).astype(np.int32),
            "node_id": flat(outputs[None, None, :]).astype(np.int32),
            "fused": flat((1 + (outputs % 4 == 2))[None, None, :]).astype(np.int32),
            "tid": flat(tid[None, :, None]).astype(np.int32),
            "begin_ns": flat(begin[:, None, :]),
            "end_ns": flat(begin[:, None, :] + compute.transpose(0, 2, 1)),
            "release_ns": flat(release[:, None, :]),
            "complete": True,
        }
    )
    i = np.arange(tokens)
    phase = np.where(i == 0, "prefill", "decode")
    calls = pd.DataFrame(
        {
            "call_id": i.astype(np.int32),
            "tid": PID,
            "ctx": np.full(tokens, 0xFFFF_8000_0000_1000, np.uint64),
            "function": pd.Categorical(["llama_decode"] * tokens),
            "begin_ns": call_begin,
            "end_ns": call_end,
            "done_ns": call_end,
            "n_tokens": np.where(i == 0, 4, 1),
            "pos_first": np.where(i == 0, 0, 3 + i),
            "pos_last": np.where(i == 0, 3, 3 + i),
            "phase": pd.Categorical(phase),
            "generation": 0,
            "token_index": i - 1,
            "ret": 0,
            "n_seqs": 1,
            "seq": 0,
            "n_decoded": np.where(i == 0, 0, 1),
        }
    )
    generations = pd.DataFrame(
        {
            "ctx": calls["ctx"][:1],
            "seq": 0,
            "generation": 0,
            "begin_ns": call_begin[:1],
            "end_ns": call_end[-1:],
            "output_tokens": tokens - 1,
            "prompt_tokens": 4,
            "ttft_ns": call_end[:1] + 21_000 - call_begin[:1],
        }
    )
    samples = pd.DataFrame(
        {
            "sample_id": i.astype(np.int32),
            "tid": PID,
            "function": pd.Categorical(["llama_sampler_sample"] * tokens),
            "begin_ns": call_end + 1_000,
            "end_ns": call_end + 21_000,
        }
    )
    splits = pd.DataFrame(
        {
            "split_id": i.astype(np.int32),
            "tid": PID,
            "backend": pd.Categorical(["CPU"] * tokens),
            "guid": "aa",
            "cgraph": np.full(tokens, 0x5000, np.uint64),
            "n_nodes": n_nodes,
            "begin_ns": call_begin + 1_000,
            "end_ns": graph_end + 100,
            "call_id": i.astype(np.int32),
        }
    )
    graphs = pd.DataFrame(
        {
            "graph_id": i.astype(np.int32),
            "tid": PID,
            "cgraph": np.full(tokens, 0x5000, np.uint64),
            "def_id": 0,
            "n_nodes": n_nodes,
            "n_threads": threads,
            "threads_seen": threads,
            "begin_ns": graph_begin,
            "end_ns": graph_end,
            "call_id": i.astype(np.int32),
            "split_id": i.astype(np.int32),
            "phase": pd.Categorical(phase),
            "walk_ns": np.where(i == 0, walk, 0),
            "complete": True,
        }
    )
    thread_table = pd.DataFrame(
        {
            "tid": tid.astype(np.int32),
            "name": "llama-cli",
            "first_ns": start + np.arange(threads),
        }
    )
    counted = None
    if counters:
        spent = (ops.end_ns - ops.begin_ns).to_numpy(np.float64)
        counted = OpCounts(
            tuple(Counter(name=name) for name in counters),
            spent[:, None] * (2.0 + np.arange(len(counters))),
            ops.begin_ns.to_numpy(),
        )
    return Timeline(
        calls, samples, splits, graphs, table, ops, thread_table, generations, RECORDING,
        counted=counted,
    )  # fmt: skip


def main(slices: int, *counters: str) -> None:
    """Export about ``slices`` slices to a scratch file; print speed and peak memory."""
    import resource
    import tempfile
    import time

    from profinfer.render.perfetto import write

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    threads, n_nodes = 2, 700
    tokens = max(2, slices // (threads * (n_nodes // 2) * 3 // 2))
    timeline = synthetic(tokens, n_nodes, threads, counters=counters)
    tables = sum(t.memory_usage(deep=True).sum() for t in (timeline.ops, timeline.graphs)) / 2**20
    before = peak()
    with tempfile.TemporaryFile() as out:
        begin = time.perf_counter()
        written = write(timeline, out)
        took = time.perf_counter() - begin
    print(
        f"{written.slices:,} slices, {written.points:,} points, {written.bytes / 2**20:.1f} MiB in "
        f"{took:.2f} s: {written.slices / took:,.0f} slices/s, "
        f"{written.bytes / written.slices:.0f} bytes a slice; tables {tables:.0f} MiB, "
        f"peak {before:.0f} -> {peak():.0f} MiB"
    )


if __name__ == "__main__":
    import sys

    main(int(sys.argv[1]), *sys.argv[2:])
