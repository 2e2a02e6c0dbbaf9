"""Layer 7: the parts of a page: a section is a title, Results and charts.

Must not import the command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from profinfer.analysis.result import Note, Result
from profinfer.render.html.charts import Chart


@dataclass(frozen=True)
class Fold:
    """A Result that is closed until someone wants it."""

    result: Result


@dataclass(frozen=True)
class Section:
    """One subject.

    Attributes:
        key: stable id, in the address.
        title: a heading, in the table of contents too.
        parts: what it is made of, from top to bottom.
        about: a sentence or two below the title.
    """

    key: str
    title: str
    parts: Sequence[Chart | Result | Fold]
    about: str = ""


@dataclass(frozen=True)
class Tile:
    """A number that a reader looks for first."""

    title: str
    value: str
    unit: str
    about: str


@dataclass(frozen=True)
class Page:
    """All of it.

    Attributes:
        title: what was recorded.
        facts: of the run, in one line below the title.
        tiles: headline numbers.
        findings: what is wrong, worst first, or good.
        warnings: what is missing from the trace.
        sections: in order.
        made: by what, from what.
    """

    title: str
    facts: Sequence[str]
    tiles: Sequence[Tile]
    findings: Sequence[Note]
    warnings: Sequence[Note]
    sections: Sequence[Section]
    made: str = field(default="")
