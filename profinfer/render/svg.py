"""Layer 7: drawings of graphs, made by Graphviz' ``dot``, which has to be installed.

Owns the call. ``layer_svg`` is what a page embeds. Must not import the command line.
"""

from __future__ import annotations

import shutil
import subprocess

from profinfer.analysis.layerpattern import layer_places
from profinfer.analysis.opgraph import OpGraph
from profinfer.errors import EnvironmentProblem
from profinfer.render.dot import to_dot
from profinfer.render.dottext import Look

FORMS = ("svg", "png", "pdf")
_LIMIT_S = 120


def draw(dot: str, form: str = "svg") -> bytes:
    """A drawing of a graph in the DOT language.

    Args:
        dot: the graph.
        form: one of ``FORMS``.

    Raises:
        EnvironmentProblem: Graphviz is not installed, or it failed.
    """
    program = shutil.which("dot")
    if program is None:
        raise EnvironmentProblem(
            "Graphviz is not installed, and it draws the graphs",
            "apt install graphviz, or --dot to get its input as text",
        )
    try:
        done = subprocess.run(
            [program, f"-T{form}"], input=dot.encode(), capture_output=True, timeout=_LIMIT_S
        )
    except subprocess.TimeoutExpired as error:
        raise EnvironmentProblem(
            f"dot took more than {_LIMIT_S} s to lay the graph out", "a part of it: --layer N"
        ) from error
    if done.returncode or not done.stdout:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["no reason given"]
        raise EnvironmentProblem(f"dot failed: {said[0]}", "dot -V, to see its version")
    return done.stdout


def embeddable(svg: bytes) -> str:
    """The ``<svg>`` element alone, for a page."""
    text = svg.decode("utf-8")
    return text[text.index("<svg") :]


def layer_svg(graph: OpGraph, layer: int, color: str = "time", theme: str = "none") -> str:
    """One layer and what is next to it as an ``<svg>`` element.

    Args:
        graph: the graph; ``opgraph.op_graph`` makes it.
        layer: number of the layer; -1 for what is in no layer.
        color: one of ``dotstyle.COLORS``.
        theme: one of ``dotstyle.THEMES``; "none" suits a page in light and dark.

    Raises:
        EnvironmentProblem: Graphviz is not installed, or it failed.
        ValueError: there is no such layer.
    """
    places = layer_places(graph).get(layer)
    if not places:
        raise ValueError(f"no layer {layer}")
    title = f"Layer {layer}" if layer >= 0 else "Operators of no layer"
    return embeddable(draw(to_dot(graph, places, Look(color, theme, title=title))))
