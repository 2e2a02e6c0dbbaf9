"""A trace of the last seconds: what is let go, what must stay, and what is read of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from builders import TraceBuilder, sample_run

from profinfer.analysis.live import LiveView, live
from profinfer.capture import rolling
from profinfer.capture.rolling import RollingTrace
from profinfer.model.trace import Trace
from profinfer.render.live import About, as_object, lines
from profinfer.tracefile.metadata import merge
from profinfer.tracefile.reader import TraceReader
from profinfer.tracefile.schema import CNT_COUNT, CNT_LOST, CNT_OP_RECORDS, ChunkKind, Kind

MS = 1_000_000
S = 1_000_000_000
NONE = [0] * CNT_COUNT


@pytest.fixture
def played(tmp_path: Path) -> Trace:
    """20 decode steps, one of them about every 44 us of 1 us operators."""
    return Trace.open(sample_run(decode_tokens=20).builder.write(tmp_path / "whole.pf"))


def in_blocks(path: Path, steps: int) -> Trace:
    """The same in blocks of 2,000 bytes, of which a window lets go one at a time."""
    run = sample_run(decode_tokens=steps, builder=TraceBuilder(chunk_bytes=2000))
    return Trace.open(run.builder.write(path))


def fed(trace: Trace, window_s: float, monkeypatch: pytest.MonkeyPatch) -> RollingTrace:
    """The blocks of a trace, each drained when its last record was written."""
    reader = trace.reader
    out = RollingTrace(reader.meta, window_s)
    data = Path(reader.path).read_bytes()
    index = reader.records()
    for chunk in reader.chunks:
        if chunk.kind != ChunkKind.RING:
            continue
        inside = (index.offset >= chunk.offset) & (index.offset < chunk.offset + chunk.length)
        now = int(index.ts[inside].max())
        monkeypatch.setattr(rolling, "_now", lambda now=now: now)
        out.write_ring(memoryview(data)[chunk.offset : chunk.offset + chunk.length])
    return out


def opened(rolled: RollingTrace, path: Path, counters: list[int] = NONE) -> Trace:
    path.write_bytes(rolled.snapshot(counters))
    return Trace.open(path)


def test_a_window_that_holds_everything_is_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = in_blocks(tmp_path / "whole.pf", 20)
    got = opened(fed(whole, 100.0, monkeypatch), tmp_path / "window.pf")
    for name in ("calls", "graphs", "nodes", "ops", "samples"):
        assert len(getattr(got, name)) == len(getattr(whole, name)), name
    chosen, mine = whole.select(phase="decode"), got.select(phase="decode")
    assert (got.sums(mine).wall == whole.sums(chosen).wall).all()


def test_old_records_go_and_definitions_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = in_blocks(tmp_path / "whole.pf", 20)
    last = int(whole.calls["end_ns"].max())
    rolled = fed(whole, 300e-6, monkeypatch)
    got = opened(rolled, tmp_path / "window.pf")
    kept = got.calls[~got.calls["cut"]]
    assert 2 <= len(kept) < 8 and kept["end_ns"].max() == last
    assert (kept["phase"] == "decode").all()
    # Every graph in the window has its nodes, with the names that were read long before.
    chosen = got.select(phase="decode")
    assert chosen.n_graphs == len(kept)
    ran = got.nodes[got.sums(chosen).calls > 0]
    assert {"result_output", "attn_norm-1"} <= set(ran["name"]) and not ran["unread"].any()
    assert set(got.threads["name"]) == {"llama", "worker-78"}
    # What was recorded of these steps is what the whole trace says of them.
    first = len(whole.calls) - len(kept)
    same = whole.select(phase="decode", tokens=(first - 2, 100))
    assert same.n_tokens == chosen.n_tokens == len(kept)
    assert got.sums(chosen).wall.sum() == whole.sums(same).wall.sum()
    assert got.excerpt and got.reader.complete and got.problems == []
    # Where the window begins a call is under way: that is no loss.
    edges = got.excerpt_edges
    assert sum(edges.middle.values()) == edges.orphans == 0
    assert got.losses["missing_batches"] == got.losses["undefined_graphs"] == 0


def test_a_definition_is_kept_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often tensors are sent again, the window does not grow."""
    sizes = []
    for steps in (20, 60):
        whole = in_blocks(tmp_path / f"{steps}.pf", steps)
        rolled = fed(whole, 100e-6, monkeypatch)
        sizes.append(len(rolled.snapshot(NONE)))
        read = TraceReader(whole.path).count_by_kind()
        got = opened(rolled, tmp_path / "w.pf").reader.count_by_kind()
        assert got[Kind.TENSOR] < read[Kind.TENSOR]
    assert sizes[1] < 1.2 * sizes[0]


def test_losses_are_passed_on_and_what_was_sent_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, played: Trace
) -> None:
    counters = [0] * CNT_COUNT
    counters[CNT_LOST + Kind.OPS] = 3
    counters[CNT_OP_RECORDS] = counters[Kind.OPS] = 10_000
    got = opened(fed(played, 100.0, monkeypatch), tmp_path / "w.pf", counters)
    assert got.reader.missing_records() == {}
    assert got.reader.counters[CNT_LOST + Kind.OPS] == 3


def test_notes_of_levels_say_how_the_window_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = sample_run(decode_tokens=20)
    meta = run.builder.meta
    rolled = fed(Trace.open(run.builder.write(tmp_path / "t.pf")), 100.0, monkeypatch)
    for ts, level in ((5, "graph"), (6, "op"), (7, "graph")):
        rolled.write_json(ChunkKind.NOTE, {"what": "level", "level": level, "ts": ts, "why": ""})
    rolled.write_json(ChunkKind.NOTE, {"what": "memory", "ts": 8, "rss": 5, "file": 1,
                                       "read": 0, "major": 0, "minor": 0})  # fmt: skip
    rolled.write_json(ChunkKind.UPDATE, {"limits": {"cpus": [0]}})
    monkeypatch.setattr(rolling, "_now", lambda: 60 * 60 * S)
    rolled.window_ns = S
    rolled._latest_ns = 60 * 60 * S
    got = opened(rolled, tmp_path / "w.pf")
    # All has been let go but the last of each; operators are not recorded now.
    assert [n["ts"] for n in got.reader.notes] == [7, 8]
    assert got.residence["rss"].tolist() == [5]
    assert got.meta.limits == merge(meta["limits"], {"cpus": [0]})
    assert len(got.calls) == 0


def test_a_call_longer_than_the_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    b = TraceBuilder(chunk_bytes=1)
    b.call_begin(77, S, n_tokens=1, pos_first=9)
    for n in range(5):
        b.warmup(77, S + n * S, 0)
    rolled = fed(Trace.open(b.write(tmp_path / "t.pf")), 1.5, monkeypatch)
    assert list(rolled.open_calls.values()) == [S]
    got = opened(rolled, tmp_path / "w.pf")
    assert live(got, 4 * S, 5 * S, open_ns=S).state == "inside of a long call"
    assert live(got, 4 * S, 5 * S).state == "idle"


# --- what is shown ----------------------------------------------------------------------------


def about(**changes: object) -> About:
    known = About(
        title="profinfer top  llama-server (pid 1)  model", elapsed_s=75.0, calls=21, tokens=30,
        mean_tps=100.0, cost=0.012, limit=0.01, lost=0, rss=1 << 27, file=1 << 26, own_cpu=0.04,
        end="q or Ctrl-C: end; the program goes on",
    )  # fmt: skip
    return replace(known, **changes)  # type: ignore[arg-type]


def view_of(trace: Trace, by: str = "role") -> LiveView:
    calls = trace.calls
    steps = calls[calls["phase"] == "decode"]
    since, now = int(steps["begin_ns"].iloc[10]), int(steps["end_ns"].iloc[-1])
    return live(trace, since, now, by)


def test_what_a_look_tells(played: Trace) -> None:
    view = view_of(played)
    assert view.state == "decode" and view.phase == "decode" and view.sequences == 1
    assert (view.seen, view.of_tokens) == (20, 20)
    # Ten of the steps lie in the interval, back to back but for what is between them.
    assert view.tps == pytest.approx(10e9 / (view.now_ns - view.since_ns))
    assert view.prefill_tps == 0
    assert sum(r.share for r in view.rows) == pytest.approx(1)
    assert view.token_ns == pytest.approx(sum(r.per_token_ns for r in view.rows))
    assert [t.tid for t in view.threads] == [77, 78]
    assert all(t.compute == pytest.approx(1, abs=0.01) for t in view.threads)
    assert {r.name for r in view_of(played, "op").rows} >= {"MUL_MAT", "RMS_NORM"}
    # A call that ran for a part of the interval counts by that part.
    first = played.calls[played.calls["phase"] == "decode"].iloc[0]
    half = int(first["begin_ns"] + first["end_ns"]) // 2
    assert live(played, half, int(first["end_ns"])).tps > 0
    told = as_object(view, about())
    assert told["schema"] == "profinfer.top/1" and told["tps"] == round(view.tps, 6)
    assert told["threads"][0]["on_cpu"] is None


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("height", [8, 16, 24, 50])
def test_lines_fit(played: Trace, width: int, height: int) -> None:
    shown = lines(view_of(played), about(), width, height)
    text = [line.plain for line in shown]
    assert len(text) <= height
    assert max(map(len, text)) <= width
    assert text[0].endswith("1:15") and text[1].startswith("decode   ")
    if height >= 16:
        assert any("operators seen in 20 of 20 tokens" in t for t in text) or width < 80
        assert "q or Ctrl-C" in text[-1]


def test_what_is_missing_is_said(played: Trace) -> None:
    view = view_of(played)
    text = "\n".join(t.plain for t in lines(view, about(lost=7, cost=None), 80, 24))
    assert "7 LOST" in text and "cost not known yet" in text
    idle = live(played, view.now_ns, view.now_ns + 5 * S)
    assert idle.state == "idle" and idle.idle_ns >= 5 * S and idle.tps == 0
    text = "\n".join(t.plain for t in lines(idle, about(), 80, 24))
    assert "idle for 5.00 s" in text
