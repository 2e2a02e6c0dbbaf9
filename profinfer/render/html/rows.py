"""Layer 7: draws ``Rows``: marks of the same thing measured in several ways, joined by a line.

Must not import the command line.
"""

from __future__ import annotations

import math

from profinfer.render.html.charts import Rows
from profinfer.render.html.drawing import (
    Size,
    legend,
    lying,
    paper,
    point,
    shortened,
    tone,
    wide_of,
)
from profinfer.render.html.scales import scale
from profinfer.render.html.svg import label, num, tag

ROW = 24.0  # px from row to row
_FORMS = ("circle", "diamond")


def tips(rows: Rows) -> list[str]:
    """What the marks say, row by row."""
    return [tip for row in rows.tips for tip in row]


def draw(rows: Rows, size: Size) -> str:
    """The SVG element."""
    forms = [_FORMS[i % len(_FORMS)] for i in range(len(rows.names))]
    entries = list(zip(rows.names, rows.tones, forms, strict=True))
    shown, above = legend(entries, 0.0, size.width)
    left = min(max(map(wide_of, rows.labels), default=0.0) + 12, size.width * 0.42)
    right = size.width - max((wide_of(text) for text in rows.said), default=0.0) - 12
    across = scale(rows.axis, [v for row in rows.values for v in row], left, right)
    bottom = above + ROW * len(rows.labels) + 6
    out, places = [lying(across, above + 4, bottom, size, rows.axis)], []
    lines = zip(rows.labels, rows.values, rows.said, strict=True)
    for i, (name, values, said) in enumerate(lines):
        y = above + ROW * i + ROW / 2 + 4
        known = [across(v) for v in values if math.isfinite(v)]
        out.append(label(left - 8, y + 4, shortened(name, left), "end"))
        out.append(label(right + 8, y + 4, said))
        if known:
            path = f"M{num(min(known))} {num(y)}H{num(max(known))}"
            out.append(tag("path", d=path, class_="guide"))
        for value, form, colour in zip(values, forms, rows.tones, strict=True):
            places.append((across(value) if math.isfinite(value) else left, y))
            if math.isfinite(value):
                mark = point(places[-1][0], y, 4.5, form)
                out.append(tag("path", d=mark, class_=f"fill {tone(colour)}"))
    answering = " ".join(f"{num(x)} {num(y)}" for x, y in places)
    told = f"{rows.title}. {rows.about}"
    return paper(size, bottom + 34, told, answering, "xy", shown, *out)
