from __future__ import annotations

import functools
import json
import mmap
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import TraceBuilder, metadata, sample_run

from profinfer.errors import TraceError
from profinfer.tracefile.reader import TraceReader
from profinfer.tracefile.schema import ChunkKind, Kind
from profinfer.tracefile.writer import TraceWriter


@pytest.fixture
def ring() -> bytes:
    """Two entries."""
    builder = TraceBuilder()
    builder.call_begin(7, 100, n_tokens=3)
    builder.call_end(7, 200)
    return bytes(builder._ring)


def on_a_full_disk(test: Callable[..., None]) -> Callable[..., None]:
    """No file may grow beyond 8192 bytes: a full disk that needs no root.

    Around the test's own code only: pytest's output may go to a file that is longer.
    """

    @functools.wraps(test)
    def limited(*args: Any, **kwargs: Any) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
        try:
            test(*args, **kwargs)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


def test_what_is_written_is_read(tmp_path: Path, ring: bytes) -> None:
    path = tmp_path / "a.pf"
    with TraceWriter(path, metadata()) as writer:
        writer.write_ring(ring)
        writer.write_json(ChunkKind.NOTE, {"ts": 5, "text": "hello"})
        writer.write_json(ChunkKind.LOSS, {"ts": 6, "counters": [0] * 40})
        writer.write_ring([ring[:40], memoryview(ring)[40:], b""])
        writer.write_ring(b"")
        writer.close({"reason": "target exited", "exit_code": 0})
        assert writer.bytes_written == path.stat().st_size
        assert writer.chunks == 5 and writer.ring_bytes == 2 * len(ring)
    with TraceReader(path) as reader:
        assert reader.problems == []
        assert reader.meta == metadata()
        assert reader.records().kind.tolist() == [1, 2, 1, 2]
        assert reader.notes == [{"ts": 5, "text": "hello"}]
        assert reader.trailer is not None and reader.trailer.ring_bytes == 2 * len(ring)


def test_definitions_are_packed(tmp_path: Path, ring: bytes) -> None:
    path = tmp_path / "a.pf"
    with TraceWriter(path, metadata()) as writer:
        writer.write_ring(ring, len(ring) // 5)
        for _ in range(2):
            writer.write_ring([ring, ring * 99], 99 * len(ring))
        writer.write_ring(ring * 10, 10 * len(ring))
        writer.write_ring(ring)
        writer.close({})
        assert path.stat().st_size == writer.bytes_written < 40 * len(ring) + 4096
        assert writer.ring_bytes == 212 * len(ring)
    with TraceReader(path) as reader:
        assert reader.problems == []
        assert reader.chunk_counts() == {"RING": 2, "PACKED": 3, "TRAILER": 1}
        assert reader.records().kind.tolist() == [1, 2] * 212
        ends = reader.fixed(Kind.CALL_END).rows
        assert (ends == ends[0]).all() and len(ends) == 212


def test_what_takes_long_to_pack_is_not(tmp_path: Path, ring: bytes) -> None:
    many = ring * ((5 << 20) // len(ring))
    with TraceWriter(tmp_path / "a.pf", metadata()) as writer:
        writer.write_ring(many, len(many))
        assert writer.bytes_written > len(many)


def test_the_builder_writes_the_same_bytes(tmp_path: Path) -> None:
    builder = sample_run().builder
    path = tmp_path / "a.pf"
    meta = builder.meta
    data = builder.bytes()
    with TraceReader(builder.write(tmp_path / "b.pf")) as reader:
        with TraceWriter(path, reader.meta) as writer:
            for chunk in reader.chunks:
                payload = data[chunk.offset : chunk.offset + chunk.length]
                if chunk.kind == ChunkKind.RING:
                    writer.write_ring(payload)
                else:
                    writer.write_json(ChunkKind(chunk.kind), json.loads(payload))
    with TraceReader(path) as reader:
        assert reader.problems == [] and reader.meta.to_json() == meta
        with TraceReader(tmp_path / "b.pf") as other:
            assert reader.records().ts.tolist() == other.records().ts.tolist()


def test_never_overwrites_unasked(tmp_path: Path) -> None:
    path = tmp_path / "a.pf"
    path.write_text("precious")
    with pytest.raises(TraceError, match=r"a\.pf exists already") as caught:
        TraceWriter(path, metadata())
    assert caught.value.hint and "--force" in caught.value.hint
    assert path.read_text() == "precious"
    TraceWriter(path, metadata(), force=True).close()
    assert path.read_bytes().startswith(b"\x89PF")


def test_force_leaves_what_others_have_open(tmp_path: Path) -> None:
    path = sample_run().builder.write(tmp_path / "a.pf")
    with TraceReader(path) as reader:
        TraceWriter(path, metadata(), force=True).close()
        assert len(reader.records()) > 100


def test_force_does_not_follow_a_symlink(tmp_path: Path) -> None:
    victim, link = tmp_path / "victim", tmp_path / "a.pf"
    victim.write_text("precious")
    link.symlink_to(victim)
    TraceWriter(link, metadata(), force=True).close()
    assert victim.read_text() == "precious" and not link.is_symlink()


@pytest.mark.parametrize("force", [False, True])
def test_a_directory(tmp_path: Path, force: bool) -> None:
    with pytest.raises(TraceError, match="directory"):
        TraceWriter(tmp_path, metadata(), force=force)
    assert tmp_path.is_dir()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"cannot create .*: no such file or directory"):
        TraceWriter(tmp_path / "no" / "a.pf", metadata())


@on_a_full_disk
def test_a_full_disk_leaves_whole_chunks(tmp_path: Path, ring: bytes) -> None:
    path = tmp_path / "a.pf"
    small = metadata(engine=None, plan=None)
    writer = TraceWriter(path, small)
    written = 0
    with pytest.raises(TraceError) as caught:
        while True:
            writer.write_ring(ring * 10)
            written += 20
    size = writer.bytes_written
    assert f"after {size} bytes" in caught.value.message and str(path) in caught.value.message
    assert caught.value.hint and "another disk" in caught.value.hint
    # The half-written chunk is gone, later writes fail alike, and closing does no harm.
    assert path.stat().st_size == size < 8192
    with pytest.raises(TraceError, match=f"after {size} bytes"):
        writer.write_json(ChunkKind.NOTE, {})
    with pytest.raises(TraceError, match=f"after {size} bytes"):
        writer.close({"reason": "disk full"})
    writer.close()
    with TraceReader(path) as reader:
        assert len(reader.records()) == written > 0
        assert not reader.complete and reader.scan.cut_bytes == 0


def test_no_space_device(ring: bytes) -> None:
    with pytest.raises(TraceError, match="no space left on device"):
        TraceWriter("/dev/full", metadata(), force=True)
    assert os.path.exists("/dev/full")


@on_a_full_disk
def test_a_file_whose_header_does_not_fit_is_taken_back(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot write"):
        TraceWriter(tmp_path / "a.pf", metadata(options={"x": "y" * 10_000}))
    assert list(tmp_path.iterdir()) == []


@on_a_full_disk
def test_an_error_does_not_keep_the_ring_mapped(tmp_path: Path) -> None:
    mapped = mmap.mmap(-1, 1 << 16)
    view = memoryview(mapped)
    writer = TraceWriter(tmp_path / "a.pf", metadata(engine=None, plan=None))
    with pytest.raises(TraceError) as caught:
        writer.write_ring(view)
    view.release()
    mapped.close()  # BufferError if the traceback in `caught` still held it
    assert caught.value.__traceback__ is not None


def test_a_killed_recorder_leaves_a_readable_file(tmp_path: Path, ring: bytes) -> None:
    path = tmp_path / "a.pf"
    child = os.fork()
    if child == 0:
        writer = TraceWriter(path, metadata())
        writer.write_ring(ring)
        os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    with TraceReader(path) as reader:
        assert len(reader.records()) == 2
        assert any("did not finish" in problem for problem in reader.problems)


def test_closed_twice_and_written_after(tmp_path: Path, ring: bytes) -> None:
    writer = TraceWriter(tmp_path / "a.pf", metadata())
    writer.close({})
    writer.close({})
    with pytest.raises(TraceError, match="closed"):
        writer.write_ring(ring)
    with TraceReader(tmp_path / "a.pf") as reader:
        assert reader.chunk_counts() == {"TRAILER": 1}


def test_many_buffers_in_one_chunk(tmp_path: Path, ring: bytes) -> None:
    with TraceWriter(tmp_path / "a.pf", metadata()) as writer:
        writer.write_ring([ring] * 3000)  # more than writev takes at once
        writer.close({})
    with TraceReader(tmp_path / "a.pf") as reader:
        assert reader.count_by_kind() == {Kind.CALL_BEGIN: 3000, Kind.CALL_END: 3000}
        assert reader.problems == []


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a file away needs root")
def test_the_file_is_given_to_the_caller(tmp_path: Path) -> None:
    path = tmp_path / "a.pf"
    TraceWriter(path, metadata(), uid=12345, gid=54321).close()
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 54321)
