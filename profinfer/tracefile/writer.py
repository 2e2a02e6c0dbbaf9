"""Layer 3: writes a trace file, append only, so that a killed recorder leaves a readable one.

Owns the file descriptor, chunk numbering and what happens when the disk is full. Decodes
nothing: ring bytes pass through with one checksum pass, or packed. Must not import anything above.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from profinfer.errors import TraceError
from profinfer.tracefile.frames import pack_chunk_header, pack_file_header, padded
from profinfer.tracefile.metadata import TraceMetadata, Trailer
from profinfer.tracefile.packing import pack
from profinfer.tracefile.schema import ChunkKind

if TYPE_CHECKING:
    from typing_extensions import Buffer

_IOV_MAX = 512  # the kernel takes 1024
_WORTH = 4  # a block is packed if one part in so many are definitions


class TraceWriter:
    """An open trace file.

    Attributes:
        path: where it lies.
        bytes_written: size of the file so far, whole chunks only.
        ring_bytes: bytes of ring-buffer entries so far, before packing.
        chunks: chunks written so far.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        metadata: TraceMetadata,
        *,
        force: bool = False,
        uid: int = -1,
        gid: int = -1,
    ) -> None:
        """Create the file and write its header.

        Args:
            path: the final path; the file exists under it from now on.
            metadata: the header's self-description.
            force: replace an existing file.
            uid: owner to give the file to, -1 to leave it.
            gid: group to give the file to, -1 to leave it.

        Raises:
            TraceError: the file exists, cannot be created, or the disk is full.
        """
        self.path = Path(path)
        self.bytes_written = 0
        self.ring_bytes = 0
        self.chunks = 0
        self._failed: tuple[str, str | None] | None = None
        self._fd = _create(self.path, force)
        try:
            if uid != -1 or gid != -1:
                os.fchown(self._fd, uid, gid)
            meta = json.dumps(metadata.to_json(), separators=(",", ":"))
            self._append([pack_file_header(meta.encode())])
        except BaseException as error:
            self._abandon()
            if isinstance(error, OSError):
                raise TraceError(f"cannot write {self.path}: {_reason(error)}") from error
            raise

    def write_ring(self, data: Buffer | Sequence[Buffer], definitions: int = 0) -> None:
        """Append ring-buffer entries, as the kernel wrote them, as one chunk.

        Args:
            data: one buffer or several that follow each other; the whole must begin and end at
                entry boundaries. Nothing is written when it is empty.
            definitions: how many bytes of it tell what graphs are made of. Many of them are worth
                packing.

        Raises:
            TraceError: the disk is full or failed; the file ends with the last whole chunk.
        """
        parts = data if isinstance(data, list | tuple) else [data]
        views = [memoryview(part).cast("B") for part in parts]  # type: ignore[arg-type]
        size = sum(view.nbytes for view in views)
        try:
            if size:
                packed = pack(views, size) if definitions * _WORTH >= size else None
                if packed is None:
                    self._chunk(ChunkKind.RING, views)
                else:
                    self._chunk(ChunkKind.PACKED, [memoryview(packed)])
                self.ring_bytes += size
        finally:
            # The traceback of an error must not keep the caller's ring buffer mapped.
            for view in views:
                view.release()

    def write_json(self, kind: ChunkKind, value: Mapping[str, Any]) -> None:
        """Append a JSON chunk (UPDATE, LOSS, NOTE).

        Raises:
            TraceError: as ``write_ring``.
        """
        text = json.dumps(value, separators=(",", ":"))
        self._chunk(kind, [memoryview(text.encode())])

    def close(self, trailer: Trailer | Mapping[str, Any] | None = None) -> None:
        """Write the trailer, if given, and close. Closing twice is harmless.

        ``ring_bytes`` is filled in when the trailer does not give it.

        Raises:
            TraceError: as ``write_ring``; the file is closed all the same.
        """
        if self._fd < 0:
            return
        try:
            if trailer is not None:
                value = trailer.to_json() if isinstance(trailer, Trailer) else dict(trailer)
                if value.get("ring_bytes") is None:
                    value["ring_bytes"] = self.ring_bytes
                self.write_json(ChunkKind.TRAILER, value)
        finally:
            fd, self._fd = self._fd, -1
            try:
                os.close(fd)
            except OSError as error:  # NFS and quotas report a full disk here
                raise self._error(error) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _chunk(self, kind: ChunkKind, views: list[memoryview]) -> None:
        if self._failed:
            raise TraceError(*self._failed)
        if self._fd < 0:
            raise TraceError(f"{self.path} is closed")
        length = crc = 0
        for view in views:
            crc = zlib.crc32(view, crc)
            length += view.nbytes
        head = pack_chunk_header(kind, length, self.chunks, crc)
        try:
            self._append([head, *views, b"\0" * (padded(length) - length)])
        except OSError as error:
            # A half-written chunk would be skipped by the reader; without it the file is clean.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self.bytes_written)
                os.lseek(self._fd, self.bytes_written, os.SEEK_SET)
            failure = self._error(error)
            self._failed = (failure.message, failure.hint)
            raise failure from error
        self.chunks += 1

    def _append(self, parts: Sequence[Buffer]) -> None:
        """Write all parts, going on after short writes. Counts only what is complete."""
        rest = [memoryview(part).cast("B") for part in parts]
        total = sum(view.nbytes for view in rest)
        try:
            while rest:
                done = os.writev(self._fd, rest[:_IOV_MAX])
                while rest and done >= rest[0].nbytes:
                    done -= rest.pop(0).nbytes
                if done:
                    rest[0] = rest[0][done:]
        finally:
            for view in rest:
                view.release()
        self.bytes_written += total

    def _error(self, error: OSError) -> TraceError:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        return TraceError(
            f"cannot go on writing {self.path} after {self.bytes_written} bytes: {_reason(error)}",
            "free some space or record to another disk with -o; what was written can be read"
            if full
            else "what was written so far can be read",
        )

    def _abandon(self) -> None:
        """Take back a file whose header could not be written: nobody could read it."""
        with contextlib.suppress(OSError):
            if stat.S_ISREG(os.fstat(self._fd).st_mode):
                os.unlink(self.path)
        os.close(self._fd)
        self._fd = -1


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _create(path: Path, force: bool) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
    try:
        if force and path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if force and os.path.lexists(path):
            if stat.S_ISCHR(path.stat().st_mode if path.exists() else 0):
                return os.open(path, flags)  # /dev/null, /dev/full
            # A new file, not the old one emptied: a reader that has the old one mapped goes on
            # reading it, and a planted symlink is not followed as root.
            path.unlink()
        return os.open(path, flags | os.O_EXCL, 0o666)
    except FileExistsError as error:
        if path.is_dir():
            hint = f"name a file in it: -o {path / 'trace.pf'}"
            raise TraceError(f"{path} is a directory", hint) from error
        raise TraceError(
            f"{path} exists already", "choose another name with -o, or replace it with --force"
        ) from error
    except OSError as error:
        raise TraceError(
            f"cannot create {path}: {_reason(error)}", "choose another place with -o"
        ) from error
