"""Per tenth of a run: how much of the time each thread ran on each CPU, and waited for one."""

import itertools
import sys

import numpy as np

import profinfer

trace = profinfer.open(sys.argv[1])
sched = trace.sched[trace.sched["tid"].isin(trace.ops["tid"].unique())]
edges = np.linspace(trace.calls["begin_ns"].min(), trace.calls["done_ns"].max(), 11)
print(f"{'thread':>8} {'% of a tenth':<14}" + "".join(f"{n:>4}." for n in range(1, 11)))
for tid, mine in sched.groupby("tid"):
    what = (
        mine["state"]
        .astype(str)
        .where(mine["state"] != "running", "runs on CPU " + mine["cpu"].astype(str))
    )
    for name in sorted(what.unique()):
        rows = mine[what == name]
        begin, end = rows["begin_ns"].to_numpy(), rows["end_ns"].to_numpy()
        parts = [
            (np.minimum(end, b) - np.maximum(begin, a)).clip(0).sum() / (b - a)
            for a, b in itertools.pairwise(edges)
        ]
        if max(parts) >= 0.01:
            print(f"{tid:>8} {name:<14}" + "".join(f"{100 * p:5.0f}" for p in parts))
