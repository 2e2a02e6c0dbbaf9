"""What a request's first token waited for, and the records of a server's queue."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from builders import TraceBuilder

from profinfer.analysis import latency
from profinfer.analysis.firsttoken import first_tokens, parts
from profinfer.analysis.generations import generations
from profinfer.model.trace import Trace
from profinfer.tracefile.schema import REQUEST_LAUNCH, Kind

S = 1_000_000_000
MS = 1_000_000


class Server:
    """Calls of one thread, with the sequences of their batches."""

    def __init__(self) -> None:
        self.b = TraceBuilder(plan={"level": "token", "ops": {"mode": "none"}})

    def posted(self, task: int, at: int) -> None:
        self.request(task, at, (1 << 64) - 1, 0)

    def launched(self, task: int, at: int, slot: int) -> None:
        self.request(task, at, slot, REQUEST_LAUNCH)

    def request(self, task: int, at: int, slot: int, flags: int) -> None:
        self.b.record(Kind.REQUEST, 90, at, struct.pack("<QIi", slot, 0, task), flags)

    def call(self, begin: int, end: int, runs: list[tuple[int, int, int]]) -> None:
        """Runs: (seq, position, tokens)."""
        tokens = sum(n for _, _, n in runs)
        alone = runs[0][0] if len(runs) == 1 else -1
        self.b.call_begin(77, begin, n_tokens=tokens, pos_first=runs[0][1], seq=alone)
        if len(runs) > 1:
            self.b.seqs(77, begin, runs)
        self.b.call_end(77, end)
        self.b.sample_begin(77, end + 1000)
        self.b.sample_end(77, end + 2000)

    def trace(self, folder: Path) -> Trace:
        return Trace.open(self.b.write(folder / "t.pf"))


def played(folder: Path) -> Trace:
    """A prompt alone; one that shares a batch with a token; one that waits for the first's slot."""
    server = Server()
    server.posted(1, S)
    server.launched(1, S + MS, 0)
    server.call(S + 2 * MS, S + 12 * MS, [(0, 0, 10)])
    server.posted(2, S + 5 * MS)
    server.launched(2, S + 13 * MS, 1)
    server.posted(3, S + 6 * MS)
    # 3 prompt tokens and one that is decoded: three quarters of 8 ms are its own.
    server.call(S + 14 * MS, S + 22 * MS, [(1, 0, 3), (0, 10, 1)])
    server.call(S + 23 * MS, S + 25 * MS, [(0, 11, 1), (1, 3, 1)])
    server.launched(3, S + 26 * MS, 0)
    # The prompt in two pieces, and a call of the other slot between them.
    server.call(S + 27 * MS, S + 31 * MS, [(0, 0, 8)])
    server.call(S + 32 * MS, S + 34 * MS, [(1, 4, 1)])
    server.call(S + 35 * MS, S + 39 * MS, [(0, 8, 8)])
    server.call(S + 40 * MS, S + 42 * MS, [(0, 16, 1), (1, 5, 1)])
    return server.trace(folder)


def test_requests(tmp_path: Path) -> None:
    table = played(tmp_path).requests
    assert table["task"].tolist() == [1, 2, 3]
    assert table["seq"].tolist() == [0, 1, 0]
    assert (table["launched_ns"] - table["posted_ns"]).tolist() == [MS, 8 * MS, 20 * MS]


def test_parts_of_the_time_to_first_token(tmp_path: Path) -> None:
    trace = played(tmp_path)
    table = latency.generations(trace).sort_values("begin_ns")
    got = parts(trace, table)
    assert got["queue_ns"].tolist() == [MS, 8 * MS, 20 * MS]
    assert got["start_ns"].tolist() == [MS, MS, MS]
    assert got["own_ns"].tolist() == [10 * MS, 6 * MS, 8 * MS]
    assert got["others_ns"].tolist() == [0, 2 * MS, 2 * MS]
    sums = got[["own_ns", "others_ns", "rest_ns"]].sum(axis=1)
    assert sums.tolist() == table["ttft_ns"].tolist()


def test_the_views(tmp_path: Path) -> None:
    trace = played(tmp_path)
    told = first_tokens(trace)
    assert [c.name for c in told.columns][2:4] == ["queue_ns", "start_ns"]
    assert told.frame["since_queued_ns"].tolist() == [
        12 * MS + 2000, 17 * MS + 2000, 33 * MS + 2000,
    ]  # fmt: skip
    wide = generations(trace).frame
    assert wide["queue_ns"].tolist() == [MS, 8 * MS, 20 * MS]
    assert len(first_tokens(trace, 1).frame) == 1


def test_a_server_without_names(tmp_path: Path) -> None:
    """Its requests' arrival is not known, and that is said; what they shared is known."""
    server = Server()
    server.call(S, S + 10 * MS, [(0, 0, 10)])
    server.call(S + 11 * MS, S + 19 * MS, [(1, 0, 3), (0, 10, 1)])
    told = first_tokens(server.trace(tmp_path))
    assert "queue_ns" not in {c.name for c in told.columns}
    assert told.frame["others_ns"].tolist() == [0, 2 * MS]
    assert any("when requests came is not known" in note.text for note in told.notes)


def test_tasks_that_are_no_requests(tmp_path: Path) -> None:
    """Metrics are queued and given to no slot; nonsense is not taken for a slot."""
    server = Server()
    server.posted(7, S)
    server.launched(8, S + MS, 1 << 40)
    server.call(S + 2 * MS, S + 3 * MS, [(0, 0, 10)])
    trace = server.trace(tmp_path)
    assert trace.requests["launched_ns"].tolist() == [-1, S + MS]
    assert trace.requests["seq"].tolist() == [-1, -1]
    table = latency.generations(trace)
    assert parts(trace, table)["queue_ns"].isna().all()


def test_a_launch_counts_for_one_prompt(tmp_path: Path) -> None:
    """A slot whose next launch was lost: the one before is not taken for it."""
    server = Server()
    server.posted(1, S)
    server.launched(1, S + MS, 0)
    server.call(S + 2 * MS, S + 3 * MS, [(0, 0, 10)])
    server.call(S + 4 * MS, S + 5 * MS, [(0, 10, 1)])
    server.call(S + 6 * MS, S + 7 * MS, [(0, 0, 10)])
    trace = server.trace(tmp_path)
    table = latency.generations(trace).sort_values("begin_ns")
    got = parts(trace, table)["queue_ns"]
    assert got.iloc[0] == MS and got.isna().tolist() == [False, True]


@pytest.mark.parametrize("width", [80])
def test_it_fits_a_terminal(tmp_path: Path, width: int) -> None:
    from rich.console import Console

    from profinfer.render.console import render

    console = Console(width=width, highlight=False)
    with console.capture() as said:
        console.print(render(first_tokens(played(tmp_path)), console))
    assert max(map(len, said.get().splitlines())) <= width
