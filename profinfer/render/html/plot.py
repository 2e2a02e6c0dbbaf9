"""Layer 7: draws a ``Plot``: lines, bands and points between two axes.

Must not import the command line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from profinfer.render.html.charts import Cells, Plot, Series
from profinfer.render.html.drawing import (
    FAINTEST,
    Size,
    gutter,
    legend,
    level,
    paper,
    point,
    tone,
    upright,
    wide_of,
)
from profinfer.render.html.scales import Scale, scale, titled
from profinfer.render.html.svg import label, num, tag

BEYOND = 4.0  # size of the mark where a line has left the chart, px


def tips(plot: Plot) -> list[str]:
    """What the values say when they are pointed at, in the order of ``data-points``."""
    cells = plot.cells.tips if plot.cells else ()
    return [*cells, *(tip for series in plot.series for tip in series.tips)]


def draw(plot: Plot, size: Size) -> str:
    """The SVG element."""
    cells = plot.cells
    entries = [(cells.title, cells.tone, "shades")] if cells else []
    entries += [
        (s.name, s.tone, "dashed" if s.dashed else s.kind if s.kind != "points" else s.mark)
        for s in plot.series
        if s.name
    ]
    shown, above = legend(entries, 0.0, size.width)
    top, bottom = above + 26, above + size.height - 44
    heights = [v for s in plot.series for v in (*s.y, *s.low)]
    heights += [v for place in cells.places for v in place[2:]] if cells else []
    widths = [v for s in plot.series for v in s.x]
    widths += [v for place in cells.places for v in place[:2]] if cells else []
    up = scale(plot.y, heights, bottom, top)
    labels = [s for s in plot.series if s.label]
    right = size.width - max((wide_of(s.label) + 10 for s in labels), default=12.0)
    across = scale(plot.x, widths, gutter(up), right)
    out = [
        shown,
        upright(up, across.start, across.stop, titled(plot.y, up)),
        level(across, bottom, size, titled(plot.x, across)),
    ]
    if cells is not None:
        out += _cells(cells, across, up)
    out += _guides(plot, across, right, top, bottom)
    out += [_series(series, across, up) for series in plot.series]
    out += _labels(labels, across, up)
    answering = _middles(cells, across, up) if cells and cells.tips else []
    answering += [
        (across(x), up(y)) for s in plot.series if s.tips for x, y in zip(s.x, s.y, strict=True)
    ]
    places = " ".join(f"{num(x)} {num(y)}" for x, y in answering)
    said = f"{plot.title}. {plot.about}"
    return paper(size, above + size.height, said, places, plot.near, *out)


def _guides(plot: Plot, across: Scale, right: float, top: float, bottom: float) -> list[str]:
    """Upright lines; a label that would lie on the one before is left out."""
    out, free = [], 0.0
    for place, text in plot.guides:
        if not across.low <= place <= across.high:
            continue
        x, wide = across(place), wide_of(text)
        out.append(tag("path", d=f"M{num(x)} {num(top)}V{num(bottom)}", class_="guide"))
        after = x + 4 + wide <= right
        begin = x + 4 if after else x - 4 - wide
        if begin >= free:
            out.append(
                label(x + 4 if after else x - 4, top + 10, text, "start" if after else "end")
            )
            free = begin + wide + 6
    return out


def _series(series: Series, across: Scale, up: Scale) -> str:
    colour = tone(series.tone)
    if series.kind == "band":
        return _band(series, across, up, colour)
    if series.kind == "line":
        return _line(series, across, up, colour)
    inside, beyond = [], []
    for x, y in zip(series.x, series.y, strict=True):
        if not math.isfinite(y) or (up.log and y <= 0):
            continue
        if y > up.high:
            beyond.append(point(across(x), up.stop, series.size + 1, "up"))
        else:
            inside.append(point(across(x), up(y), series.size, series.mark))
    return tag("path", d="".join(inside + beyond), class_=f"dot {colour}")


def _line(series: Series, across: Scale, up: Scale, colour: str) -> str:
    """A line that ends where it leaves the chart, with a mark above its highest value there."""
    values = [(x, y) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(y)]
    pieces: list[list[tuple[float, float]]] = [[]]
    beyond: list[list[tuple[float, float]]] = []
    before: tuple[float, float] | None = None
    for x, y in values:
        outside = y > up.high
        if before is not None and outside != (before[1] > up.high):
            part = (up.high - before[1]) / (y - before[1])
            edge = across(before[0]), across(x)
            crossing = edge[0] + part * (edge[1] - edge[0]), up.stop
            if outside:
                pieces[-1].append(crossing)
            else:
                pieces.append([crossing])
        if not outside:
            pieces[-1].append((across(x), up(y)))
        elif before is None or before[1] <= up.high:
            beyond.append([(x, y)])
        else:
            beyond[-1].append((x, y))
        before = x, y
    dashes = "5 4" if series.dashed else None
    drawn = "".join(_path(piece) for piece in pieces if piece)
    out = tag("path", d=drawn, class_=f"line {colour}", stroke_dasharray=dashes)
    marks = [max(run, key=lambda value: value[1])[0] for run in beyond]
    if marks:
        triangles = "".join(point(across(x), up.stop, BEYOND, "up") for x in marks)
        out += tag("path", d=triangles, class_=f"dot {colour}")
    return out


def _cells(cells: Cells, across: Scale, up: Scale) -> list[str]:
    most = math.log1p(max(cells.counts, default=1))
    out = []
    for (left, right, low, high), count in zip(cells.places, cells.counts, strict=True):
        x, y = across(left), up(high)
        # A hair between neighbours; one that is alone in the narrow page is still seen.
        wide, tall = max(across(right) - x - 0.5, 0.8), max(up(low) - y - 0.5, 0.8)
        depth = FAINTEST + (1 - FAINTEST) * math.log1p(count) / most
        out.append(tag("rect", x=x, y=y, width=wide, height=tall, class_=f"cell {tone(cells.tone)}",
                       fill_opacity=f"{depth:.2f}"))  # fmt: skip
    return out


def _middles(cells: Cells, across: Scale, up: Scale) -> list[tuple[float, float]]:
    return [((across(a) + across(b)) / 2, (up(c) + up(d)) / 2) for a, b, c, d in cells.places]


def _band(series: Series, across: Scale, up: Scale, colour: str) -> str:
    upper = [(across(x), up(y)) for x, y in zip(series.x, series.y, strict=True)]
    lower = [(across(x), up(y)) for x, y in zip(series.x, series.low, strict=True)]
    return tag("path", d=_path([*upper, *reversed(lower)]) + "z", class_=f"band {colour}")


def _path(pairs: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{num(x)} {num(y)}" for x, y in pairs)


def _labels(series: list[Series], across: Scale, up: Scale) -> list[str]:
    """Names at the ends of lines, moved apart where they would touch, from the lowest on up."""
    ends = sorted(((up(s.y[-1]), i) for i, s in enumerate(series)), reverse=True)
    out, last = [], math.inf
    for y, i in ends:
        last = min(y, last - 13)
        one = series[i]
        x = across(one.x[-1]) + 6
        out.append(label(x, last + 4, one.label, "start", f"end {tone(one.tone)}"))
    return out
