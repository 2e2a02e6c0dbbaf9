"""Layer 7: a Result as an HTML table that can be sorted and searched.

Must not import the command line.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pandas as pd

from profinfer.analysis.result import Column, Note, Result
from profinfer.render.cells import Cells, column_cells, missing, single
from profinfer.render.html.svg import esc, tag

ROWS_MAX = 1000  # of one table; more are cut off, and it says so
SEARCHED = 20  # from so many rows on, there is a field to search in
_SEARCH = '<input type="search" placeholder="filter rows" autocomplete="off">'
_MORE = '<button type="button" class="more" aria-pressed="false">all columns</button>'
_SIGN = {"info": "", "warning": "Warning: ", "error": "Error: "}


def table(result: Result, key: str, *, heading: bool = True) -> str:
    """The table with its heading, scope and notes.

    Args:
        result: what to show.
        key: its id in the page.
        heading: with title and scope; else only what is below them.
    """
    head = _heading(result) if heading else ""
    if not len(result.frame):
        return tag("div", head, tag("p", "nothing to show", class_="none"), class_="result", id=key)
    body = _record(result) if result.layout == "record" else _grid(result)
    return tag("div", head, body, notes(result.notes), class_="result", id=key)


def notes(said: tuple[Note, ...]) -> str:
    """Notes as a list, warnings first."""
    rank = {"error": 0, "warning": 1, "info": 2}
    items = [
        tag("li", esc(_SIGN[n.severity] + n.text), class_=n.severity)
        for n in sorted(said, key=lambda n: rank[n.severity])
    ]
    return tag("ul", *items, class_="notes") if items else ""


def _heading(result: Result) -> str:
    return tag("h3", esc(result.title)) + tag("p", esc(result.scope), class_="scope")


def _record(result: Result) -> str:
    row = result.frame.iloc[0]
    pairs = [
        tag("div", tag("dt", esc(c.title), title=c.description),
            tag("dd", esc(single(row[c.name], c.unit))))
        for c in result.columns if not missing(row[c.name])
    ]  # fmt: skip
    return tag("dl", *pairs, class_="record")


def _grid(result: Result) -> str:
    total, rows = result.total, len(result.frame)
    shown = min(rows, ROWS_MAX)
    cells = [_cells(c, result) for c in result.columns]
    details = any(c.detail for c in result.columns)
    tools = []
    if rows >= SEARCHED:
        name = tag("span", f"Filter {esc(result.title)}", class_="hidden")
        tools.append(tag("label", name, _SEARCH))
    if details:
        tools.append(_MORE)
    heads = [_head(c, made) for c, made in zip(result.columns, cells, strict=True)]
    columns = [
        _column(column, made, result.frame[column.name].tolist()[:shown], head=at == 0)
        for at, (column, made) in enumerate(zip(result.columns, cells, strict=True))
    ]
    body = [tag("tr", *row) for row in zip(*columns, strict=True)]
    foot = ""
    if total is not None and rows > 1:
        foot = tag("tfoot", tag("tr", *_total(result, cells)))
    cut = ""
    if shown < rows:
        cut = notes((Note("info", f"the first {shown:,} of {rows:,} rows"),))
    return (
        (tag("div", *tools, class_="tools") if tools else "")
        + tag("div", tag("table", tag("caption", esc(f"{result.title}: {result.scope}"),
                         class_="hidden"), tag("thead", tag("tr", *heads)), tag("tbody", *body),
                         foot), class_="scroll", tabindex=0, role="region",
              aria_label=result.title)
        + cut
    )  # fmt: skip


def _class(column: Column, made: Cells) -> str | None:
    names = [n for n, on in (("n", not made.left), ("detail", column.detail)) if on]
    return " ".join(names) or None


def _cells(column: Column, result: Result) -> Cells:
    """The column as text; ids that are words stand like words."""
    made = column_cells(column, result)
    words = column.unit == "id" and not pd.api.types.is_numeric_dtype(result.frame[column.name])
    return replace(made, left=True) if words else made


def _head(column: Column, made: Cells) -> str:
    unit = tag("small", esc(made.unit)) if made.unit else ""
    button = tag("button", esc(column.title), unit, type="button", title=column.description)
    return tag("th", button, scope="col", aria_sort="none", class_=_class(column, made))


def _column(column: Column, made: Cells, values: list[Any], *, head: bool) -> list[str]:
    """The cells of a column; of the first one they head their rows."""
    name, scope = ("th", "row") if head else ("td", None)
    class_ = _class(column, made)
    bars = [""] * len(values)
    if made.ratios is not None:
        top = max(made.ratios, default=0.0)
        bars = [_bar(ratio / top if top > 0 else 0.0) for ratio in made.ratios]
    return [
        tag(name, esc(text) + bar, class_=class_, scope=scope, data_v=_sortable(column, value))
        for value, text, bar in zip(values, made.cells, bars, strict=False)
    ]


def _total(result: Result, cells: list[Cells]) -> list[str]:
    out = []
    first = next((i for i, c in enumerate(result.columns) if not c.detail), 0)
    for at, (column, made) in enumerate(zip(result.columns, cells, strict=True)):
        text = "total" if at == first else made.total
        out.append(tag("th" if at == 0 else "td", esc(text), class_=_class(column, made)))
    return out


def _sortable(column: Column, value: Any) -> str | None:
    """The number that a cell is sorted by; texts sort as they stand."""
    if column.unit == "text" or missing(value) or isinstance(value, str):
        return None
    number = float(value)
    return f"{number:.7g}" if math.isfinite(number) else None


def _bar(share: float) -> str:
    width = f"{100 * max(0.0, min(1.0, share)):.1f}"
    return (
        '<svg class="bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect width="{width}" height="8"/></svg>'
    )
