"""Each part of the ledger has a colour of its own, on light and dark paper."""

from __future__ import annotations

import re
from itertools import combinations
from pathlib import Path

import pytest

from profinfer.analysis import overview
from profinfer.model.trace import Trace
from profinfer.render.html import operatorfigures
from profinfer.render.html.charts import ALL_TONES
from profinfer.render.html.page import stylesheet

GOLDEN = Path(__file__).parents[1] / "golden"
PARTS = ("wait", "torn", "empty", "gaps", "backends", "copies", "waits", "walk", "build",
         "unseen", "sampling", "between")  # fmt: skip
APART = 14  # CIE 1976: from 2.3 on a difference is seen at all


def lab(colour: str) -> tuple[float, float, float]:
    r, g, b = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (r, g, b))
    x = (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    z = (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089
    x, y, z = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def themes() -> list[dict[str, str]]:
    """Colours of light, dark by the system, dark by the button, and print."""
    blocks = re.findall(r"\{([^{}]*--c0:[^{}]*)\}", stylesheet())
    return [dict(re.findall(r"--(c\d+): (#\w{6});", block)) for block in blocks]


def test_each_part_has_its_own() -> None:
    for head in ("compute", "graphs", "calls"):
        tones = [operatorfigures._LEDGER[part] for part in (head, *PARTS)]
        assert len(set(tones)) == len(tones) and max(tones) < ALL_TONES


@pytest.mark.parametrize("name", ["generation", "lossy", "pair"])
def test_a_real_ledger_has_no_other_parts(name: str) -> None:
    trace = Trace.open(GOLDEN / f"{name}.pf")
    found = overview.ledger(trace, trace.select(phase="decode"))
    assert set(found.frame["part"]) <= set(operatorfigures._LEDGER)
    tones = operatorfigures.ledger(found).tones
    assert len(set(tones)) == len(tones) > 4


@pytest.mark.parametrize("theme", range(4))
def test_colours_can_be_told_apart(theme: int) -> None:
    colours = themes()[theme]
    assert len(themes()) == 4 and len(colours) == ALL_TONES
    for a, b in combinations(colours, 2):
        apart = sum((x - y) ** 2 for x, y in zip(lab(colours[a]), lab(colours[b]), strict=True))
        assert apart**0.5 >= APART, (a, b, apart**0.5)
