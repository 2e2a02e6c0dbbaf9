"""Layer 7: Results as text for a terminal. Formats and lays out; computes and prints nothing.

Every line fits the console's width: text columns give way with an ellipsis, details appear only
where there is room, and what is left over becomes the bar. Must not import the command line.
"""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.text import Text

from profinfer.analysis.result import Note, Result
from profinfer.render.cells import Cells, column_cells, missing, single

BAR_MAX = 24
BAR_MIN = 4
TEXT_MIN = 8
_EIGHTHS = " ▏▎▍▌▋▊▉"
_STYLE = {"info": "dim", "warning": "yellow", "error": "bold red"}
_SIGN = {"info": "", "warning": "Warning: ", "error": "ERROR: "}


def render(result: Result, console: Console, *, footer: bool = True) -> RenderableType:
    """A Result as something to print on ``console``, at most as wide as it.

    Args:
        result: what to show.
        console: where it will be shown; asked for its width only.
        footer: show the notes.
    """
    width = console.width
    parts: list[RenderableType] = [_heading(result, width)]
    if not len(result.frame):
        parts.append(Text("  nothing to show", style="dim"))
    elif result.layout == "record":
        parts.extend(_record(result, width))
    else:
        parts.extend(_table(result, width))
    if footer:
        parts.extend(note_lines(result.notes, width))
    return Group(*parts)


def headline(text: str, width: int) -> list[Text]:
    """A sentence that stands above everything else, wrapped at words."""
    return [Text(line, style="bold") for line in wrap(text, width)]


def note_lines(notes: Iterable[Note], width: int) -> list[Text]:
    """Notes, wrapped at words, warnings first."""
    rank = {"error": 0, "warning": 1, "info": 2}
    out = []
    for note in sorted(notes, key=lambda n: rank[n.severity]):
        for i, line in enumerate(wrap(_SIGN[note.severity] + note.text, width - 2)):
            out.append(Text(("  " if i else "") + line, style=_STYLE[note.severity]))
    return out


def _heading(result: Result, width: int) -> Text:
    title = Text(result.title, style="bold")
    scope = f"  {result.scope}"
    if len(result.title) + len(scope) <= width:
        return title.append(scope, style="dim")
    lines = wrap(result.scope, width - 2)
    return title.append("".join(f"\n  {line}" for line in lines), style="dim")


def wrap(text: str, width: int) -> list[str]:
    """Words on lines of at most ``width``."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > width:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".lstrip()
    return [_fit(line, width) for line in lines]


def _fit(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 1, 0)] + "…"


# -- one row, read from top to bottom ----------------------------------------------------------


def _record(result: Result, width: int) -> list[Text]:
    """Texts line by line, then the numbers in three columns."""
    row = result.frame.iloc[0]
    shown = [c for c in result.columns if not missing(row[c.name])]
    texts = [c for c in shown if c.unit == "text"]
    numbers = [c for c in shown if c.unit != "text"]
    label = max((len(c.title) for c in texts), default=0)
    out = [
        Text(f"  {c.title:<{label}}  ", style="dim").append(
            _fit(str(row[c.name]), width - label - 4), style="default"
        )
        for c in texts
    ]
    across = max(1, min(3, width // 26))
    down = -(-len(numbers) // across)
    columns = [numbers[i : i + down] for i in range(0, len(numbers), down)] if down else []
    names = [max(len(c.title) for c in column) for column in columns]
    values = [[single(row[c.name], c.unit) for c in column] for column in columns]
    wide = [max(map(len, column)) for column in values]
    for line in range(down):
        text = Text()
        for i, column in enumerate(columns):
            if line < len(column):
                text.append("  " if not i else "    ")
                text.append(f"{column[line].title:<{names[i]}}", style="dim")
                text.append(f"  {values[i][line]:>{wide[i]}}")
        out.append(text)
    return out


# -- tables ------------------------------------------------------------------------------------


def _table(result: Result, width: int) -> list[Text]:
    columns = [column_cells(c, result) for c in result.columns if not c.detail]
    details = [c for c in result.columns if c.detail]
    for column in details:
        extra = column_cells(column, result)
        if sum(c.width + 2 for c in (*columns, extra)) + BAR_MIN <= width:
            columns.append(extra)
    widths = _widths(columns, width)
    bar = _bar_width(columns, widths, width)
    lines = [_line([c.title for c in columns], columns, widths, bar, None, "bold")]
    if any(c.unit for c in columns):
        lines.append(_line([c.unit for c in columns], columns, widths, bar, None, "dim"))
    top = max((max(c.ratios, default=0) for c in columns if c.ratios), default=0)
    for row in range(len(result.frame)):
        bars = next((c.ratios[row] / top for c in columns if c.ratios and top), None)
        lines.append(_line([c.cells[row] for c in columns], columns, widths, bar, bars, "default"))
    if result.total is not None and len(result.frame) > 1:
        cells = [c.total for c in columns]
        cells[0] = next((w for w in ("total", "sum") if len(w) <= widths[0]), "")
        lines.append(_line(cells, columns, widths, bar, None, "bold"))
    return lines


def _gap(columns: list[Cells]) -> int:
    return 2 if len(columns) < 8 else 1


def _widths(columns: list[Cells], width: int) -> list[int]:
    """Natural widths; the widest text columns shrink until a line fits."""
    widths = [c.width for c in columns]
    gap = _gap(columns)
    while (over := sum(widths) + gap * (len(widths) - 1) + 2 - width) > 0:
        texts = [i for i, c in enumerate(columns) if c.left and widths[i] > TEXT_MIN]
        if not texts:
            break
        widest = max(texts, key=lambda i: widths[i])
        others = [widths[i] for i in texts if i != widest]
        step = max(1, min(over, widths[widest] - max((*others, TEXT_MIN))))
        widths[widest] -= step
    return widths


def _bar_width(columns: list[Cells], widths: list[int], width: int) -> int:
    if not any(c.ratios for c in columns):
        return 0
    left = width - 2 - sum(widths) - _gap(columns) * (len(widths) - 1) - 1
    return min(left, BAR_MAX) if left >= BAR_MIN else 0


def _line(
    cells: list[str],
    columns: list[Cells],
    widths: list[int],
    bar: int,
    share: float | None,
    style: str,
) -> Text:
    text = Text("  ", no_wrap=True, overflow="crop")
    gap = " " * _gap(columns)
    for i, (cell, column, width) in enumerate(zip(cells, columns, widths, strict=True)):
        fitted = _fit(cell, width)
        text.append(fitted.ljust(width) if column.left else fitted.rjust(width), style=style)
        if column.ratios is not None and bar:
            text.append(" ")
            text.append(_bar(share, bar) if share is not None else " " * bar, style="cyan")
        if i + 1 < len(columns):
            text.append(gap)
    text.rstrip()
    return text


def _bar(share: float, width: int) -> str:
    """A bar of ``share`` of ``width`` characters, in eighths of one."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    full, rest = divmod(eighths, 8)
    return ("█" * full + (_EIGHTHS[rest] if rest else "")).ljust(width)
