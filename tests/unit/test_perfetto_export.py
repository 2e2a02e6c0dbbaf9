"""``profinfer export``: from a trace file to a timeline file, and every way in which it fails."""

from __future__ import annotations

import os
import re
import sqlite3
from collections import Counter
from pathlib import Path

import pytest
from builders import TraceBuilder, sample_run
from perfetto_check import check

from profinfer.analysis.work import executed
from profinfer.cli import group, run
from profinfer.model.trace import Trace


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    return sample_run().builder.write(tmp_path / "run.pf")


def export(*args: object) -> int:
    return run(group, ["export", *map(str, args)])


def test_a_recorded_trace_comes_out_whole(
    trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(trace) == 0
    out = tmp_path / "run.pftrace"
    streams = capsys.readouterr()
    report = check(out.read_bytes())
    assert report.problems == []
    tables = Trace.open(trace).tables
    found = Counter(s.category for s in report.slices if "op" not in s.args)
    assert sum("op" in s.args for s in report.slices) == len(tables["ops"]) > 0
    assert found["call"] == len(tables["calls"])
    assert found["sampling"] == len(tables["samples"])
    assert found["split"] == len(tables["splits"])
    ops = tables["ops"]
    assert found["wait"] == int((ops.release_ns > ops.end_ns).sum())
    times = Counter((s.begin, s.dur) for s in report.slices if "op" in s.args)
    assert times == Counter(zip(ops.begin_ns, ops.end_ns - ops.begin_ns, strict=True))
    assert streams.out == ""
    assert streams.err.startswith(f"Wrote {out} ({len(report.slices):,} slices, ")
    assert streams.err.endswith("): open it at ui.perfetto.dev\n")


def test_a_trace_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(TraceBuilder().write(tmp_path / "none.pf")) == 1
    assert "holds no call and no graph" in capsys.readouterr().err
    assert not (tmp_path / "none.pftrace").exists()


def test_same_trace_same_bytes(trace: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert export(trace, "-o", tmp_path / name) == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_part_is_exported(trace: Path, tmp_path: Path) -> None:
    table = Trace.open(trace)
    wanted = {
        ("--phase", "prefill"): table.select(phase="prefill"),
        ("--phase", "decode"): table.select(phase="decode"),
        ("--tokens", "1:2"): table.select(tokens=(1, 2)),
        ("--tokens", "1:"): table.select(tokens=(1, 2**31)),
        ("--tokens", "1"): table.select(tokens=(1, 2)),
    }
    sizes = set()
    for option, selection in wanted.items():
        assert not selection.empty
        assert export(trace, "-o", tmp_path / "part", "--force", *option) == 0
        report = check((tmp_path / "part").read_bytes())
        assert report.problems == []
        assert sum("op" in s.args for s in report.slices) == len(selection.rows(table.ops))
        found = Counter(s.category for s in report.slices)
        assert found["call"] == selection.n_calls
        assert found["sampling"] <= selection.n_calls
        (recording,) = [s for s in report.slices if s.name == "recording"]
        assert recording.args["covers"] == selection.description
        sizes.add(len(report.slices))
    assert len(sizes) > 1


def test_operators_carry_their_work(tmp_path: Path) -> None:
    """Of both threads' slices; fused pairs count both, and not what is handed on between them."""
    trace = sample_run(fuse_norms=True).builder.write(tmp_path / "fused.pf")
    assert export(trace, "-o", tmp_path / "out", "--phase", "decode") == 0
    slices = [s for s in check((tmp_path / "out").read_bytes()).slices if "op" in s.args]
    table = Trace.open(trace)
    work = executed(table, table.select(phase="decode"))
    assert sum(int(s.args["flops"]) for s in slices) == 2 * work.flops.sum()
    assert sum(int(s.args["bytes"]) for s in slices) == 2 * work.moved.sum()


def test_losses_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = sample_run().builder.write(tmp_path / "cut.pf", trailer=False)
    assert export(trace) == 0
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("warning: the recording is not whole: ") for line in lines)
    report = check((tmp_path / "cut.pftrace").read_bytes())
    assert [i.args for i in report.instants if i.name == "lost"]
    assert "profinfer.problems" in report.attributes


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (("{trace}", "-o", "{here}/taken"), 2, "{here}/taken exists"),
        (("{trace}", "-o", "{here}"), 2, "{here} is a directory"),
        (("{trace}", "-o", "{trace}", "--force"), 2, "{trace} is the recording itself"),
        (("{trace}", "-o", "{here}/no/out"), 1, "cannot write {here}/no/out: No such file"),
        (("{trace}", "-o", "{here}/taken/out"), 1, "cannot write {here}/taken/out: Not a dir"),
        (("{trace}", "-o", "/dev/full", "--force"), 1, "cannot write /dev/full: No space left"),
        (("{trace}", "--phase", "encode"), 2, "nothing to export"),
        (("{trace}", "--tokens", "900:"), 2, "nothing to export"),
        (("{here}/taken",), 1, "not a profinfer trace"),
        (("{here}/missing.pf",), 1, "no such file"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(
    trace: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    args: tuple[str, ...],
    code: int,
    says: str,
) -> None:
    (tmp_path / "taken").write_text("something else")
    fill = {"trace": trace, "here": tmp_path}
    before = sorted(os.listdir(tmp_path))
    assert export(*(a.format(**fill) for a in args)) == code
    err = capsys.readouterr().err
    assert says.format(**fill) in err.splitlines()[0]
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 2
    assert sorted(os.listdir(tmp_path)) == before
    assert (tmp_path / "taken").read_text() == "something else"


@pytest.mark.parametrize("tokens", ["a:b", "5:3", "4:4", "-1:2", "1:2:3"])
def test_bad_ranges(trace: Path, capsys: pytest.CaptureFixture[str], tokens: str) -> None:
    assert export(trace, f"--tokens={tokens}") == 2
    assert "--tokens" in capsys.readouterr().err


def test_force_replaces(trace: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("old")
    assert export(trace, "-o", out, "--force") == 0
    assert check(out.read_bytes()).problems == []
    assert not (tmp_path / "out.part").exists()


def test_the_queries_of_the_docs_find_something(tmp_path: Path) -> None:
    """Perfetto's tables rebuilt in SQLite from the file, as far as the queries need them."""
    played = sample_run()
    at = played.graphs[0].begin_ns + 500
    played.builder.sched(78, at, "out", other=(900, 900, "stress"))
    played.builder.sched(78, at + 100, "in", other=(78, 77, "worker-78"))
    trace = played.builder.write(tmp_path / "run.pf")
    assert export(trace, "-o", tmp_path / "out") == 0
    report = check((tmp_path / "out").read_bytes())
    db = sqlite3.connect(":memory:")
    db.executescript(
        """
        CREATE TABLE thread (utid INTEGER, tid INTEGER, name TEXT);
        CREATE TABLE thread_track (id INTEGER, utid INTEGER);
        CREATE TABLE slice (id INTEGER, ts INTEGER, dur INTEGER, name TEXT, category TEXT,
                            track_id INTEGER, arg_set_id INTEGER);
        CREATE TABLE counter_track (id INTEGER, name TEXT);
        CREATE TABLE counter (track_id INTEGER, ts INTEGER, value REAL);
        """
    )
    for uuid, track in report.tracks.items():
        if track.HasField("thread"):
            row = (uuid, track.thread.tid, track.thread.thread_name)
            db.execute("INSERT INTO thread VALUES (?, ?, ?)", row)
            db.execute("INSERT INTO thread_track VALUES (?, ?)", (uuid, uuid))
        if track.HasField("counter"):
            db.execute("INSERT INTO counter_track VALUES (?, ?)", (uuid, track.name))
    for i, s in enumerate(report.slices):
        row = (i, s.begin, s.dur, s.name, s.category, s.track, i)
        db.execute("INSERT INTO slice VALUES (?, ?, ?, ?, ?, ?, ?)", row)
    for uuid, values in report.counters.items():
        db.executemany("INSERT INTO counter VALUES (?, ?, ?)", [(uuid, *v) for v in values])

    def extract_arg(row: int, name: str) -> object:
        return report.slices[row].args.get(name.removeprefix("debug."))

    db.create_function("extract_arg", 2, extract_arg)
    docs = Path(__file__).parents[2] / "docs" / "perfetto.md"
    queries = re.findall(r"```sql\n(.*?)```", docs.read_text(), re.DOTALL)
    assert len(queries) == 6
    for query in queries:
        rows = db.execute(query).fetchall()
        assert rows, query
        assert all(None not in row for row in rows), query
