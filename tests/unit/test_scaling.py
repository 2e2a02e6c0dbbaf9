from __future__ import annotations

import json
from pathlib import Path

import pytest
from builders import sample_run

from profinfer.analysis import matmuls, scaling
from profinfer.cli import run
from profinfer.cli.scaling import command
from profinfer.model.trace import Trace


def trace_of(folder: Path, threads: int, compute: int, name: str | None = None) -> Path:
    tids = tuple(range(77, 77 + threads))
    made = sample_run(decode_tokens=6, tids=tids, compute=compute)
    return made.builder.write(folder / (name or f"t{threads}.pf"))


def runs_of(paths: list[Path]) -> list[scaling.Run]:
    runs = []
    for path in paths:
        trace = Trace.open(path)
        measured = scaling.run(trace, trace.select(phase="decode"))
        assert measured is not None
        runs.append(measured)
    return runs


def test_speed_up_and_efficiency(tmp_path: Path) -> None:
    paths = [trace_of(tmp_path, 1, 40_000), trace_of(tmp_path, 2, 20_000),
             trace_of(tmp_path, 4, 20_000)]  # fmt: skip
    runs = runs_of(paths)
    frame = scaling.by_threads(runs).frame
    assert frame["threads"].tolist() == [1, 2, 4]
    assert frame["speedup"].tolist() == pytest.approx([1, 2, 2], rel=0.01)
    assert frame["efficiency"].tolist() == pytest.approx([1, 1, 0.5], rel=0.01)
    # Twice as much thread time for the same work.
    assert frame["stops"].tolist() == ["", "", "slower threads"]
    notes = [n.text for n in scaling.by_threads(runs).notes]
    assert "fastest with 2 threads" in notes[-1] or "2 are within" in notes[-1]
    assert any("2 -> 4 threads: -0 %; 100 % more computing" in n or
               "2 -> 4 threads: +0 %; 100 % more computing" in n for n in notes)  # fmt: skip
    roles = scaling.by_role(runs).frame.set_index("role")
    assert roles["speedup_2"].to_numpy() == pytest.approx(2, rel=0.01)
    assert roles["efficiency_4"].to_numpy() == pytest.approx(0.5, rel=0.01)


def test_the_median_of_several_traces_counts(tmp_path: Path) -> None:
    paths = [trace_of(tmp_path, 1, ns, f"{ns}.pf") for ns in (10_000, 20_000, 900_000)]
    frame = scaling.by_threads(runs_of(paths)).frame
    assert frame["traces"].tolist() == [3]
    assert frame["per_s"].iloc[0] == pytest.approx(runs_of(paths[1:2])[0].per_s)


def test_different_models_are_said(tmp_path: Path) -> None:
    first = sample_run().builder.write(tmp_path / "a.pf")
    target = {"argv": ["./llama-completion", "-m", "other.gguf"]}
    second = sample_run(target=target).builder.write(tmp_path / "b.pf")
    notes = scaling.by_threads(runs_of([first, second])).notes
    assert any(n.severity == "warning" and "different models" in n.text for n in notes)


@pytest.mark.parametrize("form", ["table", "json", "csv"])
def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    paths = [str(trace_of(tmp_path, n, 40_000 // n)) for n in (1, 2)]
    assert run(command, [*paths, "--format", form]) == 0
    out = capsys.readouterr().out
    if form == "json":
        names = [r["name"] for r in json.loads(out)["results"]]
        assert names == ["scaling", "scaling_by_role", "scaling_by_size"]
    elif form == "csv":
        assert out.startswith("threads [id],") and len(out.splitlines()) == 3
    else:
        assert max(map(len, out.splitlines())) <= 80
        assert "fastest with 2 threads" in out


def test_a_trace_without_operators_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = sample_run(plan={"ops": {"mode": "none"}}).builder.write(tmp_path / "n.pf")
    assert run(command, [str(path)]) == 2
    assert "holds no operators of phase decode" in capsys.readouterr().err


def test_matrix_products_by_size(tmp_path: Path) -> None:
    made = sample_run(decode_tokens=4, compute=lambda node, thread: 1000 + 100 * node)
    trace = Trace.open(made.builder.write(tmp_path / "m.pf"))
    frame = matmuls.matmuls(trace, trace.select(phase="decode")).frame
    products = [n for n in made.definitions[-1].nodes if n.op == "MUL_MAT"]
    assert frame["calls"].sum() == 4 * len(products)
    head = frame[frame["problem"] == "256x64x1"].iloc[0]
    assert (head["kind"], head["macs"], head["calls"]) == ("static", 256 * 64, 4)
    last = len(made.definitions[-1].nodes) - 1
    assert head["median_ns"] == pytest.approx(1000 + 100 * last, abs=1)
    dynamic = frame[frame["kind"] == "dynamic"]
    assert set(dynamic["role"]) == {"attention"}
    # K of 16 x cells, 4 heads, one token.
    assert sorted(dynamic["macs"]) == [16 * 4 * cells for cells in (32, 33, 34, 35)]
