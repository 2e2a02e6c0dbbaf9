"""Layer 7: charts of the same work with more and more threads.

Makes charts of what analyses found; draws nothing. Must not import the command line.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from profinfer.analysis.result import Column, Result, Unit
from profinfer.render.html.charts import MUTED, TONES, Axis, Plot, Series
from profinfer.units import format_bytes, format_ns, format_percent, format_things

ROLES = 6  # with a line of their own
# What says most of why threads do not help, first of those that were counted.
_TELLING = ("stalled", "ipc", "on_cpu")
_AXES: dict[str, tuple[str, Unit]] = {
    "stalled": ("cycles without progress / cycles", "ratio"),
    "ipc": ("instructions / cycles", "per_cycle"),
    "on_cpu": ("task-clock / time of the threads", "ratio"),
}


def speed(table: Result) -> Plot | None:
    """Tokens a second over threads, beside the ideal."""
    frame = table.frame
    if len(frame) < 2:
        return None
    x, y = frame["threads"].astype(float).tolist(), frame["per_s"].astype(float).tolist()
    tips = [
        f"{format_things(int(n), 'thread')}: {v:,.1f} tok/s, {up:.2f} x, {format_percent(part)} of "
        f"the ideal" + (f"\nheld by {stops}" if stops else "")
        for n, v, up, part, stops in zip(
            x, y, *(frame[c].tolist() for c in ("speedup", "efficiency", "stops")), strict=True
        )
    ]
    ideal = [y[0] * n / x[0] for n in x]
    # The ideal of many threads may lie far above what there is.
    most = min(max(ideal), 2.5 * max(y))
    shown = [(n, v) for n, v in zip(x, ideal, strict=True) if v <= most]
    if len(shown) < len(x):
        shown.append((x[0] * most / y[0], most))
    return Plot(
        "scaling-speed",
        "Speed over threads",
        "Tokens per second of call time; dashed: as many times as fast as there are threads.",
        Axis("threads", "id"),
        Axis("speed", "per_s"),
        [
            Series("ideal", [n for n, _ in shown], [v for _, v in shown], "line", MUTED,
                   dashed=True),
            Series("", x, y, "line", 0),
            Series("measured", x, y, "points", 0, tips=tips, size=5.0),
        ],
    )  # fmt: skip


def roles(table: Result, threads: list[int]) -> Plot | None:
    """Time of a token by role over threads."""
    if len(threads) < 2:
        return None
    frame = table.frame.head(ROLES)
    series = []
    for tone, row in enumerate(frame.to_dict("records")):
        name = str(row["role"])
        y = [float(row[f"per_token_{n}_ns"]) for n in threads]
        tips = [f"{name}, {format_things(n, 'thread')}: {format_ns(v)} a token"
                for n, v in zip(threads, y, strict=True)]  # fmt: skip
        if min(y) > 0:
            series.append(Series("", threads, y, "line", tone % TONES, tips=tips, label=name))
    left = len(table.frame) - len(series)
    about = "Time per token in the operators of each role."
    about += f" {format_things(left, 'faster role')} left out." if left else ""
    return Plot(
        "scaling-roles",
        "Roles over threads",
        about,
        Axis("threads", "id"),
        Axis("time per token", "ns", log=True),
        series,
    )


def sizes(table: Result) -> Plot | None:
    """Time of one execution over the bytes that it moves, for each number of threads."""
    frame = table.frame[(table.frame["moved"] > 0) & (table.frame["median_ns"] > 0)]
    if len(frame) < 2:
        return None
    series = []
    for tone, (threads, rows) in enumerate(frame.groupby("threads")):
        told: Any = rows.itertuples()
        name = format_things(int(str(threads)), "thread")
        tips = [
            f"{row.role}, {row.op} {row.problem} {row.types}, {name}\n"
            f"{format_bytes(row.moved)}: {format_ns(row.median_ns)}, "
            f"{row.moved / row.median_ns:,.2f} GB/s"
            for row in told
        ]
        series.append(Series(name, rows["moved"].astype(float).tolist(),
                             rows["median_ns"].astype(float).tolist(), "points", tone % TONES,
                             tips=tips, size=3.5,
                             mark="diamond" if tone % 2 else "circle"))  # fmt: skip
    said = next((n.text for n in table.notes if n.text.startswith("bytes are")), "")
    return Plot(
        "scaling-sizes",
        "Time over bytes moved",
        "One execution of each kind and size of operator, median. Threads help where the points "
        f"of more lie lower; {said}.",
        Axis("read and written by one", "bytes", log=True),
        Axis("time of one", "ns", log=True),
        series,
    )


def counted(table: Result) -> Plot | None:
    """Time of a token by role over what was counted, for each number of threads."""
    frame = table.frame[(table.frame["role"] != "all") & (table.frame["wall_ns"] > 0)]
    column = _telling(table)
    if column is None:
        return None
    title, unit = _AXES.get(column.name, (f"{column.title.removesuffix('/tok')} a token",
                                          column.unit))  # fmt: skip
    frame = frame.dropna(subset=[column.name])
    series = []
    for tone, (threads, rows) in enumerate(frame.groupby("threads")):
        name = format_things(int(str(threads)), "thread")
        x = rows[column.name].astype(float).tolist()
        y = rows["wall_ns"].astype(float).tolist()
        tips = [
            f"{role}, {name}: {format_ns(b)} a token\n{title}: "
            f"{format_percent(a) if unit == 'ratio' else f'{a:,.2f}'}"
            for role, a, b in zip(rows["role"].tolist(), x, y, strict=True)
        ]
        series.append(Series(name, x, y, "points", tone % TONES, tips=tips, size=4.5,
                             mark="diamond" if tone % 2 else "circle"))  # fmt: skip
    if sum(len(s.x) for s in series) < 2:
        return None
    return Plot(
        "scaling-counters",
        f"Time over {title}",
        "One point a role and number of threads, from counters.",
        Axis(title, unit, zero=False),
        Axis("time per token", "ns", log=True),
        series,
    )


def _telling(table: Result) -> Column | None:
    """The column to draw over: a ratio that says much, else a count that is not always 0."""
    columns = {c.name: c for c in table.columns}
    for name in _TELLING:
        if name in columns:
            return columns[name]
    left = [c for n, c in columns.items() if n not in ("role", "threads", "wall_ns")]
    return next((c for c in left if pd.to_numeric(table.frame[c.name]).max() > 0), None)
