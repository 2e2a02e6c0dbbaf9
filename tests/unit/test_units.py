from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profinfer import units


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (0, "0 ns"),
        (831, "831 ns"),
        (999, "999 ns"),
        (999.6, "1.00 µs"),
        (1000, "1.00 µs"),
        (9_994, "9.99 µs"),
        (9_995, "10.0 µs"),
        (9_996, "10.0 µs"),
        (12_345, "12.3 µs"),
        (999_499, "999 µs"),
        (999_600, "1.00 ms"),
        (4_560_000, "4.56 ms"),
        (7_890_000_000, "7.89 s"),
        (119_000_000_000, "119 s"),
        (125_000_000_000, "2 min 05 s"),
        (3_725_000_000_000, "1 h 02 min"),
        (-1_500, "-1.50 µs"),
        (None, "-"),
        (math.nan, "-"),
    ],
)
def test_ns(ns: float | None, text: str) -> None:
    assert units.format_ns(ns) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1023, "1.00 KiB"),
        (1536, "1.50 KiB"),
        (98 << 20, "98.0 MiB"),
        (1023 << 20, "1.00 GiB"),
        (5 << 60, "5120 PiB"),
        (None, "-"),
    ],
)
def test_bytes_are_binary(size: float | None, text: str) -> None:
    assert units.format_bytes(size) == text


def test_rates_are_decimal() -> None:
    assert units.format_byte_rate(19_200_000_000) == "19.2 GB/s"
    assert units.format_byte_rate(950) == "950 B/s"
    assert units.format_byte_rate(None) == "-"
    assert units.format_rate(203.04, "tok") == "203 tok/s"
    assert units.format_rate(1_200_000, "ops") == "1.20 M ops/s"
    assert units.format_rate(12, "") == "12 /s"
    assert units.format_rate(48_100) == "48.1 k/s"


def test_percent_never_hides_a_little_and_never_invents() -> None:
    assert units.format_percent(0.1234) == "12.3 %"
    assert units.format_percent(1) == "100.0 %"
    assert units.format_percent(0) == "0.0 %"
    assert units.format_percent(0.0001) == "<0.1 %"
    assert units.format_percent(-0.0001) == ">-0.1 %"
    assert units.format_percent(0.0001, digits=2) == "0.01 %"
    assert units.format_percent(math.inf) == "-"
    assert units.format_percent(13.508) == "1,350.8 %"


def test_large_changes_are_told_as_quotients() -> None:
    told = [units.format_change(x) for x in (-0.2, 0.05, 1.99, 2, 13.5, 1350)]
    assert told == ["20.0 %", "5.0 %", "199.0 %", "3.0x", "14.5x", "1,351x"]


def test_counts() -> None:
    assert units.format_count(1_234_567) == "1,234,567"
    assert units.format_short_count(999) == "999"
    assert units.format_short_count(12_345) == "12.3k"
    assert units.format_short_count(9_984_000) == "9.98M"
    assert units.format_number(1234.5) == "1,234"
    assert units.format_number(0.5) == "0.50"
    assert units.format_ms(4_560_000) == "4.560"


@given(st.floats(min_value=-1e17, max_value=1e17))
def test_any_number_is_short(value: float) -> None:
    assert len(units.format_ns(value)) <= 20
    assert len(units.format_short_count(value)) <= 7
    for text in (units.format_bytes(value), units.format_byte_rate(value)):
        number = text.split()[0].lstrip("-")
        assert float(number) < 1000 or "P" in text


@given(st.integers(min_value=1, max_value=10**10))
def test_a_duration_keeps_three_digits(ns: int) -> None:
    number, unit = units.format_ns(ns).split()
    factor = {"ns": 1, "µs": 1e3, "ms": 1e6, "s": 1e9}[unit]
    assert float(number) * factor == pytest.approx(ns, rel=0.0051)
