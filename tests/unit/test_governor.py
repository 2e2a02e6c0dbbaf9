"""When operators' probes are taken away and brought back, on a simulated target."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from profinfer.capture.governor import Decision, Governor, QosLimits
from profinfer.capture.readings import Forecast, Reading
from profinfer.tracefile.schema import (
    CNT_COUNT,
    CNT_NODES,
    CNT_OP_PASSED,
    CNT_OP_RECORDS,
    CNT_SCHED_NS,
    CNT_STEP_NODES,
)

HIT_NS = 1000
OPS = 500  # operators a token
MS = 1_000_000


class Target:
    """Decodes; a token takes ``token_ns`` and, while probes are there, their cost on top."""

    def __init__(
        self, limits: QosLimits, token_ns: Callable[[float], int], threads: int = 2, marks: int = 0
    ) -> None:
        self.governor = Governor(limits, HIT_NS)
        self.token_ns = token_ns
        self.threads = threads
        self.marks = marks
        self.now = Reading()
        self.on = True
        self.tokens_on = self.cost = 0
        self.switches: list[tuple[float, Decision]] = []

    def run(self, seconds: float) -> None:
        until = self.now.call_ns + seconds * 1e9
        while self.now.call_ns < until:
            took = self.token_ns(self.now.call_ns / 1e9)
            hits = 0
            if self.on:
                took += OPS * HIT_NS
                hits = OPS * self.threads
                self.tokens_on += 1
                self.cost += OPS * HIT_NS
            n = self.now
            self.now = Reading(
                n.call_ns + took, n.steps + 1, n.step_ns + took, n.hits + hits,
                n.marks + self.marks, n.graphs + 1,
                n.nodes + OPS, n.node_threads + OPS * self.threads,
            )  # fmt: skip
            decision = self.governor.observe(self.now)
            if decision is not None:
                assert decision.on != self.on
                self.on = decision.on
                self.switches.append((self.now.call_ns / 1e9, decision))


def test_cheap_probes_stay() -> None:
    target = Target(QosLimits(max_overhead=0.02), lambda t: 100 * MS)  # 0.5 %
    target.run(60)
    assert target.switches == []


def test_the_share_is_kept_over_the_run() -> None:
    target = Target(QosLimits(max_overhead=0.02), lambda t: 10 * MS)  # 5 % untamed
    target.run(60)
    assert 0.015 < target.cost / target.now.call_ns < 0.021
    assert 0.3 < target.tokens_on / target.now.steps < 0.45
    assert len(target.switches) < 120  # at most one every half second
    assert "more than 2 %" in target.switches[0][1].why


def test_a_tiny_share_is_kept_with_long_pauses() -> None:
    target = Target(QosLimits(max_overhead=0.001), lambda t: 10 * MS)
    target.run(300)
    assert target.cost / target.now.call_ns < 0.0015
    assert target.tokens_on > 0


def test_saving_in_the_past_is_no_licence() -> None:
    """A minute at little cost, then the target gets ten times faster: the limit holds at once."""
    target = Target(QosLimits(max_overhead=0.02), lambda t: 100 * MS if t < 60 else 5 * MS)
    target.run(60)
    before = target.cost, target.now.call_ns
    target.run(20)
    assert (target.cost - before[0]) / (target.now.call_ns - before[1]) < 0.023


def test_a_fast_target_keeps_its_probes() -> None:
    target = Target(QosLimits(min_tps=50), lambda t: 10 * MS)
    target.run(30)
    assert target.switches == []


def test_a_disturbed_target_loses_its_probes_until_it_has_recovered() -> None:
    """100 tok/s, from second 5 to 15 somebody takes half the machine."""
    target = Target(QosLimits(min_tps=80), lambda t: 20 * MS if 5 <= t < 15 else 10 * MS)
    target.run(30)
    (down, off), (up, on) = target.switches
    assert (off.on, on.on) == (False, True)
    assert 5.3 < down < 7
    assert 15 < up < 17
    assert "less than 80" in off.why


def test_probes_do_not_come_back_if_they_would_break_the_limit() -> None:
    """102 tok/s without probes, 97 with them: below 99, and the target must not flap."""
    target = Target(QosLimits(min_tps=99), lambda t: 9_800_000)
    target.run(300)
    assert [d.on for _, d in target.switches] == [False]


def test_coming_back_takes_longer_each_time() -> None:
    """Without probes it is fast enough for both, but with them slower than estimated."""
    target = Target(QosLimits(min_tps=80), lambda t: 14 * MS if target.on else 10 * MS)
    target.run(200)
    offs = [t for t, d in target.switches if not d.on]
    gaps = [b - a for a, b in itertools.pairwise(offs)]
    assert len(gaps) >= 3 and gaps == sorted(gaps)
    assert len(target.switches) < 20


def test_a_target_that_is_always_slower_than_asked() -> None:
    target = Target(QosLimits(min_tps=80), lambda t: 50 * MS)
    target.run(10)
    assert "slower than 80 tok/s without operators' probes" in target.governor.hopeless
    assert not target.on


def test_a_share_below_what_cannot_be_taken_away() -> None:
    """Calls, graphs and thread states go on: 20 µs of a token of 10 ms."""
    target = Target(QosLimits(max_overhead=0.001), lambda t: 10 * MS, marks=20)
    target.run(10)
    assert not target.on
    assert "costs more than 0.1 %" in target.governor.hopeless


def test_a_limit_that_is_kept_is_not_called_hopeless() -> None:
    target = Target(QosLimits(max_overhead=0.02, min_tps=50), lambda t: 10 * MS)
    target.run(60)
    assert target.switches and not target.governor.hopeless


def test_both_limits() -> None:
    limits = QosLimits(max_overhead=0.02, min_tps=80)
    target = Target(limits, lambda t: 20 * MS if 20 <= t < 30 else 10 * MS)
    target.run(60)
    assert target.cost / target.now.call_ns < 0.022
    inside = [d.on for t, d in target.switches if 21.5 < t < 30]
    assert True not in inside


def test_an_idle_target_decides_nothing() -> None:
    governor = Governor(QosLimits(max_overhead=0.01, min_tps=10), HIT_NS)
    reading = Reading(10**9, 10, 10**9, 10_000, 0, 10, 10_000, 20_000)
    governor.observe(reading)
    assert all(governor.observe(reading) is None for _ in range(100))


DECODE = Reading(
    call_ns=10**9, steps=100, step_ns=10**9, hits=103_600, marks=800, graphs=100,
    nodes=80_000, node_threads=160_000, step_nodes=80_000,
)  # fmt: skip


def test_forecast() -> None:
    told = Forecast.of(DECODE, HIT_NS)
    assert told is not None
    assert told.share == (51_800 + 800) * 1000 / 1e9
    assert told.text == "about 5.3 % of decoding at 100 tok/s (526 hits a graph, 1.00 µs each)"
    assert Forecast.of(Reading(call_ns=10**8), HIT_NS) is None
    assert Forecast.of(DECODE, None) is None


def test_a_prompt_is_told_apart() -> None:
    """Four seconds of prompt in two graphs: their hits are no part of what decoding costs."""
    prompt = Reading(
        call_ns=5 * 10**9, steps=100, step_ns=10**9, hits=105_672, marks=816, graphs=102,
        nodes=81_600, node_threads=163_200, step_nodes=80_000,
    )  # fmt: skip
    told = Forecast.of(prompt, HIT_NS)
    assert told is not None and told.rest is not None
    assert round(told.share, 6) == 0.0526
    assert round(told.rest * 4e9) == 2 * 526 * 1000
    assert "5.3 % of decoding at 100 tok/s, less than 0.1 % of prefill" in told.text


def test_no_early_forecast_of_a_prompt() -> None:
    prompt = Reading(call_ns=10**9, hits=1036, graphs=1, nodes=800, node_threads=1600)
    assert Forecast.early(prompt, HIT_NS) is None
    assert Forecast.of(prompt, HIT_NS) is not None
    assert Forecast.early(DECODE, HIT_NS) == Forecast.of(DECODE, HIT_NS)


def test_thread_states_cost_too() -> None:
    """200,000 records of 0.25 µs delay the calls by 50 ms."""
    busy = replace(DECODE, sched_ns=50_000_000)
    told, quiet = Forecast.of(busy, HIT_NS), Forecast.of(DECODE, HIT_NS)
    assert told is not None and quiet is not None
    assert told.share - quiet.share == pytest.approx(0.05)
    assert told.text.endswith("1.00 µs each; 5.0 % are thread states)")


def test_the_counters_that_a_reading_is_made_of() -> None:
    counters = list(range(CNT_COUNT))
    seen = Reading.of(counters)
    assert seen.hits == CNT_OP_RECORDS + CNT_OP_PASSED
    assert (seen.nodes, seen.step_nodes, seen.sched_ns) == (
        CNT_NODES, CNT_STEP_NODES, CNT_SCHED_NS,
    )  # fmt: skip
