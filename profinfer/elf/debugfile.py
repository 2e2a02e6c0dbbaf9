"""Layer 1: the file that holds what was stripped from a program or library.

Looks where debuggers look: by build id under ``/usr/lib/debug/.build-id``, and by the name and
checksum in ``.gnu_debuglink`` beside the file, in ``.debug`` and under ``/usr/lib/debug``.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from profinfer.errors import TargetError

if TYPE_CHECKING:
    from profinfer.elf.symbols import ElfImage

ROOT = Path("/usr/lib/debug")


def find_debug_file(image: ElfImage) -> Path | None:
    """The debug file of an image, or None."""
    build_id = image.build_id
    if build_id:
        path = ROOT / ".build-id" / build_id[:2] / f"{build_id[2:]}.debug"
        if path.is_file():
            return path
    link = debug_link(image)
    if link is None:
        return None
    name, checksum = link
    folder = image.path.parent
    for path in (folder / name, folder / ".debug" / name, ROOT / folder.relative_to("/") / name):
        if path.is_file() and path != image.path and _checksum(path) == checksum:
            return path
    return None


def debug_link(image: ElfImage) -> tuple[str, int] | None:
    """(name, CRC-32) of the debug file that an image names, or None."""
    raw = image.table(".gnu_debuglink")
    name, zero, _ = raw.partition(b"\0")
    if not zero or len(raw) < 8:
        return None
    return name.decode("utf-8", "replace"), int.from_bytes(raw[-4:], "little")


def matches(image: ElfImage, debug: ElfImage) -> bool:
    """Whether a debug file was made of this very image."""
    if image.build_id and debug.build_id:
        return image.build_id == debug.build_id
    link = debug_link(image)
    if link is not None:
        return _checksum(debug.path) == link[1]
    # No id and no link: the code must lie at the same addresses.
    mine, its = image.section(".text"), debug.section(".text")
    return bool(mine and its and (mine.address, mine.size) == (its.address, its.size))


def _checksum(path: Path) -> int:
    total = 0
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                total = zlib.crc32(piece, total)
    except OSError as error:
        raise TargetError(f"{path}: {error.strerror or error}") from error
    return total
