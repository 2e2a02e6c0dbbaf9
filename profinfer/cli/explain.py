"""Layer 8: ``profinfer report --explain``: findings with their evidence, one after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from profinfer.errors import UsageProblem

if TYPE_CHECKING:
    from profinfer.analysis.finding import Finding

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


def show(found: list[Finding], name: str, scope: str) -> None:
    """Print them."""
    from rich.console import Console

    from profinfer.render.explain import absent, explained

    console = Console(highlight=False, soft_wrap=False)
    width = console.width
    if not found and name == ALL:
        console.print(f"Nothing was found to be wrong: {scope}")
        return
    if not found:
        for line in absent(name, width):
            console.print(line)
        return
    for number, finding in enumerate(found, 1):
        if number > 1:
            console.print()
        for line in explained(finding, number, width):
            console.print(line)
    if len(found) > 1:
        console.print()
        console.print("What findings save overlaps: it cannot be added.", style="dim")
