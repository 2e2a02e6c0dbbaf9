"""Layer 3: reads a trace file: validates, tolerates damage, and says what is missing.

Owns opening, checking and the JSON chunks; the records are found by ``ringindex``. The file is
mapped, not read. Must not import anything above.
"""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from profinfer.errors import TraceError
from profinfer.tracefile.documents import parse
from profinfer.tracefile.frames import Chunk, Scan, parse_file_header, scan_chunks
from profinfer.tracefile.metadata import JsonObject, TraceMetadata, Trailer, merge
from profinfer.tracefile.opbatches import OpRecords, expand
from profinfer.tracefile.ringindex import (
    CountRecords,
    ExpertRecords,
    Records,
    RingIndex,
    build_index,
    gather,
    gather_counts,
    gather_experts,
)
from profinfer.tracefile.rings import Rings, open_rings
from profinfer.tracefile.schema import (
    CNT_SENT,
    FIXED,
    MAJOR,
    MINOR,
    OPS,
    ChunkKind,
    Kind,
    copy_dtype,
    tensor_dtype,
)

_MAX_RAW = 1 << 16
_JSON_KINDS = (ChunkKind.UPDATE, ChunkKind.LOSS, ChunkKind.NOTE, ChunkKind.TRAILER)


class TraceReader:
    """An open trace file.

    Attributes:
        path: the file.
        version: (major, minor) of the format.
        size_bytes: size of the file.
        meta: metadata of the header, with the UPDATE chunks merged in.
        trailer: how the recording ended, None if it did not finish.
        documents: every JSON chunk with its payload, in recorded order.
        chunks: every whole chunk, unknown kinds included.
        scan: what was found between the chunks.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open and check.

        Raises:
            TraceError: the file cannot be read as a trace at all. A damaged or unfinished file that
                still holds something opens; ``problems`` says what is missing.
        """
        self.path = Path(path)
        self._map: mmap.mmap | bytes = _open(self.path)
        self.size_bytes = len(self._map)
        try:
            with memoryview(self._map) as view:
                header = parse_file_header(view, str(path))
            self.version = (header.major, header.minor)
            self.scan: Scan = scan_chunks(self._map, header.first_chunk)
            self.chunks: list[Chunk] = self.scan.chunks
            self._problems = list(self.scan.problems)
            self._read_json(header.meta)
        except BaseException:
            self.close()
            raise

    # -- what the file says ------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether the recording finished: the trailer is there."""
        return self.trailer is not None

    @property
    def losses(self) -> list[JsonObject]:
        """The payloads of the LOSS chunks, oldest first."""
        return self._payloads(ChunkKind.LOSS)

    @property
    def notes(self) -> list[JsonObject]:
        """The payloads of the NOTE chunks, oldest first."""
        return self._payloads(ChunkKind.NOTE)

    @property
    def counters(self) -> tuple[int, ...]:
        """Counters of the BPF program, from the trailer or else the last LOSS chunk."""
        if self.trailer is not None and self.trailer.counters:
            return self.trailer.counters
        for loss in reversed(self.losses):
            with contextlib.suppress(TypeError, ValueError, KeyError):
                return tuple(int(value) for value in loss["counters"])
        return ()

    @property
    def problems(self) -> list[str]:
        """Everything that is missing or odd, as plain sentences; empty for a sound file."""
        return [*self._problems, *self._rings.problems, *self._indexed[1]]

    def missing_records(self) -> dict[Kind, int]:
        """Records that the BPF program sent and the file does not hold, by kind.

        Empty without counters. In a file that did not finish they are those after the last count.
        """
        sent = self.counters
        have = self.count_by_kind()
        missing = {
            kind: sent[CNT_SENT + kind] - have.get(kind, 0)
            for kind in Kind
            if CNT_SENT + kind < len(sent)
        }
        return {kind: count for kind, count in missing.items() if count > 0}

    def chunk_counts(self) -> dict[str, int]:
        """Chunks by kind; an unknown kind is named ``kind N``."""
        names = {kind.value: kind.name for kind in ChunkKind}
        return dict(Counter(names.get(c.kind, f"kind {c.kind}") for c in self.chunks))

    # -- records -----------------------------------------------------------------------------

    def records(self) -> RingIndex:
        """Every record in stream order. Built once."""
        return self._indexed[0]

    def count_by_kind(self) -> dict[Kind, int]:
        """Number of records of each kind that is present."""
        values, counts = np.unique(self.records().kind, return_counts=True)
        return {Kind(int(v)): int(n) for v, n in zip(values, counts, strict=True)}

    def fixed(self, kind: Kind) -> Records:
        """All records of a kind of ``schema.FIXED``, in stream order."""
        return self._rows(kind, FIXED[kind])

    def ops(self, *, by_thread: bool = False) -> OpRecords:
        """All operator batches and their records, in stream order.

        Args:
            by_thread: thread by thread instead, each thread's in stream order.
        """
        index = self.records()
        order, batches = self._rows(Kind.OPS, OPS)
        if by_thread:
            sort = np.argsort(batches["tid"], kind="stable")
            order, batches = order[sort], batches[sort]
        return OpRecords(order, batches, *expand(self._rings.words, index.offset[order], batches))

    def counts(self) -> CountRecords:
        """What counters read at the records of each operator batch, in stream order."""
        index = self.records()
        order = np.flatnonzero(index.kind == Kind.COUNTS)
        return CountRecords(order, *gather_counts(self._rings.words, index.offset[order]))

    def experts(self) -> ExpertRecords:
        """Which experts tokens went to, in stream order."""
        index = self.records()
        order = np.flatnonzero(index.kind == Kind.EXPERTS)
        return ExpertRecords(order, *gather_experts(self._rings.words, index.offset[order]))

    def tensors(self) -> Records:
        """All TENSOR records; ``raw`` is the engine's struct (``structs.tensor_struct``)."""
        return self._rows(Kind.TENSOR, tensor_dtype(self._raw_sizes()[Kind.TENSOR] or 0))

    def buffers(self) -> Records:
        """All BUFFER records; ``raw`` is the engine's struct (``structs.buffer_struct``)."""
        return self._rows(Kind.BUFFER, tensor_dtype(self._raw_sizes()[Kind.BUFFER] or 0))

    def copies(self) -> Records:
        """All COPY_BEGIN records; ``raw`` is a tensor's struct (``structs.tensor_struct``)."""
        return self._rows(Kind.COPY_BEGIN, copy_dtype(self._raw_sizes()[Kind.COPY_BEGIN] or 0))

    # -- life --------------------------------------------------------------------------------

    def close(self) -> None:
        """Unmap the file. Arrays that were handed out stay valid: they are copies."""
        self.__dict__.pop("_rings", None)
        if isinstance(self._map, mmap.mmap):
            # An index under construction elsewhere may still look at the map; it goes with it.
            with contextlib.suppress(BufferError):
                self._map.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- inside ------------------------------------------------------------------------------

    @functools.cached_property
    def _indexed(self) -> tuple[RingIndex, list[str]]:
        rings = self._rings
        newer = self.version[1] > MINOR
        return build_index(rings.words, rings.chunks, self._raw_sizes(), newer=newer)

    @functools.cached_property
    def _rings(self) -> Rings:
        stated = self.trailer.ring_bytes if self.trailer else None
        return open_rings(self._map, self.chunks, stated)

    def _raw_sizes(self) -> dict[Kind, int | None]:
        layout = self.meta.engine.layout
        sizes = {
            Kind.TENSOR: layout.tensor_size if layout else None,
            Kind.BUFFER: layout.buffer_size if layout else None,
            Kind.COPY_BEGIN: layout.tensor_size if layout else None,
        }
        # A size that no struct has comes from a faulty recorder: the records are then unreadable.
        return {k: n if n and 0 < n <= _MAX_RAW else None for k, n in sizes.items()}

    def _rows(self, kind: Kind, dtype: np.dtype[np.void]) -> Records:
        index = self.records()
        order = np.flatnonzero(index.kind == kind)
        return Records(order, gather(self._rings.words, index.offset[order], dtype))

    def _read_json(self, meta: bytes) -> None:
        """Metadata, updates, losses, notes and trailer."""
        try:
            base = parse(meta)
        except ValueError as error:
            raise TraceError(f"{self.path}: the metadata is not JSON", "record again") from error
        self.meta = self._meta_of(base)
        self.trailer: Trailer | None = None
        self.documents: list[tuple[Chunk, JsonObject]] = []
        unknown: Counter[int] = Counter()
        for chunk in self.chunks:
            if chunk.kind in (ChunkKind.RING, ChunkKind.PACKED):
                continue
            if chunk.kind not in _JSON_KINDS:
                unknown[chunk.kind] += 1
                continue
            try:
                value = parse(self._map[chunk.offset : chunk.offset + chunk.length])
                if not isinstance(value, dict):
                    raise ValueError("not an object")
                if chunk.kind == ChunkKind.UPDATE:
                    merged = merge(base, value)
                    self.meta, base = self._meta_of(merged), merged
                elif chunk.kind == ChunkKind.TRAILER:
                    self.trailer = Trailer.from_json(value, "trailer")
                self.documents.append((chunk, value))
            except (ValueError, RecursionError, TraceError) as error:
                name = ChunkKind(chunk.kind).name
                self._problems.append(f"{name} chunk {chunk.seq} was ignored: {error}")
        if self.version[1] > MINOR:
            self._problems.append(
                f"written in format {self.version[0]}.{self.version[1]}, newer than"
                f" {MAJOR}.{MINOR}: what this profinfer does not know is skipped"
            )
        for kind, count in sorted(unknown.items()):
            self._problems.append(f"{count} chunk(s) of unknown kind {kind} were skipped")

    def _meta_of(self, value: Any) -> TraceMetadata:
        try:
            return TraceMetadata.from_json(value)
        except TraceError as error:
            raise TraceError(f"{self.path}: {error.message}", error.hint) from error

    def _payloads(self, kind: ChunkKind) -> list[JsonObject]:
        return [value for chunk, value in self.documents if chunk.kind == kind]


def _open(path: Path) -> mmap.mmap | bytes:
    try:
        if not path.is_dir() and path.exists() and not path.is_file():
            raise TraceError(f"{path} is not a regular file", "save it to a file first")
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                return b""  # nothing to map
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise TraceError(
            f"{path}: no such file", "make one: profinfer record -o trace.pf -- PROGRAM ..."
        ) from error
    except IsADirectoryError as error:
        raise TraceError(f"{path} is a directory", "name the .pf file in it") from error
    except PermissionError as error:
        raise TraceError(
            f"{path}: no permission to read it", f"sudo chown $USER {path}, or read it with sudo"
        ) from error
    except OSError as error:
        raise TraceError(
            f"{path} cannot be read: {(error.strerror or str(error)).lower()}",
            "copy it to a disk that works and try again",
        ) from error
