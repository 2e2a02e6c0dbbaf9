"""Layer 7: a chart as an SVG file of its own, for papers and slides.

Programs that draw SVG know no CSS variables, so the page's colours are written out. Must not import
the command line.
"""

from __future__ import annotations

import re

from profinfer.render.html.charts import ALL_TONES, Chart, Drawing
from profinfer.render.html.page import drawn, stylesheet

# A drawing brings its own letters.
_TEXT = """
text { font: 11px "DejaVu Sans", "Noto Sans", Helvetica, Arial, sans-serif; fill: %(soft)s; }
"""
_FIXED = """
text.title { fill: %(ink)s; } text.end { font-weight: 600; }
.grid { stroke: %(faint)s; fill: none; } .axis { stroke: %(line)s; fill: none; }
.guide { stroke: %(line)s; fill: none; stroke-dasharray: 3 3; }
.line { fill: none; stroke-width: 2; } .band { opacity: .18; } .dot { opacity: .75; }
.dot.tmuted { opacity: .35; } rect.fill { stroke: #fff; stroke-width: .6; }
"""


def standalone(chart: Chart) -> str:
    """The SVG file, in the colours of the light page."""
    colours = dict(re.findall(r"--([\w-]+): (#\w+);", stylesheet().split("}", 1)[0]))
    tones = {f"t{i}": colours[f"c{i}"] for i in range(ALL_TONES)}
    tones |= {"tmuted": colours["c-muted"], "taccent": colours["accent"]}
    own = isinstance(chart, Drawing)
    rules = ["" if own else _TEXT % colours, _FIXED % colours]
    for name, value in tones.items():
        kinds = ", ".join(f".{kind}.{name}" for kind in ("fill", "dot", "band", "cell"))
        rules.append(f"{kinds}, text.{name} {{ fill: {value}; }}")
        rules.append(f".line.{name} {{ stroke: {value}; }}")
    svg = chart.svg if isinstance(chart, Drawing) else drawn(chart)
    svg = re.sub(r' (?:tabindex|data-[\w-]+)="[^"]*"', "", svg)
    at = svg.index(">") + 1
    style = "\n".join(rules)
    white = '<rect width="100%" height="100%" fill="#fff"/>'
    head = '<?xml version="1.0" encoding="UTF-8"?>\n'
    return f"{head}{svg[:at]}<style>{style}</style>{white}{svg[at:]}\n"
