"""When operators' probes are taken away and brought back, on a simulated target."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from profinfer.capture.governor import Decision, Governor, QosLimits
from profinfer.capture.readings import Forecast, Reading

HIT_NS = 1000
OPS = 500  # operators a token
MS = 1_000_000


class Target:
    """Decodes; a token takes ``token_ns`` and, while probes are there, their cost on top."""

    def __init__(
        self, limits: QosLimits, token_ns: Callable[[float], int], threads: int = 2
    ) -> None:
        self.governor = Governor(limits, HIT_NS)
        self.token_ns = token_ns
        self.threads = threads
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
                n.call_ns + took, n.steps + 1, n.step_ns + took, n.hits + hits, 0, n.graphs + 1,
                n.threads + self.threads,
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
    assert target.governor.hopeless
    assert not target.on


def test_both_limits() -> None:
    limits = QosLimits(max_overhead=0.02, min_tps=80)
    target = Target(limits, lambda t: 20 * MS if 20 <= t < 30 else 10 * MS)
    target.run(60)
    assert target.cost / target.now.call_ns < 0.022
    inside = [d.on for t, d in target.switches if 21.5 < t < 30]
    assert True not in inside


def test_an_idle_target_decides_nothing() -> None:
    governor = Governor(QosLimits(max_overhead=0.01, min_tps=10), HIT_NS)
    reading = Reading(10**9, 10, 10**9, 10_000, 0, 10, 20)
    governor.observe(reading)
    assert all(governor.observe(reading) is None for _ in range(100))


def test_forecast() -> None:
    reading = Reading(
        call_ns=10**9, steps=100, step_ns=10**9, hits=103_600, marks=800, graphs=100, threads=200
    )
    told = Forecast.of(reading, 1000)
    assert told is not None
    assert told.share == (51_800 + 800) * 1000 / 1e9
    assert told.text == "about 5.3 % at 100 tok/s (526 hits a graph, 1.00 µs each)"
    assert Forecast.of(Reading(call_ns=10**8), 1000) is None
    assert Forecast.of(reading, None) is None
