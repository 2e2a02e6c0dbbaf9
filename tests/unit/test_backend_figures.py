"""The chart of the same operators in two recordings: the marks stand where the times are."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from builders import sample_run

from profinfer.analysis.comparison import compare
from profinfer.cli import run
from profinfer.cli.report import command
from profinfer.model.trace import Trace
from profinfer.render.html import rows
from profinfer.render.html.backendfigures import against
from profinfer.render.html.charts import Axis, Rows
from profinfer.render.html.drawing import NARROW, WIDE, Size


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """The second one takes twice as long for everything."""
    return tuple(  # type: ignore[return-value]
        sample_run(compute=ns).builder.write(tmp_path / f"{ns}.pf") for ns in (20_000, 40_000)
    )


def test_every_kind_of_operator_has_a_row(pair: tuple[Path, Path]) -> None:
    here, there = map(Trace.open, pair)
    result = compare(here, here.select(phase="decode"), there, there.select(phase="decode"))
    drawn = against(result, "against-decode", "a.pf", "b.pf")
    assert drawn is not None and len(drawn.labels) == len(result.frame)
    assert all(there > 1.9 * here for here, there in drawn.values)
    assert all(said.startswith(("1.9", "2.0")) for said in drawn.said)
    assert "saved" in drawn.tips[0][0] and "b.pf, on CPU" in drawn.tips[0][1]


@pytest.mark.parametrize("size", [WIDE, NARROW])
def test_marks_stand_at_their_values(size: Size) -> None:
    chart = Rows("x", "x", "", ["long name " * 9, "b"], ["one", "two"],
                 [[1e3, 1e5], [1e4, float("nan")]], Axis("time", "ns", log=True), [0, 1],
                 [["1", "2"], ["3", "none"]], ["100 x", ""])  # fmt: skip
    root = ElementTree.fromstring(rows.draw(chart, size))
    flat = [float(v) for v in root.attrib["data-points"].split()]
    x, y = flat[::2], flat[1::2]
    assert x[0] < x[2] < x[1] and x[2] == pytest.approx((x[0] + x[1]) / 2, abs=0.2)
    assert y[0] == y[1] < y[2]
    assert len(rows.tips(chart)) == len(x)
    paths = [e for e in root.iter() if e.tag.endswith("path")]
    marks = [e for e in paths if e.get("class", "").startswith("fill")]
    assert len(marks) == 3 + 2  # and the legend; what is not known has none


def test_the_page_and_the_plots(
    pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = map(str, pair)
    out, folder = tmp_path / "a.html", tmp_path / "plots"
    args = [first, "--by", "backend", "--against", second, "--html", str(out)]
    assert run(command, [*args, "--plots", str(folder)]) == 0
    assert {p.name for p in folder.iterdir()} == {"against-decode.svg", "against-prefill.svg"}
    text = out.read_text()
    assert 'id="against-decode"' in text and 'id="against-1-comparison"' in text
    assert run(command, [*args, "--roofline"]) == 2
    assert run(command, [first, "--by", "backend", "--html", str(out)]) == 2
    assert "holds every view" in capsys.readouterr().err
