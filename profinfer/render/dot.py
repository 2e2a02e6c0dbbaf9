"""Layer 7: a graph of operators in the DOT language of Graphviz.

Owns the look of nodes, edges and what comes from outside. Draws nothing itself: ``svg`` does. Same
input, same text. Must not import the command line.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from profinfer.analysis.opgraph import CACHE, NODE, WEIGHT, OpGraph
from profinfer.render.dotshapes import form, legend_of
from profinfer.render.dotstyle import THEMES, Coloring, coloring, counted, ink_on
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
from profinfer.units import format_byte_rate, format_bytes, format_ns, format_percent

LARGE = 120  # operators: beyond, the layout is not polished for minutes


def to_dot(graph: OpGraph, places: Iterable[int] | None = None, look: Look | None = None) -> str:
    """The graph, or a part of it with what is next to it.

    Args:
        graph: what to draw.
        places: nodes by place; None for all. What they read from elsewhere in the graph, and who
            reads them, is drawn beside them, faint.
        look: how.
    """
    return "\n".join(_Drawing(graph, places, look or Look()).lines()) + "\n"


class _Drawing:
    def __init__(self, graph: OpGraph, places: Iterable[int] | None, look: Look) -> None:
        self.graph, self.look = graph, look
        self.theme = THEMES[look.theme]
        n = len(graph)
        self.shown = np.ones(n, bool)
        if places is not None:
            self.shown[:] = False
            self.shown[sorted(places)] = True
        if not look.views:
            self.shown &= graph.works
        self.edges = graph.every if look.views else graph.folded
        near = np.zeros(n, bool)
        near[self.edges.src[self.shown[self.edges.dst]]] = True
        near[self.edges.dst[self.shown[self.edges.src]]] = True
        self.near = near & ~self.shown
        self.fills: Coloring = coloring(graph, look.color, self.shown)
        self.text = {c: graph.texts(c) for c in ("op", "name", "type", "shape", "role", "problem")}
        self.on_path = self._path_edges()

    def _path_edges(self) -> set[tuple[int, int]]:
        """Edges of the critical path, through views where those are drawn."""
        every = (self.graph.whole if self.look.views else self.graph.dag).before
        out: set[tuple[int, int]] = set()
        timed = self.graph.seen[self.graph.piece]
        nodes = [node for node in self.graph.paths.nodes if timed[node]]
        for first, last in pairwise(nodes):
            way, at = [], last
            while at != first:
                before = every[at]
                at = first if first in before else max(
                    (b for b in before if not self.graph.works[b]), default=first
                )  # fmt: skip
                way.append(at)
            out |= set(pairwise([last, *way]))
        return {(a, b) for b, a in out}

    def lines(self) -> list[str]:
        kinds = zip(self.text["op"], self.text["role"], self.shown.tolist(), strict=True)
        forms = legend_of((op, role) for op, role, there in kinds if there)
        legend = heading(self.look, self.theme, self.fills.title, self.fills.legend, forms)
        large = int(self.shown.sum()) > LARGE
        out = preamble(self.look, self.theme, legend, large=large)
        out += self._shown_nodes()
        for place in np.flatnonzero(self.near).tolist():
            out.append(self._neighbour(place))
        rows = zip(
            self.edges.src.tolist(), self.edges.dst.tolist(), self.edges.memory.tolist(),
            strict=True,
        )  # fmt: skip
        out += [self._edge(*row) for row in rows if self.shown[row[0]] or self.shown[row[1]]]
        if self.look.sources:
            out += self._outside()
        return [*out, "}"]

    def _shown_nodes(self) -> list[str]:
        """The nodes; those of a layer in a box of their own where several layers are drawn."""
        layer = self.graph.nodes["layer"].to_numpy()
        places = np.flatnonzero(self.shown)
        several = len(np.unique(layer[places][layer[places] >= 0])) > 1
        out = []
        for one in dict.fromkeys(layer[places].tolist()):
            mine = [self._node(place) for place in places[layer[places] == one].tolist()]
            if several and one >= 0:
                head = (
                    f'  subgraph cluster_{one} {{\n    graph [label="layer {one}", fontsize=11, '
                    f'style="filled,rounded", fillcolor="{self.theme.panel}", '
                    f'color="{self.theme.line}", penwidth=0.6, tooltip="layer {one}"]'
                )
                mine = [head, *mine, "  }"]
            out += mine
        return out

    def _node(self, place: int) -> str:
        fill = self.fills.fill[place] if self.graph.works[place] else self.theme.back
        ink = ink_on(fill) if fill.startswith("#") else self.theme.dim
        text = self.text
        shape = shape_text(text["shape"][place])
        told = (self.graph.backend(place), text["type"][place], shape, self._measure(place))
        about = " · ".join(filter(None, told))
        rows = (
            f'<FONT POINT-SIZE="8">{place}&nbsp; </FONT><B>{escape(self.graph.titles[place])}</B>',
            escape(short(text["name"][place])),
            f'<FONT POINT-SIZE="8">{escape(about)}</FONT>',
        )
        label = table(f'<FONT COLOR="{ink}">{row}</FONT>' for row in rows if row)
        extra = ""
        if self.graph.critical[place]:
            extra = f', color="{self.theme.strong}", penwidth=1.8'
        if not self.graph.works[place]:
            extra = ', style="rounded,dashed"'
        return (
            f"  n{place} [label={label}, {form(text['op'][place], text['role'][place])}, "
            f'fillcolor="{fill}", id="node{place}", '
            f"tooltip={quoted(self._tooltip(place))}{extra}]"
        )

    def _measure(self, place: int) -> str:
        """What the colour stands for, in numbers."""
        row = self.graph.nodes.iloc[place]
        if int(row["into"]) != place:
            return f"in {int(row['into'])}"
        wall, size = float(row["wall_ns"]), float(row["bytes"])
        both = float(row["compute_ns"] + row["wait_ns"])
        if not self.graph.works[place] or not wall:
            return ""
        if self.look.color == "bytes":
            return format_bytes(size)
        if self.look.color == "rate":
            return format_byte_rate(size * 1e9 / wall)
        if self.look.color in self.graph.counters:
            value, written = counted(self.graph, self.look.color)
            return written(float(value[place]))
        if self.look.color == "wait":
            return f"waits {format_percent(float(row['wait_ns']) / both)}" if both else ""
        return format_ns(wall)

    def _tooltip(self, place: int) -> str:
        row = self.graph.nodes.iloc[place]
        text = self.text
        lines = [
            f"{place}: {self.graph.titles[place]}",
            text["name"][place],
            f"{text['type'][place]} {shape_text(text['shape'][place])}",
        ]
        if text["problem"][place] != text["shape"][place]:
            lines.append(f"work: {text['problem'][place]}")
        if backend := self.graph.backend(place):
            lines.append(f"backend: {backend}")
        lines.append(f"role: {text['role'][place]}")
        if row["layer"] >= 0:
            lines.append(f"layer: {int(row['layer'])}")
        into, wall = int(row["into"]), float(row["wall_ns"])
        if into != place:
            lines.append(f"ran fused into {into}")
        elif wall:
            lines += [
                f"time: {format_ns(wall)} ({format_percent(wall / self.graph.total_ns)})",
                f"computing {format_ns(float(row['compute_ns']))}, waiting "
                f"{format_ns(float(row['wait_ns']))} (mean over threads)",
            ]
            size = float(row["bytes"])
            if np.isfinite(size):
                rate = format_byte_rate(size * 1e9 / wall)
                lines.append(f"bytes: {format_bytes(size)}, {rate}")
            for name in self.graph.counters:
                value, written = counted(self.graph, name)
                lines.append(f"{name}: {written(float(value[place]))}")
            slack = float(self.graph.paths.slack[place])
            critical = bool(self.graph.critical[place])
            lines.append("on the critical path" if critical else f"slack: {format_ns(slack)}")
        return "\n".join(filter(None, lines))

    def _neighbour(self, place: int) -> str:
        op, name = self.text["op"][place], self.text["name"][place]
        label = f"{place}  {op}\n{short(name)}"
        return (
            f'  n{place} [label={quoted(label)}, style="rounded,dashed", fontsize=9, '
            f'fontcolor="{self.theme.dim}", color="{self.theme.line}", '
            f"tooltip={quoted(f'{place}: {op} {name}, not in this part')}]"
        )

    def _edge(self, src: int, dst: int, memory: bool) -> str:
        extra = []
        crosses = self.graph.several and self.graph.piece[src] != self.graph.piece[dst]
        if memory:
            extra += ["style=dashed", f'label="  {"then" if crosses else "memory"}  "']
        elif crosses:
            shape = shape_text(self.text["shape"][src])
            extra += ["style=dashed", f"label={quoted(f'  copied {shape}  ')}"]
        elif self.shown[src]:
            # Blanks keep the text off the line.
            extra.append(f"label={quoted('  ' + shape_text(self.text['shape'][src]) + '  ')}")
        if (src, dst) in self.on_path:
            extra += [f'color="{self.theme.strong}"', "penwidth=1.8", "weight=6"]
        where = f"{self.text['name'][src] or src} -> {self.text['name'][dst] or dst}"
        extra.append(f"tooltip={quoted(where)}")
        return f"  n{src} -> n{dst} [{', '.join(extra)}]"

    def _outside(self) -> list[str]:
        """Weights as notes, caches as drums, inputs as ellipses; each once a layer."""
        table = self.graph.sources
        table = table[(table["kind"] != NODE) & self.shown[table["idx"].to_numpy()]]
        out: list[str] = []
        known: dict[tuple[str, int], str] = {}
        layer = self.graph.nodes["layer"].tolist()
        columns = ("idx", "src_name", "kind", "type", "shape")
        for idx, name, kind, of, shape in zip(*(table[c].tolist() for c in columns), strict=True):
            key = (name or f"unnamed of {idx}", layer[idx])
            if key not in known:
                known[key] = f"s{len(known)}"
                out.append(self._source(known[key], name, kind, of, shape))
            to = f"{name} -> {self.text['name'][idx]}"
            out.append(
                f"  {known[key]} -> n{idx} [arrowhead=none, penwidth=0.7, tooltip={quoted(to)}]"
            )
        return out

    def _source(self, ident: str, name: str, kind: str, of: str, shape: str) -> str:
        look = {
            WEIGHT: 'shape=note, style="filled"',
            CACHE: 'shape=cylinder, style="filled"',
        }.get(kind, 'shape=ellipse, style="filled,dashed", margin="0.02,0.01"')
        about = " ".join(filter(None, (of, shape_text(shape))))
        label = "\n".join(filter(None, (short(name) or kind, about)))
        panel = self.theme.panel
        return (
            f"  {ident} [label={quoted(label)}, {look}, fontsize=8, "
            f'fontcolor="{self.theme.dim}", color="{self.theme.line}", fillcolor="{panel}", '
            f"tooltip={quoted(f'{kind} {name} {about}')}]"
        )
