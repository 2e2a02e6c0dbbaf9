"""The engine's own description of a graph: what llama-eval-callback prints, node by node."""

from __future__ import annotations

import re
import subprocess

import pandas as pd

_NODE = re.compile(
    r"eval:\s+(?P<name>.+?) = \((?P<type>\w+)\)\s+(?P<op>\w+)\((?P<srcs>.*)\) = \{(?P<ne>[\d, ]+)\}"
)
_SOURCE = re.compile(r"(.*?)\{([\d, ]+)\}")


def dumped_nodes(command: list[str]) -> list[dict[str, str]]:
    """Run llama-eval-callback; one dict a node of its first graph, in the order it ran."""
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    lines = (said.stdout + said.stderr).splitlines()
    return [m.groupdict() for m in map(_NODE.search, lines) if m]


def assert_same_graph(ours: pd.DataFrame, theirs: list[dict[str, str]], *, at_least: float) -> None:
    """Names, operators, types, shapes, first sources and order are the same.

    The engine's logger is a thread that exit does not wait for, so the last lines may be missing;
    ``at_least`` is the share of the graph that must have been printed.
    """
    assert at_least * len(ours) <= len(theirs) <= len(ours)
    for mine, his in zip(ours.itertuples(), theirs, strict=False):
        where = f"node {mine.idx}"
        assert mine.name == his["name"], where
        # The engine prints a gated or unary operator by its function, e.g. SWIGLU for GLU.
        assert his["op"] in (mine.op, mine.params), where
        assert mine.type == his["type"], where
        assert [mine.ne0, mine.ne1, mine.ne2, mine.ne3] == _shape(his["ne"]), where
        if source := _SOURCE.match(his["srcs"]):
            assert mine.src0_name == source[1], where
            have = [int(x) for x in str(mine.src0_ne).split("x")]
            assert have + [1] * (4 - len(have)) == _shape(source[2]), where


def _shape(text: str) -> list[int]:
    return [int(x) for x in text.split(",")]
