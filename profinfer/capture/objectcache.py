"""Layer 4: compiled BPF programs, kept for the next time.

Root loads into the kernel what lies there, so nothing is read that another user could have
written: the folder and every folder above it, and the file itself, must belong to root or to us
and be writable by nobody else. Everything that goes wrong here only means compiling again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import pwd
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from profinfer._version import __version__
from profinfer.capture.objectcode import ObjectCode, ObjectProblem

_KEPT = 64
_WRITABLE = stat.S_IWGRP | stat.S_IWOTH


class ObjectCache:
    """One folder of compiled programs, or none where no folder can be trusted."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @classmethod
    def of_user(cls) -> ObjectCache:
        """The cache of the effective user: below XDG_CACHE_HOME, else below its home.

        The home is looked up and not taken from HOME: sudo may leave the caller's there. An
        XDG_CACHE_HOME that is the caller's is not trusted, and passed over.
        """
        bases = []
        named = os.environ.get("XDG_CACHE_HOME")
        if named and os.path.isabs(named):
            bases.append(Path(named))
        with contextlib.suppress(KeyError):
            bases.append(Path(pwd.getpwuid(os.geteuid()).pw_dir) / ".cache")
        for base in bases:
            folder = base / "profinfer" / "bpf"
            if _prepared(folder):
                return cls(folder)
        return cls(None)

    def get(self, key: str) -> ObjectCode | None:
        """A program that was compiled before by the same compiler, None if there is none."""
        try:
            with self._opened() as folder:
                file = os.open(key, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
                with os.fdopen(file, "rb") as held:
                    if not _ours(os.fstat(file), stat.S_ISREG):
                        return None
                    code = ObjectCode.from_bytes(held.read())
                os.utime(key, dir_fd=folder)  # the least recently used go first
        except (OSError, ObjectProblem):
            return None
        return code if _compiler_unchanged(code) else None

    def put(self, key: str, code: ObjectCode) -> None:
        """Keep a program."""
        with contextlib.suppress(OSError), self._opened() as folder:
            assert self.folder is not None
            descriptor, name = tempfile.mkstemp(dir=self.folder, prefix=".new-")
            try:
                with os.fdopen(descriptor, "wb") as new:
                    new.write(code.to_bytes())
                os.rename(name, key, dst_dir_fd=folder)
            except OSError:
                os.unlink(name)
                raise
            self._shrink(folder)

    def drop(self, key: str) -> None:
        """Forget a program, such as one that the kernel refuses."""
        with contextlib.suppress(OSError), self._opened() as folder:
            os.unlink(key, dir_fd=folder)

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        if self.folder is None:
            raise OSError("no cache")
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        folder = os.open(self.folder, flags)
        try:
            if not _ours(os.fstat(folder), stat.S_ISDIR):
                raise OSError("not ours")
            yield folder
        finally:
            os.close(folder)

    def _shrink(self, folder: int) -> None:
        names = os.listdir(folder)
        if len(names) > _KEPT:
            used = {n: os.stat(n, dir_fd=folder, follow_symlinks=False).st_mtime_ns for n in names}
            for name in sorted(names, key=lambda n: used[n])[: len(names) - _KEPT]:
                os.unlink(name, dir_fd=folder)


def object_key(text: str, cflags: list[str], headers: Path | None) -> str:
    """Name of what comes of compiling this: text, definitions, headers, kernel, ourselves.

    The compiler's own files are not part of it, since they are known only when it is loaded; they
    are in the object code, and compared when it is taken from the cache.
    """
    parts = [__version__, platform.machine(), platform.release(), *cflags, text]
    for path in sorted(headers.rglob("*.h")) if headers else ():
        parts += [str(path.relative_to(headers)) if headers else "", path.read_text()]
    # An environment that changes what BCC compiles for; see tests/bpf/test_arm64_source.py.
    parts.append(os.environ.get("ARCH", ""))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _ours(facts: os.stat_result, kind: object) -> bool:
    of_kind = kind(facts.st_mode)  # type: ignore[operator]
    return bool(of_kind and facts.st_uid == os.geteuid() and not facts.st_mode & _WRITABLE)


def _prepared(folder: Path) -> bool:
    """Make the folder; True when nobody but root and us can change what it holds.

    Nothing is made in a folder that is not trusted: it would be root's, amid files of the caller.
    """
    try:
        missing = [folder]
        while not missing[-1].exists():
            missing.append(missing[-1].parent)
        # resolve() follows links; what they lead to is checked up to the root.
        there = missing.pop().resolve(strict=True)
        for path in (there, *there.parents):
            facts = path.stat()
            # In a sticky folder such as /tmp others can add, but not rename what is ours.
            open_to_others = facts.st_mode & _WRITABLE and not facts.st_mode & stat.S_ISVTX
            if facts.st_uid not in (0, os.geteuid()) or open_to_others:
                return False
        for path in reversed(missing):
            path.mkdir(mode=0o700)
        return _ours(folder.stat(), stat.S_ISDIR)
    except (OSError, RuntimeError):
        return False


def _compiler_unchanged(code: ObjectCode) -> bool:
    try:
        for path, size, mtime_ns in code.made_by:
            facts = os.stat(path)
            if (facts.st_size, facts.st_mtime_ns) != (size, mtime_ns):
                return False
    except OSError:
        return False
    return bool(code.made_by)
