"""``profinfer scaling --html`` and ``--plots``: bytes, counters, and what is drawn of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import TraceBuilder, sample_run

from profinfer.analysis import scaling, scalingsizes
from profinfer.analysis.work import executed
from profinfer.cli import run
from profinfer.cli.scaling import command
from profinfer.model.trace import Trace
from profinfer.render.html import scalingfigures as figures

STALLED = {1: 0.5, 2: 0.7, 4: 0.9}


def trace_of(folder: Path, threads: int, *, counters: bool = False) -> Path:
    tids = tuple(range(77, 77 + threads))
    builder = TraceBuilder()
    if counters:
        names = ("cycles", "stalled-cycles-backend", "mem_access_wr")
        asked = [{"name": n, "side": "user", "hardware": True} for n in names]
        asked[2] |= {"bytes": 16, "direction": "write"}
        builder = TraceBuilder(plan={"counters": asked})

        def read(_tid: int, ts: int) -> tuple[list[int], list[int], list[int]]:
            passed = ts - 1_000_000_000
            values = [2 * passed, int(2 * passed * STALLED[threads]), passed // 100]
            return values, [passed] * 3, [passed] * 3

        builder.counting = read
    made = sample_run(builder=builder, decode_tokens=6, tids=tids, compute=40_000 // threads)
    return made.builder.write(folder / f"t{threads}.pf")


def runs_of(paths: list[Path]) -> list[scaling.Run]:
    runs = []
    for path in paths:
        trace = Trace.open(path)
        measured = scaling.run(trace, trace.select(phase="decode"))
        assert measured is not None
        runs.append(measured)
    return runs


def test_bytes_are_what_the_operators_need(tmp_path: Path) -> None:
    runs = runs_of([trace_of(tmp_path, n) for n in (1, 2)])
    table = scalingsizes.by_size(runs)
    whole = (table.frame["moved"] * table.frame["calls"])[table.frame["threads"] == 2].sum()
    assert whole == pytest.approx(executed(runs[1].trace, runs[1].selection).moved.sum())
    half = table.frame.set_index([*("role", "op", "problem", "types"), "threads"])["median_ns"]
    one, two = half.xs(1, level="threads"), half.xs(2, level="threads")
    assert (one / two).to_numpy() == pytest.approx(2, rel=0.02)
    drawn = figures.sizes(table)
    assert drawn is not None and drawn.x.log and drawn.y.log
    assert [s.name for s in drawn.series] == ["1 thread", "2 threads"]
    assert "the least" in drawn.about
    assert scalingsizes.by_counters(runs) is None


def test_counted_bytes_and_stalls_are_used_where_all_have_them(tmp_path: Path) -> None:
    paths = [trace_of(tmp_path, n, counters=True) for n in (1, 2, 4)]
    runs = runs_of(paths)
    sizes = scalingsizes.by_size(runs)
    assert "counted by counters" in sizes.notes[0].text
    # A counter that grows with time: bytes are 16 x 1/100 of the time of all threads.
    frame = sizes.frame[sizes.frame["threads"] == 1]
    assert (frame["moved"] / frame["median_ns"]).median() == pytest.approx(0.16, rel=0.1)
    table = scalingsizes.by_counters(runs)
    assert table is not None
    every = scalingsizes.brief(table).frame.set_index("threads")
    assert every["stalled"].to_dict() == pytest.approx(STALLED, rel=0.01)
    # Cycles are of a token: two a nanosecond of each thread.
    assert every.loc[4, "cycles"] > 3 * every.loc[4, "wall_ns"]
    drawn = figures.counted(table)
    assert drawn is not None and drawn.x.unit == "ratio"
    assert [s.name for s in drawn.series] == ["1 thread", "2 threads", "4 threads"]
    for series, stalled in zip(drawn.series, STALLED.values(), strict=True):
        assert list(series.x) == pytest.approx([stalled] * len(series.x), abs=0.02)
    assert scalingsizes.by_counters([*runs, *runs_of([trace_of(tmp_path, 1)])]) is None


def test_the_page_and_the_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(trace_of(tmp_path, n, counters=True)) for n in (1, 2)]
    page, folder = tmp_path / "s.html", tmp_path / "plots"
    assert run(command, [*paths, "--html", str(page), "--plots", str(folder)]) == 0
    names = {f"scaling-{n}" for n in ("speed", "roles", "sizes", "counters")}
    assert {p.stem for p in folder.iterdir()} == names
    assert all(f'id="{name}"' in page.read_text() for name in names)
    assert run(command, [*paths, "--plots", str(folder)]) == 2
    assert run(command, [*paths, "--html", paths[1], "--force"]) == 2
    assert "the recording itself" in capsys.readouterr().err
    assert run(command, [*paths, "--html", str(page), "--format", "json"]) == 2
