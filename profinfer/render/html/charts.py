"""Layer 7: what a chart shows, without a word on how it is drawn.

A chart is made of plain numbers and texts: ``figures`` makes it from Results, ``plot`` and ``bars``
draw it. Must not import the command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from profinfer.analysis.result import Unit

# Colours are numbers here; the style sheet gives them their values, for light and for dark.
TONES = 8
ALL_TONES = 13  # with those for charts of many parts, such as the ledger
MUTED, ACCENT = "muted", "accent"
Tone = int | str


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        title: what it measures; the unit is added.
        unit: of the values: chooses the labels.
        log: logarithmic.
        zero: begins at 0 (linear axes).
        tight: begins and ends with the values.
        most: where it ends, None for the largest value. Points above are marks at the edge; a line
            ends there, with a mark.
    """

    title: str
    unit: Unit = "count"
    log: bool = False
    zero: bool = True
    tight: bool = False
    most: float | None = None


@dataclass(frozen=True)
class Series:
    """Values that belong together; x and y have the same length.

    Attributes:
        name: for the legend; empty leaves it out.
        x: places.
        y: values.
        kind: a line, points, or the band between ``low`` and y.
        tone: its colour.
        low: lower edge of a band.
        tips: what is said of each value when it is pointed at; none are silent.
        mark: form of points.
        size: radius of points, px.
        dashed: of lines.
        label: written at the end of a line.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    kind: Literal["line", "points", "band"] = "line"
    tone: Tone = 0
    low: Sequence[float] = ()
    tips: Sequence[str] = ()
    mark: Literal["circle", "diamond"] = "circle"
    size: float = 3.0
    dashed: bool = False
    label: str = ""


@dataclass(frozen=True)
class Cells:
    """Counts in a grid, for values that are too many to be drawn one by one.

    Attributes:
        title: of the legend: what is counted.
        places: left, right, lower and upper edge of each cell that has any.
        counts: of each; the most is drawn fullest, on a logarithmic scale.
        tips: what is said of each.
        tone: their colour.
    """

    title: str
    places: Sequence[tuple[float, float, float, float]]
    counts: Sequence[int]
    tips: Sequence[str]
    tone: Tone = 0


@dataclass(frozen=True)
class Plot:
    """Values over values.

    Attributes:
        name: stable key; the file's name when it is written apart.
        title: a heading.
        about: one or two sentences: how to read it.
        x: the horizontal axis.
        y: the vertical one.
        series: drawn in this order.
        guides: vertical lines: place and label.
        near: a pointer finds the value nearest in "x", or in both directions.
        cells: drawn below all else.
    """

    name: str
    title: str
    about: str
    x: Axis
    y: Axis
    series: Sequence[Series]
    guides: Sequence[tuple[float, str]] = ()
    near: Literal["x", "xy"] = "xy"
    cells: Cells | None = None


@dataclass(frozen=True)
class Bars:
    """Stacked bars.

    Attributes:
        name: stable key.
        title: a heading.
        about: how to read it.
        labels: of the bars.
        parts: names of the parts of each bar, in order.
        values: one row per bar, one value per part.
        axis: of the values.
        tones: colour of each part.
        tips: like ``values``: what is said of each part of each bar.
        upright: bars stand, for many of them in an order, such as layers.
        order: what the order of standing bars is.
    """

    name: str
    title: str
    about: str
    labels: Sequence[str]
    parts: Sequence[str]
    values: Sequence[Sequence[float]]
    axis: Axis
    tones: Sequence[Tone]
    tips: Sequence[Sequence[str]]
    upright: bool = False
    order: str = ""


@dataclass(frozen=True)
class Rows:
    """The same things, one a row, measured in several ways that are compared.

    Attributes:
        name: stable key.
        title: a heading.
        about: how to read it.
        labels: of the rows.
        names: of what is compared.
        values: one row per label, one value per name; NaN where there is none.
        axis: of the values.
        tones: colour of each name.
        tips: like ``values``: what is said of each.
        said: a word at the end of each row.
    """

    name: str
    title: str
    about: str
    labels: Sequence[str]
    names: Sequence[str]
    values: Sequence[Sequence[float]]
    axis: Axis
    tones: Sequence[Tone]
    tips: Sequence[Sequence[str]]
    said: Sequence[str]


@dataclass(frozen=True)
class Drawing:
    """An SVG made elsewhere, such as a graph of operators.

    Attributes:
        name: stable key.
        title: a heading.
        about: how to read it.
        svg: the element, trusted: its maker has escaped every name. It is styled by attributes
            and by the page's classes; the page allows no ``style`` in it.
    """

    name: str
    title: str
    about: str
    svg: str


Drawn = Plot | Bars | Rows
Chart = Drawn | Drawing
