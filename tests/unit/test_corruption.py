"""Files that are no trace, or a damaged one: one clear line each, and nothing in silence."""

from __future__ import annotations

import gzip
import os
import random
import struct
import zlib
from pathlib import Path

import pytest
from builders import TraceBuilder, sample_run
from fuzz_reader import Content, content, mutate, reframe, sound_trace, verdict
from hypothesis import given, settings
from hypothesis import strategies as st

from profinfer.errors import TraceError
from profinfer.tracefile.frames import scan_chunks
from profinfer.tracefile.reader import TraceReader
from profinfer.tracefile.schema import ChunkKind, Kind


@pytest.fixture(scope="module")
def good() -> bytes:
    return sound_trace()


def refusal(path: Path) -> TraceError:
    with pytest.raises(TraceError) as caught:
        TraceReader(path)
    assert "\n" not in caught.value.message and path.name in caught.value.message
    assert caught.value.hint
    return caught.value


def refusal_of(folder: Path, data: bytes, name: str = "x.pf") -> str:
    path = folder / name
    path.write_bytes(data)
    return refusal(path).message


def resealed(data: bytes, at: int, new: bytes) -> bytes:
    """Header bytes changed, its checksum made right again."""
    out = bytearray(data)
    out[at : at + len(new)] = new
    out[32:36] = struct.pack("<I", zlib.crc32(out[:32]))
    return bytes(out)


def test_missing(tmp_path: Path) -> None:
    assert "no such file" in refusal(tmp_path / "none.pf").message


def test_directory(tmp_path: Path) -> None:
    assert "is a directory" in refusal(tmp_path).message


def test_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "not a regular file" in refusal(tmp_path / "pipe").message


def test_unreadable(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "x.pf"
    path.write_bytes(good)
    path.chmod(0)
    tmp_path.chmod(0o755)
    if os.geteuid() != 0:
        assert "no permission" in refusal(path).message
        return
    # Root may read anything: ask as somebody else.
    child = os.fork()
    if child == 0:
        status = 9
        try:
            os.setuid(65534)
            TraceReader(path)
        except TraceError as error:
            # The folder above may be closed to others too, which reads the same.
            status = 0 if "no permission" in error.message and error.hint else 8
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_empty(tmp_path: Path) -> None:
    assert "the file is empty" in refusal_of(tmp_path, b"")


@pytest.mark.parametrize(
    ("start", "what"),
    [
        (b"GGUF\x03\0\0\0" + bytes(80), "a GGUF model"),
        (gzip.compress(b"x" * 100, mtime=0), "a gzip file"),
        (b"\x7fELF" + bytes(80), "a program"),
        (b"PERFILE2" + bytes(80), "a perf.data file"),
        (b'{"a": 1}' * 20, "JSON text"),
        (b"\x89PF\n\x1a\n\0" + bytes(80), "first bytes were changed"),
        (b"hello world, this is a text file that is long enough to be a header", "not a profinfer"),
        (b"\0" * 100, "not a profinfer trace"),
    ],
)
def test_foreign(tmp_path: Path, start: bytes, what: str) -> None:
    assert what in refusal_of(tmp_path, start)


def test_a_timeline_is_told_apart(tmp_path: Path) -> None:
    said = refusal_of(tmp_path, b"\x0a\x10" + bytes(80), "x.pftrace")
    assert "a Perfetto timeline" in said


def test_every_cut_of_the_header_says_so(tmp_path: Path, good: bytes) -> None:
    first = int.from_bytes(good[12:16], "little")
    for size in [*range(1, 60), first // 2, first - 1]:
        assert "header is cut short" in refusal_of(tmp_path, good[:size]), size
    path = tmp_path / "x.pf"
    path.write_bytes(good[:first])
    with TraceReader(path) as reader:
        assert reader.meta.profinfer == "0.1.0" and len(reader.records()) == 0
        assert len(reader.problems) == 1 and "trailer is missing" in reader.problems[0]


def test_corrupted_header(tmp_path: Path, good: bytes) -> None:
    for at in range(8, 36):  # all but the magic and the padding
        bad = bytearray(good)
        bad[at] ^= 0x40
        assert "header is corrupted" in refusal_of(tmp_path, bytes(bad)), at
    bad = bytearray(good)
    bad[100] ^= 1
    assert "metadata is corrupted" in refusal_of(tmp_path, bytes(bad))


def test_newer_major_version(tmp_path: Path, good: bytes) -> None:
    said = refusal_of(tmp_path, resealed(good, 8, b"\x07\0\x03\0"))
    assert "recorded by profinfer 0.1.0 in format 7.3; this profinfer reads format 1" in said


def test_a_feature_that_must_be_known(tmp_path: Path, good: bytes) -> None:
    assert "this profinfer reads" in refusal_of(tmp_path, resealed(good, 23, b"\x80"))


def test_big_endian(tmp_path: Path) -> None:
    head = struct.pack(">8sHHIQII", b"\x89PF\r\n\x1a\n\0", 1, 0, 48, 0, 2, zlib.crc32(b"{}"))
    data = head + struct.pack(">II", zlib.crc32(head), 0) + b"{}" + bytes(6)
    assert "big-endian" in refusal_of(tmp_path, data)


def test_metadata_of_the_wrong_shape(tmp_path: Path) -> None:
    builder = TraceBuilder()
    builder.meta["clock"]["monotonic_ns"] = "noon"
    assert "clock.monotonic_ns should be an integer" in refusal_of(tmp_path, builder.bytes())


def chunk_starts(data: bytes) -> list[int]:
    chunks = scan_chunks(data, int.from_bytes(data[12:16], "little")).chunks
    return [chunk.offset - 32 for chunk in chunks]


def test_every_truncation_keeps_the_whole_chunks(tmp_path: Path, good: bytes) -> None:
    starts = chunk_starts(good)
    path = tmp_path / "x.pf"
    for size in {*starts, *(s + 1 for s in starts), *(s + 40 for s in starts), len(good) - 9}:
        path.write_bytes(good[:size])
        with TraceReader(path) as reader:
            whole = sum(s < size for s in starts) - (size not in starts)
            assert len(reader.chunks) == whole
            cut = 0 if size in starts else size - max(s for s in starts if s < size)
            assert reader.scan.cut_bytes == cut
            said = "\n".join(reader.problems)
            assert ("trailer is missing" in said) == (len(reader.chunks) < len(starts))
            if cut:
                assert f"the last {cut} bytes are not a whole chunk" in said


def test_a_damaged_chunk_costs_only_itself(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "x.pf"
    path.write_bytes(good)
    with TraceReader(path) as reader:
        total, chunks = len(reader.records()), reader.chunks
        held = reader.trailer.ring_bytes
    ring = [c for c in chunks if c.kind == ChunkKind.RING]
    # The header (magic, length, checksum) and the payload of a chunk in the middle.
    for at in (ring[2].offset - 32, ring[2].offset - 20, ring[2].offset - 8, ring[2].offset + 50):
        bad = bytearray(good)
        bad[at] ^= 0x10
        path.write_bytes(bad)
        with TraceReader(path) as reader:
            assert len(reader.records()) == total - 40
            assert len(reader.chunks) == len(chunks) - 1 and reader.complete
            said = "\n".join(reader.problems)
            assert f"{ring[2].length + 32} damaged bytes in 1 place(s)" in said
            assert "1 chunk(s) are missing" in said
            assert f"file holds {held - ring[2].length}" in said
            assert reader.missing_records() == {Kind.CALL_BEGIN: 20, Kind.CALL_END: 20}


def test_bytes_cut_out_of_the_middle(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "x.pf"
    starts = chunk_starts(good)
    path.write_bytes(good[: starts[1]] + good[starts[3] :])
    with TraceReader(path) as reader:
        assert len(reader.chunks) == len(starts) - 2
        assert any("2 chunk(s) are missing" in p for p in reader.problems)


def test_repeated_and_swapped_chunks(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "x.pf"
    path.write_bytes(good)
    original, _ = content(path)
    a, b, c = chunk_starts(good)[2:5]
    path.write_bytes(good[:b] + good[a:])
    said, problems = content(path)
    assert said == original and "appear more than once" in problems[0]
    path.write_bytes(good[:a] + good[b:c] + good[a:b] + good[c:])
    said, problems = content(path)
    assert said == original and "not in the order" in problems[0]


def test_two_recordings_joined(tmp_path: Path, good: bytes) -> None:
    path = tmp_path / "x.pf"
    path.write_bytes(good + sample_run(layers=5, decode_tokens=9, chunk_bytes=9999).builder.bytes())
    with TraceReader(path) as reader:
        assert any("more than once" in problem for problem in reader.problems)


@pytest.mark.parametrize(
    ("length", "why"),
    [
        (3, "shorter than a record"),
        (1 << 31 | 24, "still busy"),
        (5000, "longer than the chunk"),
        (0x3FFFFFFF, "longer than anything"),
    ],
)
def test_malformed_ring_entries(tmp_path: Path, length: int, why: str) -> None:
    b = TraceBuilder()
    b.call_end(1, 1)
    at = len(b._ring)
    b.call_end(1, 2)
    b._ring[at : at + 4] = struct.pack("<I", length)
    b.call_end(1, 3)
    b.flush()
    b.call_end(1, 4)
    with TraceReader(b.write(tmp_path / "x.pf")) as reader:
        assert reader.records().ts.tolist() == [1, 4], why
        assert "1 chunk(s) hold malformed ring entries; the 64 bytes" in "\n".join(reader.problems)


def test_records_whose_length_disagrees(tmp_path: Path) -> None:
    b = TraceBuilder(engine={"layout": {"buffer_size": None}})
    b.record(Kind.CALL_END, 1, 1, b"\0" * 16)  # too long for this version
    b.record(Kind.GRAPH_BEGIN, 1, 2, b"\0" * 8)
    b.record(Kind.OPS, 1, 3, struct.pack("<QII", 0, 0, 3) + b"\0" * 16)  # says 3, holds 2
    b.record(Kind.OPS, 1, 4, struct.pack("<QII", 0, 0, 0xFFFFFFFF))
    b.record(Kind.TENSOR, 1, 5, b"\0" * 100)
    b.record(Kind.BUFFER, 1, 6, b"\0" * (16 + 128))
    b.record(Kind.PTRS, 1, 7, struct.pack("<QQII", 0, 0, 0, 65) + b"\0" * 512)
    b.call_end(1, 8)
    with TraceReader(b.write(tmp_path / "x.pf")) as reader:
        assert reader.records().ts.tolist() == [8]
        said = "\n".join(reader.problems)
        for name, count in {
            "CALL_END": 1, "GRAPH_BEGIN": 1, "OPS": 2, "TENSOR": 1, "PTRS": 1
        }.items():  # fmt: skip
            assert f"{count} {name} record(s) were skipped: their length disagrees" in said
        assert "1 BUFFER record(s) were skipped: the metadata does not give their size" in said


@pytest.mark.parametrize("payload", [b"", b"{", b"[1]", b"\xff", b"null", b"[" * 100_000])
@pytest.mark.parametrize("kind", [ChunkKind.UPDATE, ChunkKind.LOSS, ChunkKind.TRAILER])
def test_json_chunks_that_are_none(tmp_path: Path, kind: ChunkKind, payload: bytes) -> None:
    b = TraceBuilder()
    b.call_end(1, 1)
    b.chunk(kind, payload)
    with TraceReader(b.write(tmp_path / "x.pf")) as reader:
        assert len(reader.records()) == 1
        assert any(f"{kind.name} chunk 1 was ignored" in problem for problem in reader.problems)


def test_an_update_that_breaks_the_metadata_is_ignored(tmp_path: Path) -> None:
    b = TraceBuilder()
    b.update(clock={"monotonic_ns": []})
    with TraceReader(b.write(tmp_path / "x.pf")) as reader:
        assert reader.meta.clock.monotonic_ns == 1_000_000_000
        assert any("UPDATE chunk 0 was ignored" in problem for problem in reader.problems)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, good: bytes) -> Content:
    path = tmp_path_factory.mktemp("sound") / "good.pf"
    path.write_bytes(good)
    said, problems = content(path)
    assert problems == []
    return said


@settings(max_examples=300, deadline=None)
@given(seed=st.integers(min_value=0, max_value=2**32))
def test_mutations(
    tmp_path_factory: pytest.TempPathFactory, good: bytes, original: Content, seed: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated.pf"
    rng = random.Random(seed)
    if seed % 4:
        verdict(path, mutate(good, rng)[1], original)
    else:
        verdict(path, reframe(good, rng), original, sealed=False)


@settings(max_examples=100, deadline=None)
@given(data=st.binary(max_size=400))
def test_any_bytes_after_a_good_header(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "random.pf"
    path.write_bytes(TraceBuilder().bytes(trailer=False) + data)
    with TraceReader(path) as reader:
        assert reader.problems and len(reader.records()) == 0
