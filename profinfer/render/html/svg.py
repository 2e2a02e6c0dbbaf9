"""Layer 7: SVG and HTML elements as text. Everything that is not markup is escaped here.

Must not import the command line.
"""

from __future__ import annotations

import html


def esc(text: object) -> str:
    """Text for between tags and inside of attributes."""
    return html.escape(str(text), quote=True)


def num(value: float) -> str:
    """A coordinate: one digit after the point, and none if it is 0."""
    return f"{value:.1f}".removesuffix(".0").replace("-0", "0" if value > -0.05 else "-0")


def tag(name: str, *inner: str, **attributes: object) -> str:
    """An element. Its content is markup already; its attributes' values are not.

    A trailing underscore of an attribute is dropped (``class_``), others become hyphens. None
    leaves an attribute out.
    """
    parts = [name]
    for key, value in attributes.items():
        if value is None:
            continue
        written = key.rstrip("_").replace("_", "-")
        shown = num(value) if isinstance(value, float) else str(value)
        parts.append(f'{written}="{esc(shown)}"')
    content = "".join(inner)
    opened = " ".join(parts)
    return f"<{opened}>{content}</{name}>"


def label(x: float, y: float, text: str, anchor: str = "start", class_: str | None = None) -> str:
    """Text in a drawing."""
    return tag("text", esc(text), x=x, y=y, text_anchor=anchor, class_=class_)
