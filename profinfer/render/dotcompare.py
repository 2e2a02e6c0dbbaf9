"""Layer 7: two graphs in one drawing: what was added, removed and changed, by colour.

Layers are drawn once, by the most common kind of each graph. Must not import the command line.
"""

from __future__ import annotations

from profinfer.analysis.dagcompare import Compared
from profinfer.analysis.layerpattern import Item, Pair, steps_back
from profinfer.render.dotstyle import ADDED, CHANGED, NEUTRAL, REMOVED, THEMES
from profinfer.render.dottext import (
    Look,
    escape,
    heading,
    preamble,
    quoted,
    shape_text,
    short,
    table,
)

_FILL = {"+": ADDED, "-": REMOVED, "~": CHANGED, "": NEUTRAL}
_LEGEND = [(NEUTRAL, "the same"), (CHANGED, "differs"), (REMOVED, "removed"), (ADDED, "added")]
_INK = "#16202a"


def compared_dot(compared: Compared, look: Look) -> str:
    """Both graphs as DOT text; their common operators are drawn once."""
    theme = THEMES[look.theme]
    out = preamble(look, theme, heading(look, theme, "operators", _LEGEND))
    for number, (title, pairs) in enumerate(
        (("each layer", compared.layers), ("outside of layers", compared.outside))
    ):
        if not pairs:
            continue
        out.append(
            f"  subgraph cluster_{number} {{\n    graph [label={quoted(title)}, fontsize=11, "
            f'style="filled,rounded", fillcolor="{theme.panel}", color="{theme.line}", '
            f"tooltip={quoted(title)}]"
        )
        out += [_node(f"p{number}_{i}", pair) for i, pair in enumerate(pairs)]
        out += _edges(f"p{number}_", pairs, theme.line)
        out.append("  }")
    return "\n".join([*out, "}"]) + "\n"


def _node(ident: str, pair: Pair) -> str:
    item = pair.new or pair.old
    assert item is not None
    about = " · ".join((item.type, shape_text(item.shape)))
    rows = [
        f"<B>{escape(f'{pair.sign} {item.op}'.strip())}</B>",
        escape(short(item.name)),
        f'<FONT POINT-SIZE="8">{escape(about)}</FONT>',
    ]
    rows += [f'<FONT POINT-SIZE="8">{escape(short(part))}</FONT>' for part in _parts(pair)]
    label = table(f'<FONT COLOR="{_INK}">{row}</FONT>' for row in rows if row)
    style = ', style="filled,rounded,dashed"' if pair.sign == "-" else ""
    tip = "\n".join(filter(None, (pair.label, about, pair.change)))
    return (
        f'    {ident} [label={label}, fillcolor="{_FILL[pair.sign]}", tooltip={quoted(tip)}{style}]'
    )


def _parts(pair: Pair) -> list[str]:
    return pair.change.split("; ") if pair.change else []


def _edges(prefix: str, pairs: list[Pair], line: str) -> list[str]:
    """Edges of both graphs; those of one of them alone in its colour."""
    old = _reads([pair.old for pair in pairs])
    new = _reads([pair.new for pair in pairs])
    out = []
    for src, dst in sorted(old | new):
        color = line
        if (src, dst) not in old:
            color = "#2e8b57"
        elif (src, dst) not in new:
            color = "#c0392b"
        style = ", style=dashed" if (src, dst) not in new else ""
        out.append(f'    {prefix}{src} -> {prefix}{dst} [color="{color}"{style}]')
    return out


def _reads(items: list[Item | None]) -> set[tuple[int, int]]:
    """(producer, consumer) by place among all; items count their sources among their own."""
    own = [place for place, item in enumerate(items) if item is not None]
    out = set()
    for number, place in enumerate(own):
        item = items[place]
        assert item is not None
        for read in item.reads:
            back = steps_back(read)
            if back is not None:
                out.add((own[number - back], place))
    return out
