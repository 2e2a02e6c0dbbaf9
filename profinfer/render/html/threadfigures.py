"""Layer 7: charts of threads and memory: what each thread did, what became resident.

Makes charts of what analyses found; draws nothing. Must not import the command line.
"""

from __future__ import annotations

from profinfer.analysis.result import Result
from profinfer.render.html.charts import Axis, Bars, Plot, Series
from profinfer.units import format_bytes, format_ns, format_percent

BARS_MAX = 32  # threads with a bar of their own


def _names(result: Result) -> list[str]:
    frame = result.frame.head(BARS_MAX)
    return [
        f"{n} {t}" for n, t in zip(frame["thread"].tolist(), frame["tid"].tolist(), strict=True)
    ]


def threads(result: Result) -> Bars | None:
    """Computing, waiting and the rest of each thread."""
    frame = result.frame.head(BARS_MAX)
    if not len(frame):
        return None
    parts = [("compute_ns", "computing", 0), ("wait_ns", "waiting", 1), ("gap_ns", "gap", 7)]
    if "empty_ns" in frame:
        parts.insert(2, ("empty_ns", "empty nodes", 5))
    values = frame[[p[0] for p in parts]].astype("Float64").fillna(0).clip(lower=0)
    rows = [[float(v) for v in row] for row in values.to_numpy().tolist()]
    names = _names(result)
    tips = [
        [f"{name}\n{part[1]}: {format_ns(v)}" for part, v in zip(parts, row, strict=True)]
        for name, row in zip(names, rows, strict=True)
    ]
    return Bars(
        "threads-chart",
        "Compute or wait",
        "Sum over the operators; a gap is time in graphs but in no operator.",
        names,
        [p[1] for p in parts],
        rows,
        Axis("time", "ns"),
        [p[2] for p in parts],
        tips,
    )


def states(result: Result) -> Bars | None:
    """Parts of each thread's operator time on a CPU, spinning, without one, asleep."""
    frame = result.frame.head(BARS_MAX)
    if not len(frame):
        return None
    share = frame[["on_cpu", "spinning", "runnable", "blocked"]].astype(float).fillna(0.0)
    values = [
        [max(on - spin, 0.0), spin, ready, asleep]
        for on, spin, ready, asleep in share.to_numpy().tolist()
    ]
    parts = ["on a CPU, computing", "on a CPU, spinning in a barrier", "wants a CPU", "asleep"]
    names = _names(result)
    tips = [
        [f"{name}\n{part}: {format_percent(v)}" for part, v in zip(parts, row, strict=True)]
        for name, row in zip(names, values, strict=True)
    ]
    return Bars(
        "thread-states-chart",
        "Thread states",
        "Parts of the operators' time, as the scheduler's events tell.",
        names,
        parts,
        values,
        Axis("of its operators' time", "ratio"),
        [0, 5, 3, 7],
        tips,
    )


def memory(result: Result) -> Plot | None:
    """Resident memory and bytes read from disk over time."""
    frame = result.frame
    if len(frame) < 3:
        return None
    x = frame["at_ns"].astype(float).tolist()
    series = []
    for tone, (name, title) in enumerate(
        (("rss", "resident"), ("anon", "own"), ("file", "of files"), ("read", "read from disk"))
    ):
        known = frame[name].astype("Float64")
        if not known.notna().all():
            continue
        y = known.astype(float).tolist()
        tips = [
            f"after {format_ns(at)}, {title}: {format_bytes(v)}" for at, v in zip(x, y, strict=True)
        ]
        series.append(Series(title, x, y, "line", tone, tips=tips))
    return (
        Plot(
            "memory-chart",
            "Memory over time",
            "Readings of /proc; read from disk is what was read so far.",
            Axis("since the first reading", "ns", tight=True),
            Axis("memory", "bytes"),
            series,
        )
        if series
        else None
    )
