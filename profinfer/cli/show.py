"""Layer 8: Results on the terminal, one below the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from profinfer.analysis.result import Result


def to_terminal(results: list[Result], *, brief: bool = False) -> None:
    """To stdout. Each note once, but every view that something is missing from says so.

    Args:
        results: what to print.
        brief: of the self-check only what the views do not say themselves.
    """
    from rich.console import Console

    from profinfer.analysis.result import Note
    from profinfer.render.console import note_lines, render

    console = Console(highlight=False, soft_wrap=False)
    said: set[str] = set()
    for number, result in enumerate(results):
        if number:
            console.print()
        if result.name == "self_check":
            well = all(n.severity == "info" for n in result.notes)
            told = result.notes
            if brief:
                frame = result.frame
                said |= {*frame["text"][(frame["check"] == "losses").to_numpy()]}
                told = tuple(n for n in told if n.text not in said)
            if well:
                told = (Note("info", _all_well(result, brief)),)
            elif not told:
                told = (Note("warning", "Self-check: not everything was recorded, see above"),)
            else:
                console.print("Self-check: not all is well", style="bold")
            for line in note_lines(told, console.width):
                console.print(line)
            continue
        fresh = [n for n in result.notes if n.text not in said]
        if any(n.severity != "info" and n.text in said for n in result.notes):
            fresh.append(Note("warning", "not everything was recorded, see the warnings above"))
        said |= {n.text for n in result.notes}
        if result.name == "findings":
            console.print("Findings", style="bold", end="")
            console.print(f"  {result.scope}", style="dim")
            for line in note_lines(fresh, console.width):
                console.print(line, style="default")
            continue
        console.print(render(result, console, footer=False))
        for line in note_lines(fresh, console.width):
            console.print(line)


def _all_well(result: Result, brief: bool) -> str:
    frame = result.frame
    text = result.notes[0].text
    if brief:  # the answers are in the whole report; what recording cost concerns every view
        text = "; ".join(frame["text"][(frame["check"] == "overhead").to_numpy()])
    said = f" {text[:1].upper()}{text[1:]}." if text else ""
    return f"Self-check: all well.{said}"
