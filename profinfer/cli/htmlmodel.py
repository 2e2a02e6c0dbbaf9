"""Layer 8: sections of the page about the model: its experts, its graph of operators."""

from __future__ import annotations

from profinfer.analysis import dagviews, dagwidths, expertcosts, expertpasses, expertreuse, experts
from profinfer.analysis.layerpattern import groups
from profinfer.analysis.opgraph import op_graph
from profinfer.analysis.tokensplits import passes
from profinfer.cli.htmlsource import Part, Source, parts_of
from profinfer.errors import EnvironmentProblem
from profinfer.render.html import expertcostfigures, expertfigures, graphfigures
from profinfer.render.html.charts import Drawing
from profinfer.render.html.section import Fold, Section
from profinfer.render.svg import layer_svg

EXPERTS_MAX = 300  # rows of single experts
PASSES_MAX = 500  # rows of single passes
LAYERS_MAX = 3  # layers with charts of their own: each is up to half a megabyte
# Graphviz takes long for graphs with more nodes in a layer than this.
DRAWN_MAX = 400


def expert_section(source: Source) -> Section | None:
    """Which experts tokens were sent to, when again, and what a cache of some would hit."""
    trace, chosen = source.trace, source.main
    if not len(trace.experts):
        return None
    every = experts.by_expert(trace, chosen, EXPERTS_MAX)
    if not len(every.frame):
        return None
    uses, done = expertpasses.needed(trace, chosen), expertpasses.costs(trace, chosen)
    if not len(uses):
        return None
    known = expertcosts.sizes(trace).experts
    layers = expertpasses.slowest_layers(done, LAYERS_MAX)
    of_layers = [
        chart
        for layer in layers
        for chart in (
            expertfigures.routes(uses, layer, known[layer]), *expertfigures.times(done, layer)
        )
    ]  # fmt: skip
    about = "Which experts the router chose, how long ago they were needed, and what that takes."
    if of_layers and len(layers) < done["layer"].nunique():
        which = ", ".join(map(str, layers))
        about += f" Of single layers, {which}: the slowest. --layer A:B draws others."
    return Section(
        "experts",
        "Experts",
        parts_of(
            experts.overview(trace, chosen),
            expertfigures.loads(uses, known),
            *of_layers,
            expertcostfigures.reuse(uses),
            expertcostfigures.density(done),
            expertcostfigures.disk(expertpasses.products(trace, chosen)),
            experts.by_layer(trace, chosen),
            expertreuse.by_reuse(trace, chosen),
            expertreuse.by_cache(trace, chosen, brief=True),
            Fold(expertpasses.by_pass(trace, chosen, PASSES_MAX)),
            Fold(every),
        ),
        about,
    )


def graph_section(source: Source) -> Section | None:
    """The operators that the model is: in words, and one layer of those that repeat drawn."""
    trace, chosen = source.trace, source.main
    if source.narrowed or not source.has_ops:
        return None
    known = passes(trace, chosen)
    if not len(known):
        return None
    graph = op_graph(trace, known[0], chosen)
    told = dagviews.summary(graph, len(known) - 1)
    found = groups(graph)
    drawing: Part | None = None
    about = "What is computed, in which order, and what could run at the same time."
    if found and len(found[0].items) <= DRAWN_MAX:
        layer = found[0].layers[0]
        try:
            drawing = Drawing(
                "layer-graph",
                f"Operators of layer {layer}",
                f"Layers {found[0].said} are alike. Heavy lines: the critical path. profinfer "
                "graph draws other layers, other colours, and whole graphs.",
                layer_svg(graph, layer),
            )
        except EnvironmentProblem as missing:
            about += f" No drawing: {missing.message}."
    rest = told[1:]
    width = graphfigures.widths(dagwidths.steps(graph))
    return Section(
        "graph", "Operator graph", parts_of(told[0], drawing, width, *map(Fold, rest)), about
    )
