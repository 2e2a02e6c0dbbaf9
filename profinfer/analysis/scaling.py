"""Layer 6: the same work with more threads: speed-up, efficiency, and what stops it.

Owns the tables of ``profinfer scaling``. Must not import rich or anything above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from profinfer.analysis import latency, notes
from profinfer.analysis.overview import model_name
from profinfer.analysis.result import Column, Note, Result
from profinfer.analysis.roofline import roofline
from profinfer.analysis.roofs import of_trace
from profinfer.analysis.scheduling import per_thread
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace

# A step to more threads is worth it when it makes things faster by at least this part.
WORTH = 0.05
# Parts of the thread time from which on something is named as what stops the scaling.
RUNNABLE_MIN = 0.05
WAIT_MIN = 0.10
ROOF_MIN = 0.60


@dataclass(frozen=True)
class Run:
    """One trace's part in the comparison.

    Attributes:
        trace: the trace.
        selection: the phase that is compared.
        threads: that computed.
        per_s: tokens per second of call time.
        roles: ns per token in operators by role.
        compute_ns: computing per token, summed over threads.
        wait: waiting in barriers / thread time.
        runnable: without a CPU / thread time, None if not recorded.
        roof: share of the memory roof of its threads, None without calibration.
    """

    trace: Trace
    selection: Selection
    threads: int
    per_s: float
    roles: pd.Series
    compute_ns: float
    wait: float
    runnable: float | None
    roof: float | None


def run(trace: Trace, selection: Selection) -> Run | None:
    """Measure one trace, None if nothing of it is selected."""
    if selection.empty or not selection.n_tokens or not len(trace.ops):
        return None
    sums = trace.sums(selection)
    threads = int(trace.graphs["threads_seen"].to_numpy()[selection.graphs].max(initial=0))
    spent = latency.call_times(trace)[selection.calls].sum()
    roles = pd.Series(sums.wall, trace.nodes["role"].astype(str)).groupby(level=0).sum()
    both = int(sums.compute.sum() + sums.wait.sum())
    runnable = None
    if trace.has_sched:
        states = per_thread(trace, selection)
        whole = int(states["op_ns"].sum())
        runnable = int(states["runnable_ns"].sum()) / whole if whole else 0.0
    found = of_trace(trace)
    roof = None
    if found.calibration is not None:
        roof = (roofline(trace, selection, "op", found).total or {}).get("of_memory")
    return Run(
        trace,
        selection,
        threads,
        selection.n_tokens * 1e9 / int(spent) if spent else np.nan,
        roles / selection.n_tokens,
        float(sums.compute.sum()) * threads / selection.n_tokens,
        int(sums.wait.sum()) / both if both else 0.0,
        runnable,
        roof,
    )


def grouped(runs: Sequence[Run]) -> list[tuple[int, list[Run]]]:
    """Runs by number of threads, fewest first."""
    counts = sorted({r.threads for r in runs})
    return [(n, [r for r in runs if r.threads == n]) for n in counts]


def _median(values: Sequence[float | None]) -> float:
    known = [v for v in values if v is not None]
    return float(np.median(known)) if known else np.nan


def by_threads(runs: Sequence[Run]) -> Result:
    """One row per number of threads: speed, speed-up, efficiency, what the threads did."""
    rows: list[dict[str, Any]] = []
    for threads, mine in grouped(runs):
        per_s = _median([r.per_s for r in mine])
        first = rows[0] if rows else {"threads": threads, "per_s": per_s, "compute_ns": np.nan}
        compute = _median([r.compute_ns for r in mine])
        speedup = per_s / first["per_s"]
        rows.append({
            "threads": threads,
            "traces": len(mine),
            "per_s": per_s,
            "speedup": speedup,
            "efficiency": speedup * first["threads"] / threads,
            "compute_ns": compute,
            "wait": _median([r.wait for r in mine]),
            "runnable": _median([r.runnable for r in mine]),
            "roof": _median([r.roof for r in mine]),
        })  # fmt: skip
    said = []
    for before, row in zip([None, *rows[:-1]], rows, strict=True):
        row["stops"], text = _stops(before, row)
        said += [Note("info", text)] if text else []
    columns = (
        Column("threads", "threads", "id", "Threads that computed."),
        Column("traces", "traces", "count", "Traces; of several the median counts.", detail=True),
        Column("per_s", "tok/s", "per_s", "Tokens per second of call time."),
        Column("speedup", "speed-up", "times", "Speed / speed with the fewest threads."),
        Column("efficiency", "effic.", "ratio", "Speed-up / how many times as many threads."),
        Column("compute_ns", "computing", "ns", "Computing per token, summed over threads: more "
               "than with fewer threads is time that each loses."),
        Column("wait", "wait", "ratio", "Waiting in barriers, of the threads' time."),
        Column("runnable", "no CPU", "ratio", "Without a CPU, of the threads' time."),
        Column("roof", "memory", "ratio", "Part of the memory roof of so many threads."),
        Column("stops", "held by", "text", "What keeps this step from its ideal gain."),
    )  # fmt: skip
    frame = pd.DataFrame(rows, columns=[c.name for c in columns])
    optional = [name for name in ("runnable", "roof") if not frame[name].notna().any()]
    known = tuple(c for c in columns if c.name not in optional)
    return Result(
        "scaling",
        "Threads",
        scope_of(runs),
        known,
        frame[[c.name for c in known]],
        (*_differences(runs), *losses_of(runs), *said, *_verdict(rows)),
    )


def _stops(before: dict[str, Any] | None, row: dict[str, Any]) -> tuple[str, str]:
    """Against fewer threads: in a word or two what holds the gain back, and a sentence."""
    if before is None:
        return "", ""
    gain = row["per_s"] / before["per_s"] - 1
    ideal = row["threads"] / before["threads"] - 1
    more = row["compute_ns"] / before["compute_ns"] - 1
    causes = [
        ("no CPU", row["runnable"], RUNNABLE_MIN, "of the threads' time without a CPU"),
        ("memory", row["roof"], ROOF_MIN, "of what memory can read"),
        ("waiting", row["wait"], WAIT_MIN, "of the threads' time waiting in barriers"),
        ("slower threads", more, WAIT_MIN, "more computing in all for the same work"),
    ]
    found = [(word, f"{100 * value:.0f} % {text}") for word, value, least, text in causes
             if value >= least]  # fmt: skip
    step = f"{before['threads']} -> {row['threads']} threads: {100 * gain:+.0f} %"
    if not found or gain >= 0.9 * ideal:
        return "", step
    return found[0][0], f"{step}; {', '.join(text for _, text in found)}"


def _verdict(rows: list[dict[str, Any]]) -> list[Note]:
    if len(rows) < 2:
        return [Note("info", "one number of threads: nothing to compare; give more traces")]
    best = max(rows, key=lambda row: row["per_s"])
    # The fewest threads that come as near to the best as makes no difference.
    enough = next(row for row in rows if row["per_s"] >= best["per_s"] / (1 + WORTH))
    text = f"fastest with {best['threads']} threads"
    if enough is not best:
        text += f"; {enough['threads']} are within {100 * WORTH:.0f} % of it"
    return [Note("info", text)]


def by_role(runs: Sequence[Run]) -> Result:
    """One row per role: time per token for each number of threads, speed-up with the most."""
    groups = grouped(runs)
    tables = [pd.concat([r.roles for r in mine], axis=1).median(axis=1) for _, mine in groups]
    frame = pd.concat(tables, axis=1).fillna(0)
    frame.columns = pd.Index([f"per_token_{n}_ns" for n, _ in groups])
    frame = frame[(frame > 0).any(axis=1)].sort_values(frame.columns[0], ascending=False)
    total = frame.sum()
    columns = [
        Column("role", "role", "text", "Part that the operator plays in the transformer."),
        *(
            Column(f"per_token_{n}_ns", f"-t {n}", "ns", f"Time per token with {n} threads.",
                   like="token")
            for n, _ in groups
        ),
    ]  # fmt: skip
    fewest = groups[0][0]
    for n, _ in groups[1:]:
        columns += [
            Column(f"speedup_{n}", f"{n}/{fewest}", "times", f"Speed-up with {n} threads."),
            Column(f"efficiency_{n}", f"eff. {n}", "ratio", "That / how many times the threads.",
                   detail=n != groups[-1][0]),
        ]  # fmt: skip
        for table in (frame, total):
            first, mine = table[f"per_token_{fewest}_ns"], table[f"per_token_{n}_ns"]
            table[f"speedup_{n}"] = first / mine
            table[f"efficiency_{n}"] = table[f"speedup_{n}"] * fewest / n
    out = frame.rename_axis("role").reset_index()
    return Result(
        "scaling_by_role",
        "Threads by role",
        scope_of(runs),
        tuple(columns),
        out[[c.name for c in columns]],
        losses_of(runs),
        {str(k): v for k, v in total.items()},
    )


def scope_of(runs: Sequence[Run]) -> str:
    """What tables of these runs cover."""
    phase = runs[0].selection.phase or "all phases"
    return f"{phase}: {', '.join(r.trace.path.name for r in runs)}; warm-up excluded"


def losses_of(runs: Sequence[Run]) -> tuple[Note, ...]:
    """What is missing from each of the traces."""
    return tuple(
        Note(note.severity, f"{r.trace.path.name}: {note.text}")
        for r in runs
        for note in notes.of(r.trace, r.selection)
    )


def _differences(runs: Sequence[Run]) -> list[Note]:
    """What besides threads differs between the traces, as warnings."""
    out = []
    told: dict[str, set[str | None]] = {
        "models": {model_name(r.trace.meta.target.argv) for r in runs},
        "engines": {f"{r.trace.meta.engine.name} {r.trace.meta.engine.version}" for r in runs},
        "CPUs": {r.trace.meta.host.cpu_model for r in runs},
    }
    for what, values in told.items():
        if len(values) > 1:
            names = ", ".join(sorted(str(v) for v in values))
            out.append(Note("warning", f"the traces are of different {what}: {names}"))
    return out
