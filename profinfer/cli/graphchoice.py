"""Layer 8: which graph of a trace is meant, and which part of it is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from profinfer.cli import options
from profinfer.errors import UsageProblem

if TYPE_CHECKING:
    from profinfer.analysis.opgraph import OpGraph
    from profinfer.model.selection import Selection
    from profinfer.model.trace import Trace
    from profinfer.render.dottext import Look

COLORS = ("time", "bytes", "rate", "wait", "role")
MOST_DRAWN = 150  # operators that are still legible in one drawing


@dataclass(frozen=True)
class Wanted:
    """What the user asked for.

    Attributes:
        drawn: a drawing, not tables.
        phase: None for decode, or what there is.
        token: one decode step.
        def_id: one definition.
        nodes: places [a, b).
        layer: layers [a, b).
        whole: draw everything.
        views: draw views.
        color: what colours mean.
        theme: background.
    """

    drawn: bool
    phase: str | None
    token: int | None
    def_id: int | None
    nodes: tuple[int, int] | None
    layer: tuple[int, int] | None
    whole: bool
    views: bool
    color: str
    theme: str

    @property
    def narrowed(self) -> bool:
        """Only a part of the graph is wanted."""
        return self.nodes is not None or self.layer is not None


@dataclass(frozen=True)
class Opened:
    """A graph of a trace.

    Attributes:
        trace: what was recorded.
        graph: the one that is meant.
        others: how many others the same selection ran.
        phase: phase of its executions, None for several.
    """

    trace: Trace
    graph: OpGraph
    others: int
    phase: str | None


def opened(path: str, wanted: Wanted) -> Opened:
    """The graph that is meant.

    Raises:
        TraceError: the file is no trace.
        UsageProblem: it has no such graph.
    """
    from profinfer.analysis.opgraph import op_graph
    from profinfer.analysis.tokensplits import passes
    from profinfer.model.trace import Trace

    trace = Trace.open(path)
    if not (trace.graphs["def_id"] >= 0).any():
        if trace.meta.nothing_probed:
            raise UsageProblem(
                f"{path} holds no graph: {options.NO_ENGINE}",
                "record it again, until the program has generated something",
            )
        raise UsageProblem(
            f"{path} holds no graph whose nodes were read", "profinfer record --level op -- ..."
        )
    selection = _selection(trace, path, wanted)
    found = passes(trace, selection)
    if wanted.def_id is not None:
        # Splits of other backends have definitions, too.
        if not (trace.nodes["def_id"] == wanted.def_id).any():
            last = int(trace.nodes["def_id"].max())
            raise UsageProblem(f"{path} has no graph {wanted.def_id}", f"--def 0 to --def {last}")
    graph = op_graph(trace, found[0] if wanted.def_id is None else wanted.def_id, selection)
    if wanted.color not in (*COLORS, *graph.counters):
        known = ", ".join((*COLORS, *graph.counters))
        hint = (
            "" if graph.counters else "; profinfer record --counters NAME, for colours by counters"
        )
        raise UsageProblem(f"no colours by {wanted.color} in {path}", f"--color {known}{hint}")
    others = max(len(found) - 1, 0) if wanted.def_id is None else 0
    return Opened(trace, graph, others, selection.phase)


def _selection(trace: Trace, path: str, wanted: Wanted) -> Selection:
    """The calls whose times count."""
    if wanted.token is not None:
        if wanted.phase not in (None, "decode"):
            raise UsageProblem("--token counts decoded tokens", "leave out --phase")
        tries = [trace.select(phase="decode", tokens=(wanted.token, wanted.token + 1))]
    elif wanted.phase is not None:
        tries = [trace.select(phase=wanted.phase)]
    elif wanted.def_id is not None:
        tries = [trace.select(warmup=True)]
    else:
        tries = [trace.select(phase=p) for p in ("decode", "prefill", "mixed", "encode")]
        tries.append(trace.select(warmup=True))
    for selection in tries:
        if (trace.graphs["def_id"].to_numpy()[selection.graphs] >= 0).any():
            return selection
    raise UsageProblem(
        f"{path} has no such graph ({tries[0].description})",
        f"profinfer report {path} --by token, to see what there is",
    )


def part(graph: OpGraph, wanted: Wanted) -> tuple[list[int] | None, Look]:
    """What is drawn of a graph, None for all of it, and how.

    Raises:
        UsageProblem: there is no such part.
    """
    from profinfer.analysis.layerpattern import groups, layer_places
    from profinfer.render.dottext import Look

    count = int(graph.works.sum())
    title, places, left_out = graph.title, None, ""
    if wanted.nodes is not None:
        first, last = wanted.nodes
        places = list(range(first, min(last, len(graph))))
        title = f"Nodes {first} to {min(last, len(graph)) - 1}"
        if not graph.works[places].any() and not wanted.views:
            raise UsageProblem(
                f"no operator among these nodes; the graph has {len(graph):,}", "--nodes 0:40"
            )
    elif wanted.layer is not None:
        layers = layer_places(graph)
        asked = range(wanted.layer[0], min(wanted.layer[1], max(layers) + 1))
        places = [place for layer in asked for place in layers.get(layer, [])]
        if not places:
            raise UsageProblem(
                f"no layer {wanted.layer[0]}; the last one is {max(layers)}", "--layer 0"
            )
        one = len(asked) == 1
        title = f"Layer {asked[0]}" if one else f"Layers {asked[0]} to {asked[-1]}"
    elif count > MOST_DRAWN and not wanted.whole and (found := groups(graph)):
        middle = found[0].layers[len(found[0].layers) // 2]
        places = layer_places(graph)[middle]
        title = f"Layer {middle}"
        left_out = f" · one of {len(found[0].layers)} alike; all {count:,} operators: --all"
    if places is not None and wanted.views and wanted.nodes is None:
        places = list(range(min(places), max(places) + 1))
    return places, Look(
        wanted.color, wanted.theme, wanted.views, title,
        f"{graph.scope}{' · red: critical path' if graph.timed else ''}{left_out}",
    )  # fmt: skip
