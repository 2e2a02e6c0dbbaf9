"""Layer 6: one thing that was found out about a run: what, the numbers, what it costs, what to try.

What a finding of a name means in general is in ``explanations``. Must not import rich or above.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from profinfer.analysis.result import Note, Unit
from profinfer.units import format_ns, format_percent


@dataclass(frozen=True)
class Number:
    """One piece of evidence.

    Attributes:
        value: in ``unit``, stored as in every Result; text where the unit is text.
        unit: of the value.
        about: what exactly is meant.
    """

    value: float | str
    unit: Unit
    about: str


@dataclass(frozen=True)
class Prize:
    """What could be won, if the finding were gone and nothing else changed.

    Prizes of several findings overlap, so they cannot be added.

    Attributes:
        ns: of the whole scope.
        tokens: of the scope, by which ``ns`` is divided; 0: it is paid once, not per token.
        of_ns: time of the scope, from call to call; 0: not known.
        how: the formula, in words.
        more: it may be more than ``ns``; else ``ns`` is the most that it can be.
    """

    ns: int
    tokens: int
    of_ns: int
    how: str
    more: bool = False

    @property
    def per_token_ns(self) -> float | None:
        """Nanoseconds a token, None if it is paid once."""
        return self.ns / self.tokens if self.tokens else None

    @property
    def share(self) -> float | None:
        """Part of the scope's time."""
        return self.ns / self.of_ns if self.of_ns else None

    @property
    def text(self) -> str:
        """One clause: ``saves up to 1.20 s once``, ``saves 2.10 ms/token (18.0 %) or more``."""
        each = self.per_token_ns
        size = f"{format_ns(self.ns)} once" if each is None else f"{format_ns(each)}/token"
        share = "" if self.share is None else f" ({format_percent(self.share)})"
        return f"saves {size}{share} or more" if self.more else f"saves up to {size}{share}"


@dataclass(frozen=True)
class Finding:
    """One thing that was found.

    Attributes:
        name: stable key; ``explanations`` tells what it means.
        share: part of the operators' thread time that it is about, None if it is not about that.
        text: what was found, with numbers.
        tries: one concrete thing to do about it; empty if the text says it all.
        scope: the part of the run that it is about: a phase and its number of tokens.
        evidence: the numbers that it rests on, by stable key.
        prize: what could be won, None if that cannot be told.
    """

    name: str
    share: float | None
    text: str
    tries: str = ""
    scope: str = ""
    evidence: dict[str, Number] = field(default_factory=dict)
    prize: Prize | None = None

    @property
    def sentence(self) -> str:
        """Everything in one sentence, the prize last."""
        parts = [self.text]
        if self.tries:
            parts.append(f"try {self.tries}")
        if self.prize is not None:
            parts.append(self.prize.text)
        return "; ".join(parts)


def ranked(found: Iterable[Finding]) -> list[Finding]:
    """By prize, the largest first; then those without one, by share."""
    return sorted(found, key=lambda f: (-(f.prize.ns if f.prize else 0), -(f.share or 0)))


def as_notes(found: list[Finding]) -> tuple[Note, ...]:
    """The sentences, to stand below another view."""
    return tuple(Note("info", f"- {f.sentence}") for f in found)
