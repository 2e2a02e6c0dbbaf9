from __future__ import annotations

import io

import pandas as pd
import pytest
from rich.console import Console

from profinfer.analysis.result import Column, Note, Result
from profinfer.render.console import render

COLUMNS = (
    Column("op", "operator", "text", "."),
    Column("wall_ns", "time", "ns", "."),
    Column("share", "share", "ratio", ".", bar=True),
    Column("calls", "calls", "count", "."),
    Column("secret", "detail", "count", ".", detail=True),
)
FRAME = pd.DataFrame(
    {
        "op": ["MUL_MAT", "ADD", "A_VERY_LONG_NAME_THAT_MUST_GIVE_WAY_" * 2],
        "wall_ns": [123_456_789, 1_000_000, 10],
        "share": [0.99, 0.0099, 0.0000001],
        "calls": [1234567, 5, 1],
        "secret": [1, 2, 3],
    }
)


def result(**changes: object) -> Result:
    values: dict[str, object] = {
        "name": "r", "title": "Time by operator", "scope": "decode: 3 tokens",
        "columns": COLUMNS, "frame": FRAME,
        "total": {"wall_ns": 124_456_799, "share": 1.0, "calls": 1234573},
    }  # fmt: skip
    return Result(**(values | changes))  # type: ignore[arg-type]


def text(what: Result, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, no_color=True, highlight=False)
    console.print(render(what, console))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_table_at_80_columns() -> None:
    assert text(result(frame=FRAME.head(2))).split("\n") == [
        "Time by operator  decode: 3 tokens",
        "  operator   time  share                               calls  detail",
        "               ms      %",
        "  MUL_MAT   123.5   99.0 ████████████████████████  1,234,567       1",
        "  ADD         1.0    1.0 ▎                                 5       2",
        "  total     124.5  100.0                           1,234,573",
        "",
    ]


def test_a_long_name_gives_way_to_the_numbers() -> None:
    lines = text(result()).splitlines()
    assert lines[-2].startswith("  A_VERY_LONG_NAME_THAT_MUST_GIVE_WAY_A_VERY")
    assert lines[-2].endswith("…   <0.1   <0.1          1")
    assert len(lines[-2]) <= 80


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_no_line_is_wider_than_the_terminal(width: int) -> None:
    lines = text(result(notes=(Note("warning", "word " * 60),)), width).splitlines()
    assert max(map(len, lines)) <= width
    assert lines[0].startswith("Time by operator")


def test_details_appear_where_there_is_room() -> None:
    narrow = result(frame=FRAME.head(2))
    assert "detail" not in text(narrow, 40)
    assert "detail" in text(narrow, 120)


def test_columns_that_belong_together_share_a_unit() -> None:
    columns = (
        Column("a_ns", "a", "ns", ".", like="x"),
        Column("b_ns", "b", "ns", ".", like="x"),
        Column("c_ns", "c", "ns", "."),
    )
    frame = pd.DataFrame({"a_ns": [200_000_000.0], "b_ns": [1_000.0], "c_ns": [1_000.0]})
    said = text(result(columns=columns, frame=frame, total=None)).splitlines()
    assert said[2].split() == ["ms", "ms", "µs"]
    assert said[3].split() == ["200.0", "<0.1", "1.00"]


def test_missing_values_are_dashes() -> None:
    columns = (Column("k", "k", "text", "."), Column("n_ns", "n", "ns", "."))
    frame = pd.DataFrame({"k": ["a", "b"], "n_ns": pd.array([1000, None], "Int64")})
    assert text(result(columns=columns, frame=frame, total=None)).splitlines()[-1].split() == [
        "b",
        "-",
    ]


def test_nothing_to_show() -> None:
    assert "nothing to show" in text(result(frame=FRAME.head(0)))


def test_warnings_come_first_and_wrap() -> None:
    notes = (Note("info", "an aside"), Note("warning", "x" * 30 + " " + "y" * 60))
    assert text(result(notes=notes)).splitlines()[-3:] == [
        "Warning: " + "x" * 30,
        "  " + "y" * 60,
        "an aside",
    ]


def test_a_record_reads_from_top_to_bottom() -> None:
    columns = (
        Column("model", "model", "text", "."),
        Column("a_ns", "TTFT", "ns", "."),
        Column("b", "decode", "per_s", "."),
        Column("c", "lost", "count", "."),
        Column("d", "explained", "ratio", "."),
        Column("e", "none", "ns", "."),
    )
    frame = pd.DataFrame(
        [{"model": "SmolLM2", "a_ns": 28_500_000, "b": 102.3, "c": 0, "d": 0.997, "e": None}]
    )
    assert (
        text(result(columns=columns, frame=frame, total=None, layout="record"))
        == """\
Time by operator  decode: 3 tokens
  model  SmolLM2
  TTFT      28.5 ms    lost            0
  decode  102 tok/s    explained  99.7 %
"""
    )


def test_a_long_scope_goes_below_the_title() -> None:
    lines = text(result(scope="decode: " + "filter, " * 12)).splitlines()
    assert lines[0] == "Time by operator"
    assert all(len(line) <= 80 for line in lines)
