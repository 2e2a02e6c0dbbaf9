"""Layer 7: colours of a drawn graph: by time, bytes, rate, wait or role, with their legend.

Owns palettes and the steps that values fall into. Colours are told apart by lightness too, and text
on them stays readable. May import numpy and pandas; must not import the command line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from profinfer.analysis.opgraph import COUNTED, OpGraph
from profinfer.model.surroundings import CLOCKS
from profinfer.units import (
    format_byte_rate,
    format_bytes,
    format_ns,
    format_percent,
    format_short_count,
)

F64 = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

COLORS = ("time", "bytes", "rate", "wait", "role")
STEPS = 6
NEUTRAL = "#eceff2"  # nothing is known
ADDED, REMOVED, CHANGED = "#c3e8cb", "#f6c7c4", "#fbe3a6"


@dataclass(frozen=True)
class Theme:
    """What is drawn behind and between the operators.

    Attributes:
        back: background; "transparent" to let a page's own show.
        ink: titles.
        line: edges and borders.
        dim: labels of edges, things from outside.
        strong: the critical path.
        panel: background of a group.
    """

    back: str
    ink: str
    line: str
    dim: str
    strong: str
    panel: str


THEMES = {
    "light": Theme("#ffffff", "#1c2833", "#8795a1", "#5d6d7a", "#c0392b", "#f6f8fa"),
    "dark": Theme("#14181d", "#e6edf3", "#77838f", "#9aa7b3", "#ff7b6b", "#1c2229"),
    # For a page that has a light and a dark side of its own: every colour is seen on both.
    "none": Theme("transparent", "#7a8794", "#8795a1", "#7a8794", "#d9534f", "transparent"),
}

_RAMPS = {
    "time": ("#fff4dc", "#f9b872", "#c8402f"),
    "bytes": ("#edf6fb", "#7db9de", "#0d4a86"),
    "rate": ("#f1f6e4", "#9ccb86", "#23744a"),
    "wait": ("#f6f0f9", "#c3a3d6", "#6a3a92"),
    "counter": ("#eef7f7", "#8ccfcd", "#06464d"),
}
_ROLES = (
    "#bcd9f2", "#fbd3a8", "#c5e5bf", "#f4c1c4", "#d9caec", "#e8dba3", "#bfe5e3", "#f3cbe4",
    "#d6d9c4", "#cfd8e3", "#f6dccb", "#c9e6d5",
)  # fmt: skip


def _mix(a: str, b: str, part: float) -> str:
    x, y = (tuple(int(c[i : i + 2], 16) for i in (1, 3, 5)) for c in (a, b))
    return "#" + "".join(f"{round(p + (q - p) * part):02x}" for p, q in zip(x, y, strict=True))


def ramp(kind: str) -> list[str]:
    """Colours of the steps, light to dark."""
    low, middle, high = _RAMPS[kind]
    half = (STEPS - 1) / 2
    return [
        _mix(low, middle, i / half) if i <= half else _mix(middle, high, (i - half) / half)
        for i in range(STEPS)
    ]


def ink_on(color: str) -> str:
    """Black or white, whichever is read better on a colour (relative luminance, WCAG 2)."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#16202a" if (light + 0.05) / 0.05 >= 1.05 / (light + 0.05) else "#ffffff"


@dataclass(frozen=True)
class Coloring:
    """Fill of every node, and what the fills mean.

    Attributes:
        fill: colour by place in the graph.
        title: of the legend.
        legend: colour and text of each step.
    """

    fill: list[str]
    title: str
    legend: list[tuple[str, str]]


def coloring(graph: OpGraph, by: str, shown: Mask) -> Coloring:
    """Colours of the nodes.

    Args:
        graph: what is drawn.
        by: one of ``COLORS``, or the name of a counter.
        shown: nodes that the scale is to cover.
    """
    nodes = graph.nodes
    if by == "role":
        return _by_role(graph, shown)
    if by in graph.counters:
        return _by_counter(graph, by, shown)
    wall, size = nodes["wall_ns"].to_numpy(np.float64), nodes["bytes"].to_numpy(np.float64)
    both = (nodes["compute_ns"] + nodes["wait_ns"]).to_numpy(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = {
            "time": wall,
            "bytes": size,
            "rate": np.where(wall > 0, size * 1e9 / wall, np.nan),
            "wait": np.where(both > 0, nodes["wait_ns"].to_numpy(np.float64) / both, np.nan),
        }[by]
    title, text = {
        "time": ("time of an execution", format_ns),
        "bytes": ("least bytes moved", format_bytes),
        "rate": ("bytes moved / time", format_byte_rate),
        "wait": ("part of the time spent waiting", format_percent),
    }[by]
    return _by_value(value, shown & graph.works, by, title, text)


def counted(graph: OpGraph, name: str) -> tuple[F64, Callable[[float], str]]:
    """A counter's value of each node, and how it is written: bytes a second where it moves bytes.

    Args:
        graph: recorded with it.
        name: the counter.
    """
    mean = graph.nodes[COUNTED + name].to_numpy(np.float64)
    size = graph.counters[name]
    if name.partition(":")[0] in CLOCKS:
        return mean, format_ns
    if not size:
        return mean, format_short_count
    wall = graph.nodes["wall_ns"].to_numpy(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(wall > 0, mean * size * 1e9 / wall, np.nan), format_byte_rate


def _by_counter(graph: OpGraph, name: str, shown: Mask) -> Coloring:
    value, text = counted(graph, name)
    size = graph.counters[name]
    title = f"{name} x {size} B / time" if size else f"{name} of an execution"
    found = _by_value(value, shown & graph.works, "counter", title, text)
    if not (value[shown & graph.works] == 0).any():
        return found
    return Coloring(found.fill, found.title, [(NEUTRAL, "none"), *found.legend])


def _by_role(graph: OpGraph, shown: Mask) -> Coloring:
    roles = graph.texts("role")
    order = list(dict.fromkeys(roles))
    color = {role: _ROLES[i % len(_ROLES)] for i, role in enumerate(order)}
    here = {roles[i] for i in np.flatnonzero(shown & graph.works)}
    legend = [(color[role], role) for role in order if role in here]
    return Coloring([color[role] for role in roles], "role", legend)


def _by_value(
    value: F64, shown: Mask, by: str, title: str, text: Callable[[float], str]
) -> Coloring:
    """Steps of equal ratio; of equal size for a share."""
    known = np.isfinite(value) & ((value > 0) | (by == "wait"))
    usable = value[shown & known]
    if not len(usable):
        return Coloring([NEUTRAL] * len(value), title, [(NEUTRAL, "not known")])
    low, high = float(usable.min()), float(usable.max())
    if by == "wait":
        bounds = np.linspace(0.0, high, STEPS + 1)
    else:
        bounds = np.geomspace(low, max(high, low * 1.001), STEPS + 1)
    step = np.clip(np.searchsorted(bounds, np.nan_to_num(value), side="right") - 1, 0, STEPS - 1)
    colors = ramp(by)
    fill = [
        colors[s] if ok else NEUTRAL for s, ok in zip(step.tolist(), known.tolist(), strict=True)
    ]
    used = np.unique(step[shown & known]).tolist()
    legend = [(colors[i], f"{text(bounds[i])} to {text(bounds[i + 1])}") for i in used]
    return Coloring(fill, title, legend)
