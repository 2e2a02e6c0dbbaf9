"""profinfer: what an LLM inference really does, from an unmodified ggml program."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from profinfer._version import __version__

if TYPE_CHECKING:
    from profinfer.model.trace import Trace

# Not open: a star import must not hide the builtin.
__all__ = ["__version__"]


def open(path: str | os.PathLike[str]) -> Trace:
    """Open a recorded trace; its tables are pandas DataFrames (``docs/tables.md``).

    Raises:
        ProfinferError: the file is not a readable trace.
    """
    from profinfer.model.trace import Trace  # pandas, only when it is needed

    return Trace.open(path)
