"""Layer 6: what each thread of both sides did. Must not import rich or anything above."""

from __future__ import annotations

import numpy as np
import pandas as pd

from profinfer.analysis.compare.changes import Changes
from profinfer.analysis.compare.runs import Run
from profinfer.analysis.compare.views import TITLES, losses, scope
from profinfer.analysis.result import Column, Result


def _per_thread(run: Run) -> pd.DataFrame:
    """Compute and wait per token of each thread, the one that calls first: then by number."""
    ops = run.trace.ops
    kept = np.zeros(run.samples.n + 1, bool)
    kept[run.kept] = True  # the last one stands for -1
    mine = kept[run.samples.owner[ops["graph_id"].to_numpy()]] & ops["complete"].to_numpy()
    main = run.trace.graphs["tid"].mode()
    tid, begin, end, release = (
        ops[c].to_numpy()[mine] for c in ("tid", "begin_ns", "end_ns", "release_ns")
    )
    every = sorted(set(tid.tolist()), key=lambda t: (t not in set(main), t))
    place = pd.Series(range(len(every)), index=every)
    frame = pd.DataFrame({"compute": end - begin, "wait": release - end}).groupby(
        place.reindex(tid).to_numpy()
    )
    sums: pd.DataFrame = frame.sum() / run.samples.tokens[run.kept].sum()
    return sums


def threads(changes: Changes) -> Result:
    """Computing and waiting per token, thread by thread in order of their numbers."""
    sides = []
    for side, runs in (("a", changes.of.a), ("b", changes.of.b)):
        parts = [_per_thread(run) for run in runs]
        sides.append(pd.concat(parts).groupby(level=0).mean().add_suffix(f"_{side}"))
    frame = pd.concat(sides, axis=1)
    for what in ("compute", "wait"):
        both = frame[[f"{what}_a", f"{what}_b"]].fillna(0.0)
        frame[f"{what}_diff"] = both[f"{what}_b"] - both[f"{what}_a"]
    frame["thread"] = ["the caller", *(f"worker {i}" for i in range(1, len(frame)))][: len(frame)]
    frame = frame.reset_index(drop=True)
    columns = [Column("thread", "thread", "text", "Which, in order of the thread ids.")]
    for what, title in (("compute", "computing"), ("wait", "waiting")):
        columns += [
            Column(f"{what}_a", f"{what} a", "ns", f"Per token {title} in a.", like="time"),
            Column(f"{what}_b", f"{what} b", "ns", f"Per token {title} in b.", like="time"),
            Column(f"{what}_diff", "b - a", "ns", "Difference.", like="time", signed=True),
        ]
    names = [c.name for c in columns]
    return Result("diff_by_thread", TITLES["thread"], scope(changes.of), tuple(columns),
                  frame[names], tuple(losses(changes.of)))  # fmt: skip
