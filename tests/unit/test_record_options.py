"""What the options of ``profinfer record`` take, and what they refuse in one line."""

from __future__ import annotations

import pytest

from profinfer.cli import run
from profinfer.cli.recordargs import ring_bytes_of, seconds_of, speed_of
from profinfer.errors import UsageProblem


@pytest.mark.parametrize(
    ("text", "seconds"), [("30", 30.0), ("1.5s", 1.5), ("2m", 120.0), ("500ms", 0.5), ("1h", 3600)]
)
def test_durations(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "s", "0", "-3", "²s", "1e3", "nan", "inf", "9" * 400, ".", "9999h"]
)
def test_no_durations(text: str) -> None:
    with pytest.raises(UsageProblem, match="--duration"):
        seconds_of(text)


@pytest.mark.parametrize("text", ["²M", "0M", "3M", "16", "M", ""])
def test_no_ring_sizes(text: str) -> None:
    with pytest.raises(UsageProblem, match="--ring-size"):
        ring_bytes_of(text)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_no_speeds(number: float) -> None:
    with pytest.raises(UsageProblem, match="--min-tps"):
        speed_of(number)


@pytest.mark.parametrize(
    "options",
    [
        ("--every", "99999999999999999999"),
        ("--tokens", "99999999999999999999"),
        ("--layers", "5000000000:6000000000"),
        ("--min-tps", "nan"),
        ("--min-tps", "inf"),
        ("--duration", "²s"),
        ("--ring-size", "²M"),
    ],
)
def test_one_line_and_no_traceback(
    options: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Said before anything is looked at or run."""
    from profinfer.cli import group

    code = run(group, ["record", *options, "--", "/no/such/program"])
    said = capsys.readouterr().err
    assert code == 2
    assert options[0] in said and "Traceback" not in said and "/no/such" not in said


def test_a_span_may_end_beyond_what_there_is() -> None:
    from profinfer.cli.options import Span

    assert Span().convert("3:99999999999999999999", None, None) == (3, 1 << 31)
