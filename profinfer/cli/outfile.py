"""Layer 8: a file that appears under its name when it is complete, or not at all."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from profinfer.errors import ProfinferError


@contextlib.contextmanager
def created(
    path: Path, whole: bool, failed: Callable[[Path, OSError], ProfinferError]
) -> Iterator[BinaryIO]:
    """The output file.

    Args:
        path: where.
        whole: an ordinary file; a device or a pipe has to be written as it is.
        failed: says what went wrong.

    Raises:
        ProfinferError: it could not be written.
    """
    part = path.with_name(path.name + ".part") if whole else path
    try:
        with part.open("wb") as out:
            yield out
        if whole:
            part.replace(path)
    except OSError as error:
        raise failed(path, error) from error
    finally:
        if whole:
            part.unlink(missing_ok=True)
