"""Layer 5: whose an address is: the backend behind a GUID, a name function, or a buffer's function.

A GUID is data of the engine's source and comes first; an address is looked up in the functions that
the trace names, by the target's mappings; without symbols the file of the function still tells
(``libggml-vulkan.so``). Must not import numpy, pandas or anything above.
"""

from __future__ import annotations

import re
from pathlib import Path

from profinfer.engine.catalog import backend_facts, backends
from profinfer.tracefile.metadata import TraceMetadata, Trailer

HOST = "host"  # memory of the caller, no tensor
_SYMBOL = re.compile(r"ggml_backend_([a-z0-9]+)_(?:\w*buffer_|\w*name)")
_LIBRARY = re.compile(r"libggml-([a-z]+)")
_NOT_BACKENDS = {"multi", "base", "device", "reg"}


class BackendNames:
    """Names of one trace's backends.

    Args:
        meta: metadata with the functions and mappings.
        trailer: of older traces, which named addresses at the end.
    """

    def __init__(self, meta: TraceMetadata, trailer: Trailer | None) -> None:
        self._facts = backend_facts()
        self._guids = backends()
        self._symbols = dict(trailer.functions) if trailer else {}
        self._functions = {(f.path, f.offset): f.name for f in meta.engine.functions}
        self._maps = [m for m in meta.maps if isinstance(m, list) and len(m) == 4]
        self._known: dict[int, str] = {}

    def backend(self, guid: str, get_name: int) -> str:
        """Name of a backend; empty if nothing tells."""
        return self._guids.get(guid) or self.owner(get_name)

    def owner(self, address: int) -> str:
        """Name of the backend that a function belongs to; empty if nothing tells."""
        if address not in self._known:
            self._known[address] = self._owner(address)
        return self._known[address]

    def _owner(self, address: int) -> str:
        symbol = self._symbols.get(f"{address:x}", "")
        library = ""
        for start, end, offset, path in self._maps:
            if start <= address < end:
                library = Path(path).name
                symbol = symbol or self._functions.get((path, address - start + offset), "")
        told = _SYMBOL.search(symbol) or _LIBRARY.match(library)
        if not told or told[1] in _NOT_BACKENDS:
            return ""
        if "_host_buffer_" in symbol:
            return "CPU"  # memory of the host that a device can reach
        return self._facts.named(told[1])
