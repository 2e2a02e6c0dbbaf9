"""Layer 7: sections become one HTML file.

The page may load nothing and run nothing but its own script: its Content-Security-Policy names the
hashes of its one style sheet and its one script, so that the name of a tensor could do nothing even
if it were not escaped. Must not import the command line.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files

from profinfer._version import __version__
from profinfer.analysis.result import Note, Result
from profinfer.render.html import bars, plot, rows
from profinfer.render.html.charts import Chart, Drawing, Drawn, Plot, Rows
from profinfer.render.html.drawing import NARROW, WIDE
from profinfer.render.html.section import Fold, Page, Section, Tile
from profinfer.render.html.svg import esc, tag
from profinfer.render.html.tables import table
from profinfer.units import format_things

# What an HTML file of ours begins with; ``report --html`` replaces no other without --force.
SIGNATURE = '<!doctype html>\n<html lang="en">\n<head>\n<meta name="generator" content="profinfer'


def render(page: Page) -> str:
    """The whole file."""
    style, script = _asset("report.css"), _asset("report.js")
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = (
        f'{SIGNATURE} {esc(__version__)}">\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{esc(page.title)} - profinfer</title>\n<style>{style}</style>\n</head>\n"
    )
    said = frozenset(n.text for n in page.warnings)
    main = [_summary(page), *(_section(s, said) for s in page.sections)]
    return (
        f"{head}<body>\n"
        + tag("a", "Skip to the report", href="#summary", class_="skip")
        + _contents(page)
        + tag("main", *main, tag("footer", esc(page.made)))
        + '<div id="tip" role="status" aria-live="polite" hidden></div>\n'
        + f"<script>{script}</script>\n</body>\n</html>\n"
    )


def drawn(chart: Drawn, *, narrow: bool = False) -> str:
    """The SVG of a chart."""
    size = NARROW if narrow else WIDE
    if isinstance(chart, Plot):
        return plot.draw(chart, size)
    return rows.draw(chart, size) if isinstance(chart, Rows) else bars.draw(chart, size)


def _tips(chart: Drawn) -> list[str]:
    if isinstance(chart, Plot):
        return plot.tips(chart)
    return rows.tips(chart) if isinstance(chart, Rows) else bars.tips(chart)


def stylesheet() -> str:
    """The page's style."""
    return _asset("report.css")


def _asset(name: str) -> str:
    return files("profinfer.render.html").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _contents(page: Page) -> str:
    links = [("summary", "Summary"), *((s.key, s.title) for s in page.sections)]
    items = [tag("li", tag("a", esc(title), href=f"#{key}")) for key, title in links]
    toggle = (
        '<button type="button" id="theme" aria-label="Change between light and dark">'
        '<span aria-hidden="true">◐</span> theme</button>'
    )
    return tag("nav", tag("strong", "profinfer"), tag("ol", *items), toggle, aria_label="Contents")


def _summary(page: Page) -> str:
    facts = tag("p", " · ".join(esc(f) for f in page.facts), class_="facts")
    tiles = tag("dl", *map(_tile, page.tiles), class_="tiles")
    found = [tag("li", esc(n.text.removeprefix("- "))) for n in page.findings]
    parts = [tag("header", tag("h1", esc(page.title)), facts), tiles]
    if page.warnings:
        parts.append(_list("warnings", "Not everything was recorded", page.warnings))
    if found:
        parts.append(tag("div", tag("h2", "Findings"), tag("ul", *found), class_="findings"))
    else:
        text = "nothing that disturbs the run was found"
        parts.append(tag("p", f"Findings: {text}.", class_="well"))
    return tag("section", *parts, id="summary")


def _list(kind: str, title: str, said: Sequence[Note]) -> str:
    items = [tag("li", esc(n.text)) for n in said]
    return tag("div", tag("h2", esc(title)), tag("ul", *items), class_=kind)


def _tile(tile: Tile) -> str:
    unit = tag("small", esc(tile.unit)) if tile.unit else ""
    return tag(
        "div", tag("dt", esc(tile.title)), tag("dd", esc(tile.value), unit), title=tile.about
    )


def _section(section: Section, said: frozenset[str]) -> str:
    about = tag("p", esc(section.about), class_="about") if section.about else ""
    parts = [_part(part, section.key, said) for part in section.parts]
    heading = tag("h2", esc(section.title))
    return tag("section", heading, about, *parts, id=section.key)


def _part(part: Chart | Result | Fold, key: str, said: frozenset[str]) -> str:
    if isinstance(part, Result):
        return table(_told_once(part, said), f"{key}-{part.name}")
    if isinstance(part, Fold):
        result = _told_once(part.result, said)
        count = format_things(len(result.frame), "row") if result.layout == "table" else ""
        summary = tag("summary", esc(result.title), " ", tag("small", count))
        scope = tag("p", esc(result.scope), class_="scope")
        return tag("details", summary, scope, table(result, f"{key}-{result.name}", heading=False))
    return _figure(part)


def _told_once(result: Result, said: frozenset[str]) -> Result:
    """Without the warnings of the summary, but with one that points there."""
    fresh = [n for n in result.notes if n.text not in said]
    if any(n.severity != "info" for n in result.notes if n.text in said):
        fresh.append(Note("warning", "not everything was recorded, see the summary"))
    return replace(result, notes=tuple(fresh))


def _drawing(chart: Drawing) -> str:
    # Graphviz numbers what it draws, some things twice; nothing refers to these ids.
    svg = re.sub(r' id="[^"]*"', "", chart.svg)
    return tag(
        "div", svg, class_="scroll drawing", tabindex=0, role="region", aria_label=chart.title
    )


def _figure(chart: Chart) -> str:
    caption = tag("figcaption", tag("h3", esc(chart.title)), tag("p", esc(chart.about)))
    if isinstance(chart, Drawing):
        return tag("figure", caption, _drawing(chart), id=chart.name)
    told = json.dumps(_tips(chart), ensure_ascii=False).replace("<", "\\u003c")
    return tag(
        "figure",
        caption,
        tag("div", drawn(chart), class_="wide"),
        tag("div", drawn(chart, narrow=True), class_="narrow"),
        f'<script type="application/json">{told}</script>',
        id=chart.name,
    )
