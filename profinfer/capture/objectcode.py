"""Layer 4: a compiled BPF program as plain data: maps to be made, instructions that name them.

What the compiler hands to the loader, and what lies in the cache of compiled programs. It holds
nothing of a running kernel: where an instruction needs the descriptor of a map, it has the map's
place in the list of maps instead.
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass

_FORMAT = 1
_INSN = struct.Struct("<BBhi")  # code, registers, offset, immediate
_LOAD_IMM64 = 0x18
_CALL = 0x85
_PSEUDO_MAP_FD = 1


class ObjectProblem(ValueError):
    """Bytes that are no compiled program, or instructions that cannot be relocated."""


@dataclass(frozen=True)
class MapSpec:
    """One map.

    Attributes:
        name: as in the C text.
        type: ``enum bpf_map_type``.
        key_size: bytes of a key; value_size: bytes of a value.
        max_entries: entries; of a ring buffer, bytes.
        flags: ``BPF_F_*`` of BPF_MAP_CREATE.
    """

    name: str
    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int


@dataclass(frozen=True)
class ObjectCode:
    """A compiled program.

    Attributes:
        maps: the maps that instructions refer to by place.
        functions: instructions by function name, 8 bytes each.
        made_by: (path, size, mtime_ns) of the compiler's own files.
    """

    maps: tuple[MapSpec, ...]
    functions: dict[str, bytes]
    made_by: tuple[tuple[str, int, int], ...] = ()

    def linked(self, function: str, descriptors: Sequence[int]) -> bytes:
        """A function's instructions with the descriptors of maps that exist, in order."""
        return _with_maps(self.functions[function], dict(enumerate(descriptors)))

    def to_bytes(self) -> bytes:
        """One JSON object with its own checksum."""
        code = {name: base64.b64encode(code).decode() for name, code in self.functions.items()}
        body = json.dumps(
            {
                "format": _FORMAT,
                "maps": [asdict(spec) for spec in self.maps],
                "functions": code,
                "made_by": self.made_by,
            }
        )
        return f"{_checksum(body)}\n{body}".encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> ObjectCode:
        """The inverse of ``to_bytes``.

        Raises:
            ObjectProblem: damaged, or of another version of profinfer.
        """
        try:
            checksum, body = data.decode().split("\n", 1)
            if checksum != _checksum(body):
                raise ObjectProblem("damaged")
            held = json.loads(body)
            if held["format"] != _FORMAT:
                raise ObjectProblem("another format")
            return cls(
                tuple(MapSpec(**spec) for spec in held["maps"]),
                {name: base64.b64decode(code) for name, code in held["functions"].items()},
                tuple((path, size, mtime) for path, size, mtime in held["made_by"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ObjectProblem(f"not a compiled program: {error}") from error


def unlinked(code: bytes, places: dict[int, int]) -> bytes:
    """Instructions as the compiler made them, its descriptors replaced by places.

    Args:
        code: instructions that hold descriptors of the compiler's own maps.
        places: descriptor -> place in ``ObjectCode.maps``.

    Raises:
        ObjectProblem: they refer to something that is not a map, or call a second function.
    """
    return _with_maps(code, places)


def _with_maps(code: bytes, numbers: dict[int, int]) -> bytes:
    out = bytearray(code)
    at = 0
    while at < len(code):
        operation, registers, offset, immediate = _INSN.unpack_from(code, at)
        source = registers >> 4
        if operation == _LOAD_IMM64:
            if source == _PSEUDO_MAP_FD and immediate in numbers:
                _INSN.pack_into(out, at, operation, registers, offset, numbers[immediate])
            elif source:
                raise ObjectProblem(f"instruction {at // 8} refers to an unknown map")
            at += _INSN.size  # it is two instructions long
        elif operation == _CALL and source:
            raise ObjectProblem(f"instruction {at // 8} calls a function that is not a helper")
        at += _INSN.size
    return bytes(out)


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
