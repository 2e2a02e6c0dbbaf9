"""Layer 3: the frame of a trace file: header and chunks, packed and found again.

Owns the bytes around the payloads and how a damaged file is resynchronised. Knows no
payload. Must not import anything above.
"""

from __future__ import annotations

import json
import mmap
import struct
import zlib
from dataclasses import dataclass, field

from profinfer.errors import TraceError
from profinfer.tracefile.schema import CHUNK_MAGIC, MAGIC, MAJOR, MINOR, ChunkKind

FILE_HEADER = struct.Struct("<8sHHIQIIII")  # schema.FILE_HEADER
CHUNK_HEADER = struct.Struct("<IHHQIIII")  # schema.CHUNK_HEADER
_FILE_CRC_SPAN = 32
_CHUNK_CRC_SPAN = 24
_SYNC = CHUNK_MAGIC.to_bytes(4, "little")
# The low half of the feature bits may be ignored, the high half may not.
_MUST_KNOW = 0xFFFFFFFF_00000000


def padded(length: int) -> int:
    """``length`` rounded up to 8."""
    return (length + 7) & ~7


def pack_file_header(meta: bytes, features: int = 0) -> bytes:
    """Header, metadata and padding: everything before the first chunk."""
    size = FILE_HEADER.size + padded(len(meta))
    head = FILE_HEADER.pack(MAGIC, MAJOR, MINOR, size, features, len(meta), zlib.crc32(meta), 0, 0)[
        :_FILE_CRC_SPAN
    ]
    tail = struct.pack("<II", zlib.crc32(head), 0)
    return (head + tail + meta).ljust(size, b"\0")


def pack_chunk_header(kind: int, length: int, seq: int, payload_crc: int, flags: int = 0) -> bytes:
    """The 32 bytes before a payload of ``length`` bytes."""
    head = CHUNK_HEADER.pack(CHUNK_MAGIC, kind, flags, length, seq, payload_crc, 0, 0)
    head = head[:_CHUNK_CRC_SPAN]
    return head + struct.pack("<II", zlib.crc32(head), 0)


@dataclass(frozen=True)
class FileHeader:
    """The parsed header. ``meta`` is the JSON text, checked against its crc."""

    major: int
    minor: int
    first_chunk: int
    meta: bytes


@dataclass(frozen=True)
class Chunk:
    """A whole chunk: ``offset`` is where its payload begins in the file."""

    kind: int
    seq: int
    offset: int
    length: int


@dataclass
class Scan:
    """All whole chunks of a file in recorded order, and what was wrong between them."""

    chunks: list[Chunk] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    lost_chunks: int = 0
    lost_bytes: int = 0
    cut_bytes: int = 0


# What a file that is no trace starts with, cheap to tell.
_FOREIGN = (
    (b"GGUF", "a GGUF model", "give it to the program that profinfer records"),
    (b"\x1f\x8b", "a gzip file", "unpack it first: gunzip FILE"),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "unpack it first: unzstd FILE"),
    (b"PK\x03\x04", "a zip file", "unpack it first"),
    (b"\x7fELF", "a program", "record it first: profinfer record -o trace.pf -- PROGRAM"),
    (b"PERFILE2", "a perf.data file", None),
    (b"{", "JSON text", None),
)
_MAKE_ONE = "make one: profinfer record -o trace.pf -- PROGRAM ..."


def _foreign(path: str, start: bytes) -> TraceError:
    if start.startswith(MAGIC[:3]):
        return TraceError(
            f"{path}: a profinfer trace whose first bytes were changed",
            "copy it again in binary mode",
        )
    for magic, what, hint in _FOREIGN:
        if start.startswith(magic):
            return TraceError(f"{path}: not a profinfer trace, but {what}", hint or _MAKE_ONE)
    # A Perfetto trace is a sequence of field 1, length-delimited; the first packet of an
    # exported one is small enough that its length is followed by another known field.
    if start[:1] == b"\x0a" and path.endswith((".pftrace", ".perfetto-trace")):
        return TraceError(
            f"{path}: not a profinfer trace, but a Perfetto timeline",
            "open it in ui.perfetto.dev, or give the .pf file it was exported from",
        )
    return TraceError(f"{path}: not a profinfer trace", _MAKE_ONE)


def parse_file_header(view: memoryview, path: str) -> FileHeader:
    """Check and parse the header.

    Raises:
        TraceError: one distinct line each for foreign, cut short, corrupted, newer and
            big-endian files.
    """
    start = bytes(view[: FILE_HEADER.size])
    if not start:
        raise TraceError(f"{path}: the file is empty", "the recording never started; record again")
    short = TraceError(
        f"{path}: the header is cut short after {len(view)} bytes", "copy it again, or record again"
    )
    if start[:8] != MAGIC:
        raise short if MAGIC.startswith(start[:8]) else _foreign(path, start)
    if len(start) < FILE_HEADER.size:
        raise short
    _, major, minor, size, features, meta_len, meta_crc, crc, _ = FILE_HEADER.unpack(start)
    if zlib.crc32(start[:_FILE_CRC_SPAN]) != crc:
        if struct.unpack_from(">I", start, _FILE_CRC_SPAN)[0] == zlib.crc32(start[:_FILE_CRC_SPAN]):
            raise TraceError(
                f"{path}: recorded on a big-endian machine, which profinfer cannot read",
                "record on a little-endian machine (x86-64, arm64)",
            )
        raise TraceError(
            f"{path}: the header is corrupted (checksum does not match)",
            "copy it again, or record again",
        )
    if FILE_HEADER.size + meta_len > len(view) or size > len(view):
        raise short
    meta = bytes(view[FILE_HEADER.size : FILE_HEADER.size + meta_len])
    if major != MAJOR or features & _MUST_KNOW:
        raise _other_version(path, major, minor, meta)
    if zlib.crc32(meta) != meta_crc or size < FILE_HEADER.size + meta_len or size % 8:
        raise TraceError(
            f"{path}: the header's metadata is corrupted (checksum does not match)",
            "copy it again, or record again",
        )
    return FileHeader(major, minor, size, meta)


def _other_version(path: str, major: int, minor: int, meta: bytes) -> TraceError:
    try:
        by = f" by profinfer {json.loads(meta)['profinfer']}"
    except (ValueError, KeyError, TypeError):
        by = ""
    return TraceError(
        f"{path}: recorded{by} in format {major}.{minor}; this profinfer reads format {MAJOR}",
        "use the profinfer that recorded it, or a newer one",
    )


def _header_at(view: memoryview, at: int) -> tuple[int, int, int, int] | None:
    """(kind, length, seq, payload crc) of the chunk header at ``at``, if one is there."""
    if at + CHUNK_HEADER.size > len(view) or view[at : at + 4] != _SYNC:
        return None
    _, kind, _, length, seq, payload_crc, crc, _ = CHUNK_HEADER.unpack_from(view, at)
    if zlib.crc32(view[at : at + _CHUNK_CRC_SPAN]) != crc:
        return None
    return kind, length, seq, payload_crc


def scan_chunks(data: mmap.mmap | bytes, first: int) -> Scan:
    """Find every whole chunk from offset ``first`` on.

    A chunk whose header or payload fails its checksum is skipped, and reading goes on at the next
    8-aligned offset that holds a valid header.
    """
    scan = Scan()
    seen: dict[int, Chunk] = {}
    stretches = repeated = 0
    with memoryview(data) as view:
        end = len(view)
        at = first
        while at < end:
            found = _chunk_at(view, at, end)
            if found is None:
                after = _resume(data, view, at, end)
                if after is None:
                    scan.cut_bytes = end - at
                    break
                scan.lost_bytes += after - at
                stretches += 1
                at = after
                continue
            if found.seq in seen:
                repeated += 1
            else:
                seen[found.seq] = found
            at = found.offset + padded(found.length)
    scan.chunks = [seen[seq] for seq in sorted(seen)]
    scan.lost_chunks = max(seen, default=-1) + 1 - len(seen)
    scan.problems = _problems(scan, stretches, repeated, list(seen) != sorted(seen))
    return scan


def _chunk_at(view: memoryview, at: int, end: int) -> Chunk | None:
    """The chunk at ``at`` if it is whole and its checksums hold."""
    head = _header_at(view, at)
    if head is None:
        return None
    kind, length, seq, crc = head
    start = at + CHUNK_HEADER.size
    if start + length > end or zlib.crc32(view[start : start + length]) != crc:
        return None
    return Chunk(kind, seq, start, length)


def _resume(data: mmap.mmap | bytes, view: memoryview, at: int, end: int) -> int | None:
    """Where reading can go on after a bad chunk at ``at``; None when nothing follows."""
    head = _header_at(view, at)
    if head is not None:
        # The header is sound, so trust its length first: the payload may hold look-alikes.
        stop = at + CHUNK_HEADER.size + padded(head[1])
        if stop == end or (stop < end and _header_at(view, stop)):
            return stop
    found = data.find(_SYNC, at + 1)
    while found != -1:
        if found % 8 == 0 and _header_at(view, found):
            return found
        found = data.find(_SYNC, found + 1)
    return None


def _problems(scan: Scan, stretches: int, repeated: int, disordered: bool) -> list[str]:
    out = []
    if stretches:
        out.append(
            f"{scan.lost_bytes} damaged bytes in {stretches} place(s) were skipped;"
            " what they held is missing from every view"
        )
    if scan.lost_chunks:
        out.append(f"{scan.lost_chunks} chunk(s) are missing before the last one that was read")
    if repeated:
        out.append(f"{repeated} chunk(s) appear more than once; the first of each was used")
    if disordered:
        out.append("the chunks are not in the order in which they were recorded; put back in order")
    if scan.cut_bytes:
        out.append(f"the last {scan.cut_bytes} bytes are not a whole chunk and were ignored")
    kinds = [chunk.kind for chunk in scan.chunks]
    if ChunkKind.TRAILER not in kinds:
        out.append("the trailer is missing: the recording did not finish, or the end was cut off")
    elif kinds[-1] != ChunkKind.TRAILER:
        out.append("there are chunks after the trailer: two recordings may have been joined")
    return out
