"""Layer 7: draws ``Bars``: lying ones with their names, or standing ones in an order.

Must not import the command line.
"""

from __future__ import annotations

from profinfer.render.html.charts import Bars
from profinfer.render.html.drawing import (
    Size,
    gutter,
    legend,
    lying,
    paper,
    shortened,
    tone,
    upright,
    wide_of,
)
from profinfer.render.html.scales import scale, titled
from profinfer.render.html.svg import label, tag

ROW = 30.0  # px from bar to bar
THICK = 18.0


def tips(bars: Bars) -> list[str]:
    """What the parts say, bar by bar."""
    return [tip for row in bars.tips for tip in row]


def draw(bars: Bars, size: Size) -> str:
    """The SVG element."""
    entries = [(name, bars.tones[i], "bar") for i, name in enumerate(bars.parts)]
    shown, above = legend(entries, 0.0, size.width)
    body = _standing(bars, size, above) if bars.upright else _lying(bars, size, above)
    height = above + (size.height if bars.upright else ROW * len(bars.labels) + 40)
    return paper(size, height, f"{bars.title}. {bars.about}", "", "xy", shown, body)


def _lying(bars: Bars, size: Size, above: float) -> str:
    sums = [sum(row) for row in bars.values]
    left = min(max(map(wide_of, bars.labels), default=0.0) + 12, size.width * 0.4)
    across = scale(bars.axis, [0.0, *sums], left, size.width - 14)
    bottom = above + ROW * len(bars.labels) + 6
    out = [lying(across, above + 4, bottom, size, bars.axis)]
    number = 0
    for i, (name, row) in enumerate(zip(bars.labels, bars.values, strict=True)):
        y = above + ROW * i + (ROW - THICK) / 2 + 4
        out.append(label(left - 8, y + 13, shortened(name, left), "end"))
        done = 0.0
        for part, value in enumerate(row):
            x, end = across(done), across(done + value)
            out.append(tag("rect", x=x, y=y, width=max(end - x, 0.0), height=THICK, data_i=number,
                           class_=f"fill {tone(bars.tones[part])}"))  # fmt: skip
            done += value
            number += 1
    return "".join(out)


def _standing(bars: Bars, size: Size, above: float) -> str:
    sums = [sum(row) for row in bars.values]
    top, bottom = above + 26, above + size.height - 44
    up = scale(bars.axis, [0.0, *sums], bottom, top)
    left, right = gutter(up), size.width - 8
    step = (right - left) / max(len(bars.labels), 1)
    thick = max(step * 0.78, 1.0)
    out = [upright(up, left, right, titled(bars.axis, up))]
    out.append(label((left + right) / 2, bottom + 36, bars.order, "middle", "title"))
    widest = max(map(wide_of, bars.labels), default=0.0)
    every = max(1, -(-int(widest + 6) // max(int(step), 1)))
    number = 0
    for i, (name, row) in enumerate(zip(bars.labels, bars.values, strict=True)):
        x = left + step * i + (step - thick) / 2
        if i % every == 0:
            out.append(label(x + thick / 2, bottom + 18, name, "middle"))
        done = 0.0
        for part, value in enumerate(row):
            y, end = up(done), up(done + value)
            out.append(tag("rect", x=x, y=end, width=thick, height=max(y - end, 0.0),
                           data_i=number, class_=f"fill {tone(bars.tones[part])}"))  # fmt: skip
            done += value
            number += 1
    return "".join(out)
