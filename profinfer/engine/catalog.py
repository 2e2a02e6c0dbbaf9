"""Layer 1: the engine's data files as frozen objects.

Owns the reading of the TOML files beside it. Imports the standard library only, because the
model uses it on machines that record nothing.
"""

from __future__ import annotations

import tomllib
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib import resources
from typing import Any


def load_from(package: str, name: str) -> dict[str, Any]:
    """A TOML file that lies in a package, parsed."""
    return tomllib.loads(resources.files(package).joinpath(name).read_text("utf-8"))


@dataclass(frozen=True)
class Layout:
    """Offsets in bytes of the struct fields that are read; a field the engine lacks is absent.

    Attributes:
        id: name of the layout in ``layouts.toml``.
        evidence: where it was read, and what in the binary agreed with it.
        tensor_size: sizeof(struct ggml_tensor).
        buffer_size: bytes of struct ggml_backend_buffer that are read, a multiple of 8.
        tensor, cgraph, cplan, backend, buffer, batch, batch_ext: field -> offset.
        flags: name of a tensor flag -> bit.
        versions: versions of ggml that have exactly this layout.
        markers: field -> function that engines with this field have.
        no_operators: why operators of these engines cannot be told apart, or "".
    """

    id: str
    evidence: str
    tensor_size: int
    buffer_size: int
    tensor: dict[str, int]
    cgraph: dict[str, int]
    cplan: dict[str, int]
    backend: dict[str, int]
    buffer: dict[str, int]
    batch: dict[str, int]
    batch_ext: dict[str, int] = field(default_factory=dict)
    flags: dict[str, int] = field(default_factory=dict)
    versions: tuple[str, ...] = ()
    markers: dict[str, str] = field(default_factory=dict)
    no_operators: str = ""

    def without(self, key: str) -> Layout:
        """The same layout for an engine that lacks a field (``cgraph.uid``, ``flags.compute``)."""
        struct, name = key.split(".")
        change: dict[str, Any] = {
            struct: {k: v for k, v in getattr(self, struct).items() if k != name}
        }
        return replace(self, **change)

    def to_json(self) -> dict[str, Any]:
        """The layout as the trace's metadata keeps it."""
        data = asdict(self)
        del data["versions"], data["markers"], data["no_operators"]
        return data


@cache
def layouts() -> tuple[Layout, ...]:
    """Every known layout, newest first."""
    return tuple(
        Layout(**table) for table in load_from("profinfer.engine", "layouts.toml")["layout"]
    )


@cache
def backends() -> dict[str, str]:
    """Guid of a backend (32 hex digits) -> its name."""
    return dict(load_from("profinfer.engine", "backends.toml")["backend"])


@dataclass(frozen=True)
class BackendFacts:
    """What is known of backends beyond their guids.

    Attributes:
        word: word in function and library names -> name of the backend.
        synchronous: backends that have computed a graph when they return from it.
        host: backends that compute in the host's memory.
        blas_calls: operator -> ``matrices`` or ``one``: calls of the library for one of them.
        rpc_commands: names of the RPC protocol's commands by number.
    """

    word: dict[str, str]
    synchronous: frozenset[str]
    host: frozenset[str]
    blas_calls: dict[str, str]
    rpc_commands: tuple[str, ...]

    def named(self, word: str) -> str:
        """The name of a backend by its word in functions and files."""
        return self.word.get(word.lower(), word.upper())


@cache
def backend_facts() -> BackendFacts:
    """Facts about backends."""
    data = load_from("profinfer.engine", "backends.toml")
    return BackendFacts(
        data["word"],
        frozenset(data["facts"]["synchronous"]),
        frozenset(data["facts"]["host"]),
        data["blas"]["calls"],
        tuple(data["rpc"]["commands"]),
    )


def guid_of(backend: str) -> str:
    """Guid of a backend as 32 hex digits, by its name. Raises KeyError for an unknown one."""
    return {name: guid for guid, name in backends().items()}[backend]


@dataclass(frozen=True)
class OperatorFacts:
    """What is known of operators beyond their names.

    Attributes:
        empty: operators without work.
        fused: runs of operators that may be computed as one node.
        parameter: operator -> the table of names that its first parameter indexes.
    """

    empty: frozenset[str]
    fused: tuple[tuple[str, ...], ...]
    parameter: dict[str, str]


@cache
def operators() -> OperatorFacts:
    """Facts about operators."""
    data = load_from("profinfer.engine", "ops.toml")
    return OperatorFacts(
        frozenset(data["empty"]), tuple(tuple(run) for run in data["fused"]), data["parameter"]
    )
