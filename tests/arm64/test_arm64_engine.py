"""The real llama.cpp on arm64, where the compiler inlines the barrier: whole graphs, no loss."""

from __future__ import annotations

import pytest
from conftest import Recorded

from profinfer.model.selfcheck import checks

MODELS = ("tiny-dense", "tiny-moe")


@pytest.mark.parametrize("model", MODELS)
def test_every_node_of_every_graph(engine: Recorded, model: str) -> None:
    trace = engine.trace(model)
    assert {k: v for k, v in trace.losses.items() if v} == {}
    # How much of the time operators explain is a matter of how slow the emulator is.
    failed = [check.text for check in checks(trace) if not check.ok and check.name != "explained"]
    assert failed == []
    assert trace.graphs["complete"].all() and (trace.graphs["threads_seen"] == 2).all()
    phases = trace.calls["phase"].astype(str).value_counts()
    assert (phases["prefill"], phases["decode"]) == (1, 5)


@pytest.mark.parametrize("model", MODELS)
def test_counters_of_a_real_engine(engine: Recorded, model: str) -> None:
    trace = engine.trace(model)
    assert trace.counters.notna().to_numpy().all()
    assert trace.counters["cycles"].sum() > 0
