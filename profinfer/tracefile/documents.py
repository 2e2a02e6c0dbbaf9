"""Layer 3: the JSON documents of a trace file, as plain values.

Owns what becomes of bytes that are no UTF-8: file names and arguments on Linux are any bytes, which
Python carries as lone surrogates, and most libraries refuse those. Must not import anything above.
"""

from __future__ import annotations

import json
from typing import Any


def parse(raw: bytes) -> Any:
    r"""A document; in its texts each byte that was no UTF-8 reads ``\xff``.

    Raises:
        ValueError: it is no JSON.
        RecursionError: it is nested too deep.
    """
    return _plain(json.loads(raw))


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value if value.isascii() else _text(value)
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {_plain(k): _plain(v) for k, v in value.items()}
    return value


def _text(value: str) -> str:
    try:
        return value.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
