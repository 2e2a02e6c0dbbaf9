"""Layer 2: what an engine's own code and tables say about it.

Owns the reading of accessors: ``ggml_get_name`` is one addition, so its machine code tells
the offset of ``ggml_tensor::name``; ``ggml_op_name`` is one load, so it tells where the
table of names lies. Functions are executed symbolically (``elf.flow``), so it does not
matter how a compiler wrote them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from profinfer.elf.flow import Path, paths
from profinfer.elf.modules import EngineImage
from profinfer.elf.sites import ARGUMENTS
from profinfer.elf.values import State, Value

_NAME = re.compile(r"^[A-Z0-9_]{2,32}$")
_TYPE_NAME = re.compile(r"^[A-Za-z0-9_]{2,24}$")
_RESULT = {"x86_64": "rax", "aarch64": "x0"}
_OBJECT_SIZE = 32  # sizeof(struct ggml_object), part of ggml_tensor_overhead()


@dataclass(frozen=True)
class EngineFacts:
    """What a binary says.

    Attributes:
        version: of ggml, or None in engines that do not tell.
        commit: of the source, or None.
        ops, unary_ops, glu_ops: names by number, empty if they could not be read.
        types: by number: name, elements a block, bytes a block; None for retired numbers.
        offsets: ``tensor.name`` and the like -> (offset in bytes, function that told it).
        evidence: for ``version``, ``ops``, ``types``: where it was read.
    """

    version: str | None = None
    commit: str | None = None
    ops: tuple[str, ...] = ()
    unary_ops: tuple[str, ...] = ()
    glu_ops: tuple[str, ...] = ()
    types: tuple[dict[str, Any] | None, ...] = ()
    offsets: dict[str, tuple[int, str]] = field(default_factory=dict)
    evidence: dict[str, str] = field(default_factory=dict)


def read_facts(images: Sequence[EngineImage]) -> EngineFacts:
    """Read everything that the images' code tells. Never raises: what is not told is absent."""
    reader = _Reader(images)
    evidence: dict[str, str] = {}
    version = reader.text("ggml_version", "version", evidence)
    commit = reader.text("ggml_commit", "commit", evidence)
    starts = {
        name: table
        for name in ("ggml_op_name", "ggml_unary_op_name", "ggml_glu_op_name")
        if (table := reader.name_table(name)) is not None
    }
    names = {name: reader.names(table, starts.values()) for name, table in starts.items()}
    if names.get("ggml_op_name"):
        where = starts["ggml_op_name"].image.elf.soname
        evidence["ops"] = f"table read by ggml_op_name() in {where}"
    types = reader.types(evidence)
    return EngineFacts(
        version=version,
        commit=commit,
        ops=names.get("ggml_op_name", ()),
        unary_ops=names.get("ggml_unary_op_name", ()),
        glu_ops=names.get("ggml_glu_op_name", ()),
        types=types,
        offsets=dict(reader.offsets()),
        evidence=evidence,
    )


@dataclass(frozen=True)
class NameTable:
    """A table of strings: pointers, or (``base`` given) 32-bit distances from ``base``."""

    image: EngineImage
    address: int
    base: int | None

    @property
    def step(self) -> int:
        """Bytes an entry."""
        return 8 if self.base is None else 4

    def entry(self, at: int) -> str | None:
        """The string of the entry at an address."""
        if self.base is None:
            pointer = self.image.elf.pointer(at)
        else:
            distance = _integer(self.image, at, 4)
            if distance is None:
                return None
            pointer = self.base + distance - ((distance & 1 << 31) << 1)
        return self.image.elf.cstring(pointer) if isinstance(pointer, int) else None


class _Reader:
    def __init__(self, images: Sequence[EngineImage]) -> None:
        self.images = images

    def run(self, function: str) -> tuple[EngineImage, list[Path]] | None:
        """Every path through a function that reaches its return without a call."""
        for image in self.images:
            f = image.elf.function(function)
            if f is None:
                continue
            state = State(image.elf.machine)
            ended = [
                p
                for p in paths(image.decoder, f.address, state, limit=48, width=12)
                if p.end is not None and p.end.flow == "ret"
            ]
            return image, ended
        return None

    def results(self, function: str) -> Iterator[tuple[EngineImage, Value]]:
        """The values a function may return."""
        found = self.run(function)
        if found:
            image, ended = found
            for path in ended:
                yield image, path.state.register(_RESULT[image.elf.machine])

    def text(self, function: str, key: str, evidence: dict[str, str]) -> str | None:
        """The string a function returns."""
        for image, value in self.results(function):
            if not value.terms:
                text = image.elf.cstring(value.const)
                if text:
                    evidence[key] = f"{function}() in {image.elf.soname}"
                    return text
        return None

    # --- tables ---------------------------------------------------------------------------
    def table(self, function: str) -> tuple[EngineImage, int, int, int] | None:
        """(image, address, bytes an entry, bytes read) of ``table[argument]``."""
        for image, value in self.results(function):
            address = value.load()
            argument = ("reg", ARGUMENTS[image.elf.machine][0])
            if address is None or len(address.terms) != 1 or address.terms[0][0] != argument:
                continue
            size = value.atom[2] if value.atom else 0
            return image, address.const, address.terms[0][1], int(str(size))
        return None

    def name_table(self, function: str) -> NameTable | None:
        """The table of strings that a function reads."""
        found = self.table(function)
        if found and found[2] == 8:
            return NameTable(found[0], found[1], None)
        for image, value in self.results(function):
            # clang: the table holds 32-bit distances from its own start.
            if value.atom is None or value.atom[0] != "mem" or value.atom[2] != 4:
                continue
            address = Value(0, value.terms).load()
            argument = ("reg", ARGUMENTS[image.elf.machine][0])
            if address is not None and address.terms == ((argument, 4),):
                return NameTable(image, address.const, value.const)
        return None

    def names(self, table: NameTable, others: Iterable[NameTable]) -> tuple[str, ...]:
        """Strings of a table.

        It ends where its symbol says, at the next table, or at the first entry that is no name.
        """
        size = table.image.elf.objects.get(table.address)
        ends = {t.address for t in others if t.image is table.image and t.address > table.address}
        found: list[str] = []
        at = table.address
        while (size is None or at < table.address + size) and at not in ends and len(found) < 512:
            text = table.entry(at)
            if text is None or not _NAME.match(text):
                break
            found.append(text)
            at += table.step
        return tuple(found)

    def types(self, evidence: dict[str, str]) -> tuple[dict[str, Any] | None, ...]:
        """The table of types, from the three functions that read it."""
        name, block, size = (
            self.table(f) for f in ("ggml_type_name", "ggml_blck_size", "ggml_type_size")
        )
        if not (name and block and size) or not name[2] == block[2] == size[2]:
            return ()
        image, first, stride, _ = name
        base = min(name[1], block[1], size[1])
        limit = image.elf.objects.get(base, 96 * stride) // stride
        found: list[dict[str, Any] | None] = []
        for i in range(limit):
            pointer = image.elf.pointer(first + i * stride)
            text = image.elf.cstring(pointer) if isinstance(pointer, int) and pointer else None
            elements = _integer(image, block[1] + i * stride, block[3])
            width = _integer(image, size[1] + i * stride, size[3])
            if elements is None or width is None or elements > 4096 or width > 65536:
                break
            if text and elements and width and _TYPE_NAME.match(text):
                found.append({"name": text, "block": elements, "size": width})
            elif elements or width:
                break  # past the table
            else:
                found.append(None)
        while found and found[-1] is None:
            found.pop()
        if found:
            evidence["types"] = f"table read by ggml_type_name() in {image.elf.soname}"
        return tuple(found)

    # --- offsets --------------------------------------------------------------------------
    def offsets(self) -> Iterator[tuple[str, tuple[int, str]]]:
        """Every struct offset that an accessor gives away."""
        for key, function, read in _ACCESSORS:
            found = self.run(function)
            if not found:
                continue
            image, ended = found
            argument = ("reg", ARGUMENTS[image.elf.machine][0])
            told = {
                offset
                for path in ended
                for offset in read(path, argument, _RESULT[image.elf.machine])
            }
            if len(told) == 1:
                yield key, (told.pop(), function)


def _integer(image: EngineImage, address: int, size: int) -> int | None:
    try:
        raw = image.elf.read(address, size)
    except ValueError:
        return None
    if len(raw) != size or size not in (4, 8):
        return None
    return int(struct.unpack("<I" if size == 4 else "<Q", raw)[0])


_Tell = Callable[[Path, tuple[str, str], str], Iterator[int]]


def _returns_address(path: Path, argument: tuple[str, str], result: str) -> Iterator[int]:
    """``return argument + offset``."""
    value = path.state.register(result)
    if value.atom == argument:
        yield value.const


def _returns_field(path: Path, argument: tuple[str, str], result: str) -> Iterator[int]:
    """``return argument->field``."""
    address = path.state.register(result).load()
    if address is not None and address.atom == argument:
        yield address.const


def _changes_field(path: Path, argument: tuple[str, str], _result: str) -> Iterator[int]:
    """``argument->field |= constant``."""
    for address in path.state.memory:
        if address.atom == argument:
            yield address.const


def _compares_field(path: Path, argument: tuple[str, str], _result: str) -> Iterator[int]:
    """``if (argument->field == constant)``."""
    for compare in path.compares:
        address = compare.left.load()
        if address is not None and address.atom == argument and not compare.right.terms:
            yield address.const


def _first_field(path: Path, argument: tuple[str, str], _result: str) -> Iterator[int]:
    """The lowest field that is read: the first of an array that all are multiplied of."""
    read = [a.const for _insn, a, _size in path.loads if a.atom == argument]
    if read:
        yield min(read)


def _returns_size(path: Path, _argument: tuple[str, str], result: str) -> Iterator[int]:
    """``return sizeof(struct ggml_object) + sizeof(struct ggml_tensor)``."""
    value = path.state.register(result)
    if not value.terms:
        yield value.const - _OBJECT_SIZE


_ACCESSORS: tuple[tuple[str, str, _Tell], ...] = (
    ("tensor.name", "ggml_get_name", _returns_address),
    ("tensor.data", "ggml_get_data", _returns_field),
    ("tensor.flags", "ggml_set_output", _changes_field),
    ("tensor.flags", "ggml_set_input", _changes_field),
    ("tensor.op", "ggml_get_unary_op", _compares_field),
    ("tensor.op_params", "ggml_get_unary_op", _returns_field),
    ("tensor.ne", "ggml_nelements", _first_field),
    ("tensor.nb", "ggml_is_transposed", _first_field),
    ("tensor_size", "ggml_tensor_overhead", _returns_size),
    ("cgraph.nodes", "ggml_graph_nodes", _returns_field),
    ("cgraph.n_nodes", "ggml_graph_n_nodes", _returns_field),
    ("buffer.usage", "ggml_backend_buffer_get_usage", _returns_field),
)
