"""Layer 8: ``profinfer report --explain``: findings with their evidence, one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from profinfer.errors import UsageProblem

if TYPE_CHECKING:
    from rich.console import Console

    from profinfer.analysis.finding import Finding
    from profinfer.analysis.result import Note

ALL = "all"


def wanted(found: list[Finding], name: str) -> list[Finding]:
    """The findings of this name, or all of them.

    Raises:
        UsageProblem: there is no finding of this name in any run.
    """
    from profinfer.analysis.explanations import EXPLANATIONS

    if name == ALL:
        return found
    if name not in EXPLANATIONS:
        raise UsageProblem(
            f"there is no finding called {name}",
            f"report TRACE --explain, or --explain with one of {', '.join(sorted(EXPLANATIONS))}",
        )
    return [finding for finding in found if finding.name == name]


def show(
    found: list[Finding], name: str, scope: str, missing: list[Note], gaps: tuple[Note, ...]
) -> None:
    """Print them: first what is ``missing`` of the recording, last what could not be looked for."""
    from rich.console import Console

    from profinfer.render.console import note_lines
    from profinfer.render.explain import absent, explained

    console = Console(highlight=False, soft_wrap=False)
    width = console.width
    for line in note_lines(missing, width):
        console.print(line)
    if not found and name == ALL:
        where = " in what could be checked" if gaps else ""
        console.print(f"Nothing was found to be wrong{where}: {scope}")
        _print_gaps(console, gaps)
        return
    if not found:
        for line in absent(name, width):
            console.print(line)
        _print_gaps(console, gaps)
        return
    for number, finding in enumerate(found, 1):
        if number > 1:
            console.print()
        for line in explained(finding, number, width):
            console.print(line)
    if len(found) > 1:
        console.print()
        console.print("What findings save overlaps: it cannot be added.", style="dim")
    if name == ALL:
        _print_gaps(console, gaps)


def _print_gaps(console: Console, gaps: tuple[Note, ...]) -> None:
    for gap in gaps:
        console.print(gap.text)
