"""Layer 4: the running kernel's own description of its types: where a field lies in a struct.

Reads /sys/kernel/btf/vmlinux, whose format is in linux/Documentation/bpf/btf.rst. Knows only what
layouts need: structs, unions, pointers, typedefs and function prototypes; everything else is
stepped over. Needs no bcc.
"""

from __future__ import annotations

import functools
import struct
from pathlib import Path

VMLINUX = Path("/sys/kernel/btf/vmlinux")
_MAGIC = 0xEB9F
_HEADER = struct.Struct("<HBBIIIII")
_TYPE = struct.Struct("<III")
_MEMBER = struct.Struct("<III")
_PARAM = struct.Struct("<II")
_INT, _PTR, _ARRAY, _STRUCT, _UNION, _ENUM = 1, 2, 3, 4, 5, 6
_TYPEDEF, _FUNC_PROTO, _VAR, _DATASEC, _DECL_TAG, _ENUM64 = 8, 13, 14, 15, 17, 19
_QUALIFIERS = (9, 10, 11, 18)  # volatile, const, restrict, type tag
# Bytes that follow a type's head: a fixed number, and some for each of its vlen entries.
_FIXED = {_INT: 4, _ARRAY: 12, _VAR: 4, _DECL_TAG: 4}
_PER_ENTRY = {_STRUCT: 12, _UNION: 12, _ENUM: 8, _FUNC_PROTO: 8, _DATASEC: 12, _ENUM64: 12}
_KINDS = 20


class BtfError(Exception):
    """There is no description, or it does not hold what was asked for; the text says which."""


class Btf:
    """A kernel's types.

    Args:
        data: the bytes of a BTF file.

    Raises:
        BtfError: they are none.
    """

    def __init__(self, data: bytes) -> None:
        try:
            magic, _, _, size, type_at, type_len, str_at, str_len = _HEADER.unpack_from(data)
        except struct.error:
            raise BtfError("the kernel's BTF is cut short") from None
        if magic != _MAGIC:
            raise BtfError("the kernel's BTF is of another byte order or no BTF")
        self._data = data
        self._strings = data[size + str_at : size + str_at + str_len]
        self._at = [0]  # type id -> where its head is; id 0 is void
        self._walk(size + type_at, size + type_at + type_len)

    @classmethod
    def of_kernel(cls, path: Path = VMLINUX) -> Btf:
        """The running kernel's.

        Raises:
            BtfError: it has none, or it cannot be read.
        """
        try:
            return cls(path.read_bytes())
        except FileNotFoundError:
            raise BtfError(f"this kernel has no {path} (CONFIG_DEBUG_INFO_BTF)") from None
        except OSError as error:
            raise BtfError(f"{path} cannot be read: {error.strerror}") from None

    def fields(self, name: str) -> dict[str, int]:
        """Byte offset of every field of a struct, those of its unnamed parts included.

        Raises:
            BtfError: there is no such struct.
        """
        return self._fields(self._find(name, _STRUCT), 0)

    def arguments(self, typedef: str) -> list[str]:
        """Types of the arguments of a typedef of a function pointer, such as ``btf_trace_x``.

        A pointer to a struct is ``task_struct *``, other pointers ``*``, the rest is its name.

        Raises:
            BtfError: there is no such typedef.
        """
        kind, at, vlen = 0, self._find(typedef, _TYPEDEF), 0
        while kind != _FUNC_PROTO:
            kind, vlen, target, _ = self._head(at)
            if kind not in (_TYPEDEF, _PTR, _FUNC_PROTO, *_QUALIFIERS):
                raise BtfError(f"the kernel's BTF has another {typedef}")
            if kind != _FUNC_PROTO:
                at = self._at[target]
        first = at + _TYPE.size
        each = (_PARAM.unpack_from(self._data, first + 8 * i)[1] for i in range(vlen))
        return [self._shown(type_id) for type_id in each]

    # --- inside ---------------------------------------------------------------------------
    def _walk(self, at: int, end: int) -> None:
        data, unpack, places = self._data, _TYPE.unpack_from, self._at
        fixed = [_FIXED.get(kind, 0) + _TYPE.size for kind in range(_KINDS)]
        each = [_PER_ENTRY.get(kind, 0) for kind in range(_KINDS)]
        try:
            while at < end:
                info = unpack(data, at)[1]
                kind = info >> 24 & 0x1F
                places.append(at)
                at += fixed[kind] + each[kind] * (info & 0xFFFF)
        except (struct.error, IndexError):
            raise BtfError("the kernel's BTF holds types that this profinfer cannot read") from None

    def _head(self, at: int) -> tuple[int, int, int, bool]:
        """Kind, entries, size or type, and whether member offsets hold bit-field sizes."""
        _, info, size = _TYPE.unpack_from(self._data, at)
        return info >> 24 & 0x1F, info & 0xFFFF, size, bool(info >> 31)

    def _name(self, offset: int) -> str:
        return self._strings[offset : self._strings.index(b"\0", offset)].decode()

    def _find(self, name: str, kind: int) -> int:
        wanted = self._strings.find(b"\0" + name.encode() + b"\0") + 1
        unpack, data = _TYPE.unpack_from, self._data
        for at in self._at[1:] if wanted else ():
            offset, info, _ = unpack(data, at)
            if offset == wanted and info >> 24 & 0x1F == kind:
                return at
        raise BtfError(f"the kernel's BTF has no {name}")

    def _fields(self, at: int, base: int) -> dict[str, int]:
        _, vlen, _, packed = self._head(at)
        out: dict[str, int] = {}
        for i in range(vlen):
            name, type_id, bits = _MEMBER.unpack_from(self._data, at + _TYPE.size + 12 * i)
            offset = base + (bits & 0xFFFFFF if packed else bits) // 8
            if name:
                out[self._name(name)] = offset
            elif self._head(self._at[type_id])[0] in (_STRUCT, _UNION):
                out |= self._fields(self._at[type_id], offset)
        return out

    def _shown(self, type_id: int) -> str:
        if not type_id:
            return "void"
        kind, _, target, _ = self._head(self._at[type_id])
        if kind in _QUALIFIERS:
            return self._shown(target)
        if kind == _PTR:
            inner = self._shown(target)
            return f"{inner} *" if inner != "void" else "*"
        return self._name(_TYPE.unpack_from(self._data, self._at[type_id])[0]) or "?"


@functools.cache
def running_kernel() -> Btf:
    """The running kernel's types, read once; ``cache_clear`` gives their memory back.

    Raises:
        BtfError: it has none, or it cannot be read.
    """
    return Btf.of_kernel()
