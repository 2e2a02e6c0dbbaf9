"""Lines that leave a chart end there, and say so."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from kvruns import kv_run

from profinfer.analysis.steps import decode_steps
from profinfer.model.trace import Trace
from profinfer.render.html import plot
from profinfer.render.html.charts import Axis, Plot, Series
from profinfer.render.html.drawing import WIDE
from profinfer.render.html.tokenfigures import growth

SVG = "{http://www.w3.org/2000/svg}"


def drawn(values: list[float], most: float) -> tuple[list[list[tuple[float, float]]], int]:
    """The pieces of the line, and how many marks there are."""
    picture = Plot("x", "x", "", Axis("x", tight=True), Axis("y", most=most),
                   [Series("", list(range(len(values))), values)])  # fmt: skip
    root = ElementTree.fromstring(plot.draw(picture, WIDE))
    paths = {p.get("class", "").split()[0]: p.get("d", "") for p in root.iter(f"{SVG}path")}
    pieces = [
        [tuple(map(float, at.split())) for at in piece.split("L")]
        for piece in paths["line"].split("M")[1:]
    ]
    return pieces, len(re.findall("M", paths.get("dot", "")))


def test_a_line_ends_at_the_edge_and_begins_there_again() -> None:
    pieces, marks = drawn([10, 10, 190, 300, 190, 10, 10, 190, 10], 100)
    assert marks == 2
    assert len(pieces) == 3
    top = min(y for piece in pieces for _, y in piece)
    assert [piece[0][1] == top for piece in pieces] == [False, True, True]
    assert [piece[-1][1] == top for piece in pieces] == [True, True, False]
    # It leaves half-way between 10 and 190, and stays on its way there.
    first, step = pieces[0], pieces[0][1][0] - pieces[0][0][0]
    assert first[-1][0] == pytest.approx(first[1][0] + step / 2, abs=0.2)


def test_a_line_that_stays_is_whole() -> None:
    pieces, marks = drawn([10, 100, 10], 100)
    assert len(pieces) == 1 and len(pieces[0]) == 3 and marks == 0


def test_a_line_that_begins_above() -> None:
    pieces, marks = drawn([300, 200, 50], 100)
    assert len(pieces) == 1 and marks == 1


def test_growth_says_what_is_above(tmp_path: Path) -> None:
    trace = Trace.open(kv_run(200, {}).write(tmp_path / "kv.pf"))
    steps = decode_steps(trace, trace.select(phase="decode"))
    calm = growth(steps)
    assert calm is not None and "triangle" not in calm.about
    steps.time[60:75, 0] = 5_000_000
    disturbed = growth(steps)
    said = f"Above the chart, where a triangle is: {steps.parts[0]} to 5.00 ms."
    assert disturbed is not None and said in disturbed.about
