"""Layer 7: what every chart has: the frame, the axes, the legend, the places that answer.

Must not import the command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from profinfer.render.html.charts import Axis, Tone
from profinfer.render.html.scales import Scale, titled
from profinfer.render.html.svg import esc, label, num, tag

CHARACTER = 6.3  # px of one at 11 px, a little more than the mean
LINE = 16.0  # px of a row of the legend
FAINTEST = 0.15  # opacity of the least of cells


@dataclass(frozen=True)
class Size:
    """Of the paper, px.

    Attributes:
        width: of all of it.
        height: likewise.
        ticks: about how many along the width.
    """

    width: float
    height: float
    ticks: int


WIDE = Size(900, 320, 8)
NARROW = Size(380, 300, 4)


def wide_of(text: str) -> float:
    """About how wide a text is, px."""
    return CHARACTER * len(text)


def tone(value: Tone) -> str:
    """The class that gives an element its colour."""
    return f"t{value}"


def legend(
    entries: Sequence[tuple[str, Tone, str]], left: float, right: float
) -> tuple[str, float]:
    """Names with their marks, in rows from ``left`` to ``right``; the markup and its height.

    Args:
        entries: name, tone, and what to draw: line, dashed, band, circle, diamond, bar or shades.
        left: px.
        right: px.
    """
    out, x, y = [], left, 10.0
    for name, colour, form in entries:
        need = (46 if form == "shades" else 22) + wide_of(name) + 12
        if x > left and x + need > right:
            x, y = left, y + LINE
        out.append(_mark(form, x + 8, y, tone(colour)))
        out.append(label(x + need - 12 - wide_of(name), y + 4, name))
        x += need
    return "".join(out), y + LINE if entries else 0.0


def _mark(form: str, x: float, y: float, colour: str) -> str:
    if form in ("line", "dashed"):
        dashes = "5 4" if form == "dashed" else None
        path = f"M{num(x - 8)} {num(y)}h16"
        return tag("path", d=path, class_=f"line {colour}", stroke_dasharray=dashes)
    if form == "band":
        return tag("rect", x=x - 8, y=y - 5, width=16.0, height=10.0, class_=f"band {colour}")
    if form == "shades":
        steps = [FAINTEST + (1 - FAINTEST) * i / 3 for i in range(4)]
        return "".join(
            tag("rect", x=x - 8 + 10 * i, y=y - 5, width=10.0, height=10.0,
                class_=f"cell {colour}", fill_opacity=f"{step:.2f}")
            for i, step in enumerate(steps)
        )  # fmt: skip
    if form == "bar":
        return tag("rect", x=x - 5, y=y - 5, width=10.0, height=10.0, rx=2, class_=f"fill {colour}")
    return tag("path", d=point(x, y, 4.0, form), class_=f"fill {colour}")


def point(x: float, y: float, r: float, form: str) -> str:
    """Path of a mark."""
    if form == "diamond":
        r *= 1.25
        return f"M{num(x)} {num(y - r)}l{num(r)} {num(r)}l{num(-r)} {num(r)}l{num(-r)} {num(-r)}z"
    if form == "up":
        return f"M{num(x)} {num(y)}l{num(r)} {num(1.8 * r)}h{num(-2 * r)}z"
    half = f"a{num(r)} {num(r)} 0 1 0 "
    return f"M{num(x - r)} {num(y)}{half}{num(2 * r)} 0{half}{num(-2 * r)} 0z"


def upright(up: Scale, left: float, right: float, title: str) -> str:
    """Lines, labels and title of the upright axis, and the line that it stands on."""
    out = []
    for value, text in up.ticks():
        y = up(value)
        out.append(tag("path", d=f"M{num(left)} {num(y)}H{num(right)}", class_="grid"))
        out.append(label(left - 8, y + 4, text, "end"))
    out.append(tag("path", d=f"M{num(left)} {num(up.start)}H{num(right)}", class_="axis"))
    out.append(label(2.0, up.stop - 10, title, "start", "title"))
    return "".join(out)


def level(across: Scale, low: float, size: Size, title: str) -> str:
    """Labels and title of the level axis, which lies at ``low``."""
    out = []
    for value, text in across.ticks(size.ticks):
        x = across(value)
        out.append(tag("path", d=f"M{num(x)} {num(low)}v5", class_="axis"))
        out.append(label(x, low + 18, text, "middle"))
    middle = (across.start + across.stop) / 2
    return "".join(out) + label(middle, low + 36, title, "middle", "title")


def lying(across: Scale, top: float, bottom: float, size: Size, axis: Axis) -> str:
    """Lines, labels and title of the level axis below rows from ``top`` to ``bottom``."""
    out = []
    for value, text in across.ticks(size.ticks - 2):
        x = across(value)
        out.append(tag("path", d=f"M{num(x)} {num(top)}V{num(bottom)}", class_="grid"))
        out.append(label(x, bottom + 15, text, "middle"))
    title = titled(axis, across)
    return "".join(out) + label(size.width - 14, bottom + 31, title, "end", "title")


def shortened(name: str, room: float) -> str:
    """A name that fits left of a row."""
    fits = int((room - 10) / CHARACTER)
    return name if len(name) <= fits else name[: max(fits - 1, 1)] + "…"


def gutter(shown: Scale) -> float:
    """Room that the labels of an upright axis need."""
    return max((wide_of(text) for _, text in shown.ticks()), default=0.0) + 14


def paper(size: Size, height: float, said: str, points: str, near: str, *inner: str) -> str:
    """The SVG element.

    Args:
        size: of the paper.
        height: of this drawing.
        said: what one who does not see it is told.
        points: "x y x y ..." of the values that answer, in the order of the tips.
        near: "x" or "xy".
        inner: markup.
    """
    return (
        f'<svg viewBox="0 0 {num(size.width)} {num(height)}" role="img" tabindex="0" '
        f'aria-label="{esc(said)}" data-near="{near}" data-points="{points}" '
        f'xmlns="http://www.w3.org/2000/svg">{"".join(inner)}</svg>'
    )
