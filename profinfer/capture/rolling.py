"""Layer 4: the last seconds of a recording in memory, as a trace that readers understand.

Takes the place of the file for ``profinfer top``. What is older than the window is let go but for
what later records refer to: definitions of graphs, names of threads. Decodes nothing: of an old
entry it reads the kind and the key by which a newer one replaces it.
"""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from profinfer.tracefile.frames import pack_chunk_header, pack_file_header, padded
from profinfer.tracefile.metadata import JsonObject, TraceMetadata, Trailer, merge
from profinfer.tracefile.schema import (
    CNT_COUNT,
    CNT_LOST,
    CNT_OP_LOST,
    PTRS_LEAFS,
    RING_BUSY,
    RING_DISCARD,
    ChunkKind,
    Kind,
)

if TYPE_CHECKING:
    from typing_extensions import Buffer

_ENTRY_HEADER = 8
_HEAD = struct.Struct("<IIHHIQ")  # length and flags, page offset, kind, flags, tid, time
# What follows a record's header: an address or context; of PTRS gen and place too.
_ADDRESS = struct.Struct("<Q")
_PLACE = struct.Struct("<16xI")
_CALL_PROBE = struct.Struct("<8xI")
_END_PROBE = struct.Struct("<I")
_TENSOR, _BUFFER, _PTRS, _THREAD, _WARMUP, _CALL_BEGIN, _CALL_END = (
    int(k)
    for k in (
        Kind.TENSOR, Kind.BUFFER, Kind.PTRS, Kind.THREAD, Kind.WARMUP, Kind.CALL_BEGIN,
        Kind.CALL_END,
    )
)  # fmt: skip
# Windows that nobody looks at must not fill the memory: beyond, the oldest blocks go early.
_MOST_BYTES = 256 << 20


class RollingTrace:
    """Stands in for ``TraceWriter``.

    Attributes:
        path: of no file; errors name it.
        bytes_written: bytes that were taken in.
        window_ns: how much is kept.
        dropped_ns: everything that came after this moment is there.
        open_calls: calls that began before the window, by thread and probe: when they began. One
            that has ended since is among them until its end has left the window too.
    """

    def __init__(self, metadata: TraceMetadata, window_s: float) -> None:
        self.path = Path("/nonexistent/live")
        self.bytes_written = 0
        self.open_calls: dict[tuple[int, int], int] = {}
        self.window_ns = int(window_s * 1e9)
        self.dropped_ns = metadata.clock.monotonic_ns
        self._meta: JsonObject = metadata.to_json()
        self._blocks: deque[tuple[int, bytes]] = deque()
        self._bytes = 0
        self._kept: dict[tuple[int, ...], bytes] = {}
        self._levels: list[JsonObject] = []
        self._memory: JsonObject | None = None
        self._latest_ns = self.dropped_ns

    # --- what a recording writes ----------------------------------------------------------
    def write_ring(self, data: Buffer | Sequence[Buffer], definitions: int = 0) -> None:
        """Take entries in, definitions or not; they are of now."""
        parts = data if isinstance(data, list | tuple) else [data]
        block = b"".join(bytes(part) for part in parts)  # type: ignore[arg-type]
        if block:
            self._latest_ns = _now()
            self._blocks.append((self._latest_ns, block))
            self._bytes += len(block)
            self.bytes_written += len(block)
        self._expire()

    def write_json(self, kind: ChunkKind, value: Mapping[str, Any]) -> None:
        """Take a document in: updates are merged, of notes those that matter later are kept."""
        if kind == ChunkKind.UPDATE:
            self._meta = merge(self._meta, dict(value))
            since = (value.get("options") or {}).get("attached_ns")
            if isinstance(since, int) and not self._blocks:
                self.dropped_ns = since  # the recording of a running process begins here
        elif kind == ChunkKind.NOTE and value.get("what") == "level":
            self._levels.append(dict(value))
        elif kind == ChunkKind.NOTE and value.get("what") == "memory":
            self._memory = dict(value)

    def close(self, trailer: Trailer | Mapping[str, Any] | None = None) -> None:
        """Nothing is open."""

    # --- what is looked at ----------------------------------------------------------------
    def snapshot(self, counters: Sequence[int]) -> bytes:
        """The window as the bytes of a trace file: an excerpt that ends now.

        Args:
            counters: of the BPF program; of them only losses are passed on, since what was sent
                before the window is not in it.
        """
        now = _now()
        self._expire()
        losses = [0] * CNT_COUNT
        losses[CNT_LOST : CNT_OP_LOST + 1] = counters[CNT_LOST : CNT_OP_LOST + 1]
        options = {"options": {"attached": True, "attached_ns": self.dropped_ns}}
        notes = [*self._levels, *([self._memory] if self._memory else [])]
        chunks: list[tuple[int, bytes]] = [(ChunkKind.NOTE, _json(note)) for note in notes]
        chunks.append((ChunkKind.RING, b"".join(self._kept.values())))
        chunks += [(ChunkKind.RING, block) for _, block in self._blocks]
        trailer = Trailer(ended_ns=now, reason="duration over", counters=tuple(losses))
        chunks.append((ChunkKind.TRAILER, _json(trailer.to_json())))
        out = [pack_file_header(_json(merge(self._meta, options)))]
        for number, (kind, payload) in enumerate(c for c in chunks if c[1]):
            out.append(pack_chunk_header(kind, len(payload), number, zlib.crc32(payload)))
            out += [payload, b"\0" * (padded(len(payload)) - len(payload))]
        return b"".join(out)

    # --- inside ---------------------------------------------------------------------------
    def _expire(self) -> None:
        """Let go of blocks that are older than the window."""
        until = self._latest_ns - self.window_ns
        while self._blocks and (self._blocks[0][0] < until or self._bytes > _MOST_BYTES):
            self.dropped_ns, block = self._blocks.popleft()
            self._bytes -= len(block)
            self._keep(block)
        # The last level before the window says how it begins.
        while len(self._levels) > 1 and self._levels[1]["ts"] < self.dropped_ns:
            self._levels.pop(0)

    def _keep(self, block: bytes) -> None:
        """Of an old block the entries that later ones refer to; a newer one replaces an older."""
        at, end = 0, len(block)
        unpack = _HEAD.unpack_from
        while at < end:
            length, _, kind, flags, tid, ts = unpack(block, at)
            size = ((length & ~(RING_BUSY | RING_DISCARD)) + _ENTRY_HEADER + 7) & ~7
            if kind in (_TENSOR, _BUFFER, _PTRS, _THREAD, _WARMUP) and not length & RING_DISCARD:
                key: tuple[int, ...] = (kind, tid)
                if kind != _THREAD:
                    key = (kind, *_ADDRESS.unpack_from(block, at + _HEAD.size))
                    if kind == _PTRS:
                        key += (*_PLACE.unpack_from(block, at + _HEAD.size), flags & PTRS_LEAFS)
                # Taken out first, so that it moves to the end: the order is that of time.
                self._kept.pop(key, None)
                self._kept[key] = block[at : at + size]
            elif kind == _CALL_BEGIN:
                probe = _CALL_PROBE.unpack_from(block, at + _HEAD.size)[0]
                self.open_calls[tid, probe] = ts
            elif kind == _CALL_END:
                self.open_calls.pop((tid, _END_PROBE.unpack_from(block, at + _HEAD.size)[0]), None)
            at += size


def _now() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
