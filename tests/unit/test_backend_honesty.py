"""Views of backends do not ignore an option, nor leave out another backend's work in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_backend_model import TID, Builder, opened, products
from test_diff_backends import run

from profinfer.analysis import comparison, devicetimes, operators
from profinfer.cli import run as run_cli
from profinfer.cli.report import command
from profinfer.errors import UsageProblem
from profinfer.model.trace import Trace

LOG = """Vulkan Timings:
MUL_MAT q4_K m=32 n=5 k=64: {runs} x 10.0 us = {total} us
Total time: 20 us.
"""


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--by", "backend", "--layer", "1"], "shows whole splits"),
        (["--by", "backend", "--op", "ROPE"], "shows whole splits"),
        (["--by", "context", "--phase", "decode"], "every call of each context"),
        (["--by", "context", "--layer", "1"], "every call of each context"),
    ],
)
def test_options_that_a_view_would_ignore_are_refused(
    options: list[str], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run(tmp_path / "a.pf", "BLAS").path
    assert run_cli(command, [str(path), *options]) != 0
    assert why in capsys.readouterr().err


def test_operator_views_tell_of_other_backends(tmp_path: Path) -> None:
    alone = run(tmp_path / "a.pf", "")
    said = [n.text for n in operators.by(alone, alone.select(), "op").notes]
    assert not any("--by backend" in text for text in said)
    cut = run(tmp_path / "b.pf", "BLAS")
    for view in (operators.by(cut, cut.select(), "op"), operators.by_node(cut, cut.select(), 5)):
        (text,) = [n.text for n in view.notes if "--by backend" in n.text]
        assert text.startswith("the CPU's operators alone: BLAS ran ")


def recorded(path: Path) -> Trace:
    b = Builder()
    b.call_begin(TID, 1000, n_tokens=5, pos_first=0)
    b.split(2000, 2500, products(), "Vulkan")
    b.call_end(TID, 3000)
    return opened(b, path)


def test_device_times_are_compared_with_another_recording(tmp_path: Path) -> None:
    trace = recorded(tmp_path)
    times = devicetimes.read_vulkan(LOG.format(runs=2, total="20.0"))
    assert times is not None
    side = comparison.side(trace, trace.select(), times)
    (row,) = side.table.reset_index().to_dict("records")
    assert (row["op"], row["problem"], row["runs"]) == ("MUL_MAT", "32x64x5", 2)
    assert (row["time_ns"], row["backend"]) == (20_000, "Vulkan")
    twice = devicetimes.read_vulkan(LOG.format(runs=2, total="20.0") * 2)
    assert twice is not None
    with pytest.raises(UsageProblem, match="2 parts and the recording 1 Vulkan split:"):
        comparison.side(trace, trace.select(), twice)
    assert devicetimes.device_times(trace, trace.select(), twice).scope == (
        "the whole profile: 2 parts"
    )
