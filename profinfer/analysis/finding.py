"""Layer 6: one thing that is wrong with a run. Must not import rich or above."""

from __future__ import annotations

from dataclasses import dataclass

from profinfer.analysis.result import Note


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        name: stable key.
        share: part of the operators' thread time that it is about, None if it is not about time.
        text: a sentence.
    """

    name: str
    share: float | None
    text: str


def as_notes(found: list[Finding]) -> tuple[Note, ...]:
    """The sentences, to stand below another view."""
    return tuple(Note("info", f"- {f.text}") for f in found)
