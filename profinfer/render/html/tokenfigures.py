"""Layer 7: charts over tokens: how long each took, and what grows with the KV cache.

Makes charts of what analyses found; draws nothing. Must not import the command line.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from profinfer.analysis.result import Result
from profinfer.analysis.robust import band, level
from profinfer.analysis.steps import Steps
from profinfer.render.html.charts import ACCENT, MUTED, TONES, Axis, Plot, Series
from profinfer.units import format_ns, format_things

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]

POINTS_MAX = 3000  # values drawn of one series; of more every n-th
LINES_MAX = 800
ROLES = 6  # with a line of their own
STEPS_MIN = 8  # decode steps that are worth a chart


def thinned(n: int, most: int) -> I64:
    """Rows to draw of ``n``: all, or every k-th, the last one with them."""
    every = -(-n // most)
    rows = np.arange(0, n, max(every, 1))
    return rows if not n or rows[-1] == n - 1 else np.r_[rows, n - 1]


def _label(steps: Steps, at: int) -> str:
    return f"position {steps.position[at]:,}: {format_ns(int(steps.total[at]))}"


def _places(steps: Steps) -> tuple[F64, Axis]:
    """Where steps stand: positions of several generations would lie on each other."""
    alone = bool((np.diff(steps.position) > 0).all())
    x = (steps.position if alone else np.arange(len(steps.call))).astype(np.float64)
    return x, Axis("position of the token" if alone else "decode step", tight=True)


def token_times(steps: Steps, outliers: Result, at_slow: I64, usual: F64) -> Plot | None:
    """Every decode step, the middle and the band of its neighbours, and the outliers.

    Args:
        steps: all of them.
        outliers: the slowest outliers with their reasons.
        at_slow: rows of all outliers.
        usual: the middle of each step's neighbours.
    """
    n = len(steps.call)
    if n < STEPS_MIN:
        return None
    x, axis = _places(steps)
    y = steps.total.astype(np.float64)
    slow = outliers.frame
    bulk = np.setdiff1d(np.arange(n), at_slow)
    drawn = bulk[thinned(len(bulk), POINTS_MAX)]
    lines = thinned(n, LINES_MAX)
    low, high = band(y, 0.1), band(y, 0.9)
    top = 1.25 * float(max(np.quantile(y[bulk], 0.99), usual.max()))
    reasons = dict(zip(slow["call"].tolist(), slow["reason"].tolist(), strict=True))
    above = int((y > top).sum())
    about = (
        "Time from the end of one decode call to the end of the next; line: median of 51 tokens, "
        "band: their 10th to 90th percentile."
    )
    if above:
        about += f" {format_things(above, 'token')} above the chart: at its upper edge."
    if len(drawn) < len(bulk):
        about += (
            f" {len(drawn):,} of {len(bulk):,} usual tokens are drawn; line and band are of all."
        )
    series = [
        Series("10-90 % of neighbours", x[lines].tolist(),
               np.minimum(high[lines], top).tolist(), "band", 0,
               np.minimum(low[lines], top).tolist()),
        Series("token", x[drawn].tolist(), y[drawn].tolist(), "points", MUTED,
               tips=[_label(steps, i) for i in drawn.tolist()], size=3.0 if n < 200 else 2.0),
        Series("median of neighbours", x[lines].tolist(), usual[lines].tolist(), "line", 0),
        Series("slow token", x[at_slow].tolist(), y[at_slow].tolist(), "points", ACCENT,
               tips=[f"{_label(steps, i)}, usually {format_ns(float(usual[i]))}\n"
                     f"{reasons.get(int(steps.call[i]), '')}" for i in at_slow.tolist()],
               mark="diamond", size=4.0),
    ]  # fmt: skip
    guides = [(float(x[i]), "new graph") for i in np.flatnonzero(steps.rebuilt)[:12]]
    return Plot(
        "token-times",
        "Time per token",
        about,
        axis,
        Axis("time per token", "ns", zero=bool(usual.min() < 0.5 * top), most=top),
        [s for s in series if len(s.x)],
        guides,
    )


def token_times_log(steps: Steps, at_slow: I64, usual: F64) -> Plot | None:
    """Every decode step, however slow, on a logarithmic axis.

    Args:
        steps: all of them.
        at_slow: rows of the outliers.
        usual: the middle of each step's neighbours.
    """
    n = len(steps.call)
    if n < STEPS_MIN:
        return None
    x, axis = _places(steps)
    y = steps.total.astype(np.float64)
    bulk = np.setdiff1d(np.arange(n), at_slow)
    drawn = bulk[thinned(len(bulk), POINTS_MAX)]
    lines = thinned(n, LINES_MAX)
    about = "The same on a logarithmic axis: nothing lies above the chart."
    if len(drawn) < len(bulk):
        about += f" {len(drawn):,} of {len(bulk):,} usual tokens are drawn."
    series = [
        Series("token", x[drawn].tolist(), y[drawn].tolist(), "points", MUTED, size=2.0),
        Series("median of neighbours", x[lines].tolist(), usual[lines].tolist(), "line", 0),
        Series("slow token", x[at_slow].tolist(), y[at_slow].tolist(), "points", ACCENT,
               tips=[_label(steps, i) for i in at_slow.tolist()], mark="diamond", size=4.0),
    ]  # fmt: skip
    return Plot(
        "token-times-log",
        "Time per token, logarithmic",
        about,
        axis,
        Axis("time per token", "ns", log=True),
        [s for s in series if len(s.x)],
    )


def throughput(result: Result) -> Plot | None:
    """Tokens computed per second over time, a line for each phase.

    Args:
        result: of ``analysis.throughput``.
    """
    frame = result.frame
    if not len(frame) or frame["at_ns"].nunique() < 3:
        return None
    series = []
    for tone, (phase, rows) in enumerate(frame.groupby("phase", sort=True)):
        x = (rows["at_ns"] + rows["length_ns"] / 2).astype(float).tolist()
        y = rows["per_s"].astype(float).tolist()
        tips = [f"{phase}, after {format_ns(at)}: {v:,.1f} tok/s"
                for at, v in zip(x, y, strict=True)]  # fmt: skip
        series.append(Series(str(phase), x, y, "line", tone % TONES, tips=tips))
    length = format_ns(float(frame["length_ns"].iloc[0]))
    return Plot(
        "throughput",
        "Throughput over time",
        f"Tokens that calls of each phase computed, in slices of {length}.",
        Axis("since the first call", "ns", tight=True),
        Axis("tokens computed", "per_s"),
        series,
    )


def growth(steps: Steps) -> Plot | None:
    """Time of the slowest roles over the position: which lines rise."""
    n = len(steps.call)
    if n < STEPS_MIN or not steps.roles:
        return None
    x = steps.position.astype(np.float64)
    order = np.argsort(x, kind="stable")
    rows = thinned(n, LINES_MAX)
    series = []
    for at in range(min(ROLES, steps.roles)):
        values = level(steps.time[order, at].astype(np.float64), 15)
        name = steps.parts[at]
        tips = [f"{name}, position {steps.position[order[i]]:,}: {format_ns(float(values[i]))}"
                for i in rows.tolist()]  # fmt: skip
        series.append(Series("", x[order][rows].tolist(), values[rows].tolist(), "line",
                             at % TONES, tips=tips, label=name))  # fmt: skip
    # A stretch that was disturbed does not flatten all others.
    top = max(1.25 * float(np.quantile(s.y, 0.9)) for s in series)
    left = steps.roles - len(series)
    about = "Time per token in the operators of each role, median of 15 tokens."
    above = [(s.label, max(s.y)) for s in series if max(s.y) > top]
    if above:
        names = ", ".join(f"{name} to {format_ns(highest)}" for name, highest in above)
        about += f" Above the chart, where a triangle is: {names}."
    if left > 0:
        about += f" {format_things(left, 'faster role')} left out."
    return Plot(
        "growth",
        "What grows with the KV cache",
        about,
        Axis("position of the token", tight=True),
        Axis("time per token", "ns", most=top),
        series,
        _levels(steps),
    )


def _levels(steps: Steps) -> list[tuple[float, str]]:
    """Where attention was given more cells of the KV cache than before."""
    known = steps.cells >= 0
    out = []
    for cells in np.unique(steps.cells[known]).tolist()[1:12]:
        first = int(steps.position[steps.cells == cells].min())
        out.append((float(first), f"{cells:,} cells"))
    return out


def prefill_speed(prompts: Result) -> Plot | None:
    """Prefill speed over the length of the prompt, where there are several lengths."""
    frame = prompts.frame
    if frame["tokens"].nunique() < 3:
        return None
    x, y = frame["tokens"].astype(float).tolist(), frame["per_s"].astype(float).tolist()
    tips = [f"{n:,.0f} tokens: {v:,.1f} tok/s" for n, v in zip(x, y, strict=True)]
    return Plot(
        "prefill-speed",
        "Prefill speed over the length of the prompt",
        "One point a prompt.",
        Axis("tokens of the prompt"),
        Axis("speed", "per_s"),
        [Series("", x, y, "points", 0, tips=tips, size=4.0)],
    )
