"""Layer 7: the parts that every drawing has: how it looks as a whole, texts, title and legend.

Owns what may stand in the DOT language, and fonts. Must not import the command line.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from profinfer.render.dotstyle import Theme

FONT = "Helvetica,Arial,Liberation Sans,sans-serif"
_LONG = 34  # characters of a name


@dataclass(frozen=True)
class Look:
    """How a graph is drawn.

    Attributes:
        color: what colours mean, one of ``dotstyle.COLORS``.
        theme: one of ``dotstyle.THEMES``.
        views: draw views as nodes of their own instead of looking through them.
        title: above it.
        subtitle: below the title, e.g. what is left out.
        sources: draw weights, caches and inputs.
    """

    color: str = "time"
    theme: str = "light"
    views: bool = False
    title: str = ""
    subtitle: str = ""
    sources: bool = True


def escape(text: str) -> str:
    """Text for an HTML-like label."""
    return (
        text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
    )


def quoted(text: str) -> str:
    """A string of the DOT language."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def short(name: str) -> str:
    """A name of bearable length."""
    return name if len(name) <= _LONG else name[: _LONG - 1] + "…"


def shape_text(shape: str) -> str:
    """``576x4`` with a real sign between the numbers."""
    return shape.replace("x", "×")


def table(rows: Iterable[str]) -> str:
    """An HTML-like label of rows below each other."""
    inner = "".join(f"<TR><TD>{row}</TD></TR>" for row in rows)
    return f'<<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="0">{inner}</TABLE>>'


def preamble(look: Look, theme: Theme, legend: str, *, large: bool = False) -> list[str]:
    """Attributes of the whole drawing; Graphviz spends less on the layout of a ``large`` one."""
    effort = "nslimit=1, nslimit1=1, mclimit=0.3, " if large else ""
    return [
        "digraph operators {",
        f'  graph [{effort}rankdir=TB, bgcolor="{theme.back}", fontname={quoted(FONT)}, '
        f'fontsize=12, fontcolor="{theme.ink}", nodesep=0.22, ranksep=0.32, pad=0.2, labelloc=t, '
        f"labeljust=l, label={legend}, tooltip={quoted(look.title or ' ')}]",
        f"  node [fontname={quoted(FONT)}, fontsize=10, shape=box, "
        f'style="filled,rounded", penwidth=0.8, margin="0.09,0.045", height=0.2, '
        f'color="{theme.line}"]',
        f'  edge [fontname={quoted(FONT)}, fontsize=8, color="{theme.line}", '
        f'fontcolor="{theme.dim}", arrowsize=0.55, penwidth=0.9]',
    ]


def heading(
    look: Look, theme: Theme, title: str, legend: list[tuple[str, str]], forms: str = ""
) -> str:
    """Title and legend as an HTML-like label; ``forms`` says what the nodes' forms mean."""
    swatches = "".join(
        f'<TD BGCOLOR="{color}" BORDER="1" COLOR="{theme.line}" WIDTH="16" HEIGHT="9" '
        f'FIXEDSIZE="TRUE"></TD><TD ALIGN="LEFT"><FONT POINT-SIZE="9" COLOR="{theme.dim}">'
        f"{escape(text)}&nbsp;&nbsp;</FONT></TD>"
        for color, text in legend
    )
    rows = [f'<FONT POINT-SIZE="14"><B>{escape(look.title or " ")}</B></FONT>']
    if look.subtitle:
        rows.append(f'<FONT POINT-SIZE="9" COLOR="{theme.dim}">{escape(look.subtitle)}</FONT>')
    rows.append(
        '<TABLE BORDER="0" CELLBORDER="0" CELLSPACING="2" CELLPADDING="1">'
        f'<TR><TD ALIGN="LEFT"><FONT POINT-SIZE="9" COLOR="{theme.dim}">{escape(title)}&nbsp;'
        f"</FONT></TD>{swatches}</TR></TABLE>"
    )
    if forms:
        rows.append(f'<FONT POINT-SIZE="9" COLOR="{theme.dim}">{escape(forms)}</FONT>')
    inner = "".join(f'<TR><TD ALIGN="LEFT">{row}</TD></TR>' for row in rows)
    return f'<<TABLE BORDER="0" CELLSPACING="0" CELLPADDING="2">{inner}</TABLE>>'
