"""Layer 7: findings explained, as text for a terminal. Formats and lays out; computes nothing.

Must not import the command line.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from profinfer.analysis.explanations import EXPLANATIONS
from profinfer.analysis.finding import Finding, Number
from profinfer.render.cells import single
from profinfer.render.console import wrap

_LABEL = 7


def explained(found: Finding, number: int, width: int) -> list[Text]:
    """One finding: what, where, the prize, what it means, how it was found, evidence, what to try.

    Args:
        found: the finding.
        number: its rank.
        width: of the console.
    """
    about = EXPLANATIONS[found.name]
    prize = "" if found.prize is None else f": {found.prize.text}"
    out = [Text(f"{number}. {found.name} ({about.kind}){prize}", style="bold")]
    out += _paragraph("", found.text, width)
    out += _paragraph("scope", found.scope, width)
    out += general(found.name, width)
    if found.prize is not None:
        out += _paragraph(
            "prize", f"{'or more' if found.prize.more else 'at most'}: {found.prize.how}", width
        )
    else:
        out += _paragraph("prize", "cannot be told", width)
    if found.tries:
        out += _paragraph("try", found.tries, width)
    out += _paragraph("check", about.check, width)
    out += _evidence(found, width)
    return out


def general(name: str, width: int) -> list[Text]:
    """What is true of a finding in every run."""
    about = EXPLANATIONS[name]
    return _paragraph("means", about.means, width) + _paragraph("found", about.found, width)


def absent(name: str, width: int) -> list[Text]:
    """A finding that this run does not have."""
    about = EXPLANATIONS[name]
    title = Text(f"{name} ({about.kind}): not found in this run", style="bold")
    return [title, *general(name, width), *_paragraph("check", about.check, width)]


def _paragraph(label: str, text: str, width: int) -> list[Text]:
    lines = wrap(text, width - _LABEL - 2)
    names = [label, *[""] * (len(lines) - 1)]
    return [
        Text(f"  {name:<{_LABEL}}", style="dim").append(line, style="default")
        for name, line in zip(names, lines, strict=True)
    ]


def _evidence(found: Finding, width: int) -> list[Text]:
    if not found.evidence:
        return []
    names = max(map(len, found.evidence))
    values = [_value(number) for number in found.evidence.values()]
    wide = min(max(map(len, values)), 24)
    out = [Text("  evidence", style="dim")]
    rows: Sequence[tuple[str, Number]] = list(found.evidence.items())
    for (name, number), value in zip(rows, values, strict=True):
        head = f"    {name:<{names}}  {value:>{wide}}  "
        lines = wrap(number.about, max(width - len(head), 16))
        out.append(Text(head).append(lines[0], style="dim"))
        out += [Text(" " * len(head)).append(line, style="dim") for line in lines[1:]]
    return out


def _value(number: Number) -> str:
    """One value; a rate of events is no rate of tokens."""
    if number.unit == "per_s" and not isinstance(number.value, str):
        return f"{number.value:,.1f} /s"
    if number.unit == "bytes_per_s" and not isinstance(number.value, str):
        return f"{number.value / 1e9:,.1f} GB/s"
    if number.unit == "count" and not isinstance(number.value, str):
        return f"{number.value:,.3g}" if number.value < 1000 else f"{number.value:,.0f}"
    return single(number.value, number.unit)
