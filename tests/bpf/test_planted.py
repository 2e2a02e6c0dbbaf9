"""Five percent planted into one operator of the C target is found, and no other is blamed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from profinfer.analysis.compare.changes import Changes
from profinfer.analysis.compare.runs import compare
from profinfer.analysis.compare.verdict import Verdict, gate, verdict
from profinfer.analysis.compare.whole import measure
from profinfer.model.trace import Trace

pytestmark = pytest.mark.bpf

RUNS = 5
# The planned durations are wall time, so that a slow machine does not change them; and tokens are
# short, so that a busy one leaves many of them undisturbed.
ARGS = ["--threads", "1", "--layers", "1", "--base-us", "40", "--tokens", "400", "--no-ops"]


@dataclass
class Sides:
    """Runs without and with the delay, recorded in turns."""

    plain: list[Trace]
    planted: list[Trace]


@pytest.fixture(scope="module")
def sides(
    tmp_path_factory: pytest.TempPathFactory,
    fake_ggml: Path,
    run_profinfer: Callable[..., CompletedProcess[str]],
) -> Sides:
    folder = tmp_path_factory.mktemp("planted")
    out = Sides([], [])
    for number in range(RUNS):
        for name, side, more in (
            ("a", out.plain, []),
            ("b", out.planted, ["--plant", "ffn_out:5"]),
        ):
            path = folder / f"{name}{number}.pf"
            done = run_profinfer("record", "-o", path, "--", fake_ggml, *ARGS, *more)
            assert done.returncode == 0, done.stderr
            side.append(Trace.open(path))
    return out


def judged(a: list[Trace], b: list[Trace]) -> tuple[Changes, Verdict]:
    changes = Changes(compare(a, b, "decode"))
    return changes, verdict(changes, measure(changes.of, None))


def test_it_is_found_and_no_other_is_blamed(sides: Sides) -> None:
    changes, found = judged(sides.plain, sides.planted)
    rows = changes.by("kind")
    told = rows.to_string()
    assert rows[rows["verdict"] != ""]["label"].tolist() == ["ffn_down"], told
    row = rows[rows["label"] == "ffn_down"].iloc[0]
    assert (row["op"], row["verdict"]) == ("MUL_MAT", "slower")
    assert row["own"] == pytest.approx(0.05, abs=0.02), told
    assert gate(changes, found, None, 0.01) != []
    assert found.sentence.count("ffn_down MUL_MAT") == 1


def test_runs_of_the_same_program_are_the_same(sides: Sides) -> None:
    for runs in (sides.plain, sides.planted):
        changes, found = judged(runs[0::2], runs[1::2])
        assert not len(found.culprits), found.sentence
        assert gate(changes, found, 0.03, 0.03) == []
    changes, found = judged(sides.plain[:1], sides.plain[1:2])
    assert not len(found.culprits) and not found.whole.sure, found.sentence


def test_the_command_says_so(sides: Sides, run_profinfer) -> None:
    a, b = ([t.path for t in side] for side in (sides.plain, sides.planted))
    done = run_profinfer("diff", *a, "vs", *b, "--phase", "decode", "--fail-over-op", "1%")
    assert done.returncode == 3, done.stdout
    assert "ffn_down MUL_MAT" in done.stdout.split("\n\n")[0]
    assert "FAILED: ffn_down MUL_MAT is at least" in done.stderr
    done = run_profinfer("diff", a[0], a[1], "--fail-over", "3%", "--fail-over-op", "5%")
    assert done.returncode == 0, done.stderr
