"""Splits of a second backend in the C target: their nodes are read when they begin."""

from __future__ import annotations

from pathlib import Path

import pytest

from profinfer.model.trace import Trace

pytestmark = pytest.mark.bpf


def recorded(path: Path, program: Path, run_profinfer, *more: str) -> Trace:
    args = ["--layers", "2", "--tokens", "5", "--base-us", "2", *more]
    done = run_profinfer("record", "-o", path, "--", program, *args, "--out", f"{path}.json")
    assert done.returncode == 0, done.stderr
    trace = Trace.open(path)
    assert {k: v for k, v in trace.losses.items() if v} == {}
    return trace


def names(trace: Trace) -> dict[int, list[str]]:
    """Names of the nodes that each call ran, in order, whatever backend ran them."""
    found: dict[int, list[str]] = {}
    graphs = trace.graphs.set_index("split_id")["def_id"]
    for split in trace.splits.sort_values("begin_ns").itertuples():
        def_id = split.def_id if split.def_id >= 0 else graphs[split.split_id]
        mine = trace.nodes[trace.nodes["def_id"] == def_id].sort_values("idx")
        found.setdefault(split.call_id, []).extend(mine["name"].astype(str))
    return found


@pytest.mark.parametrize("more", [[], ["--no-uid"]])
def test_nodes_of_every_split_are_known(
    tmp_path: Path, fake_ggml: Path, run_profinfer, more: list[str]
) -> None:
    whole = recorded(tmp_path / "whole.pf", fake_ggml, run_profinfer, "--splits", "1", *more)
    trace = recorded(tmp_path / "t.pf", fake_ggml, run_profinfer, "--splits", "4", *more)
    splits, nodes = trace.splits, trace.nodes
    away = splits[splits["backend"] != "CPU"]
    here = splits[splits["backend"] == "CPU"]
    assert len(away) == len(here) == 2 * len(trace.calls)
    # The CPU's are told by its graphs, the others by themselves; together they are the graph.
    assert (here["def_id"] == -1).all() and (away["def_id"] >= 0).all()
    count = nodes.groupby("def_id").size()
    assert (count.reindex(away["def_id"]).to_numpy() == away["n_nodes"].to_numpy()).all()
    assert len(trace.calls) == len(whole.calls) > 5
    assert names(trace) == names(whole)
