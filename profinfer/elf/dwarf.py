"""Layer 1: layouts of C structs as the compiler wrote them into debug information (DWARF).

Only declarations at the top of the compilation units asked for are looked at: the debug
information of a whole engine has millions of entries. Must not know what a struct is for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from elftools.common.exceptions import ELFError
from elftools.common.utils import struct_parse
from elftools.dwarf.abbrevtable import AbbrevDecl

if TYPE_CHECKING:
    from profinfer.elf.symbols import ElfImage

_PASSED = {
    "DW_TAG_typedef",
    "DW_TAG_const_type",
    "DW_TAG_volatile_type",
    "DW_TAG_atomic_type",
    "DW_TAG_restrict_type",
}
_POINTER = 8
_IMPLICIT_CONST = 0x21  # DW_FORM: its value is in the declaration


@dataclass(frozen=True)
class Member:
    """One field: offset and size in bytes; ``count`` elements if an array; its struct's name."""

    offset: int
    size: int
    count: int = 0
    struct: str = ""


@dataclass(frozen=True)
class Struct:
    """A struct: size in bytes, fields by name."""

    size: int
    members: dict[str, Member] = field(default_factory=dict)


@dataclass(frozen=True)
class DebugTypes:
    """What was found.

    Attributes:
        structs: by name.
        enums: enumeration -> enumerator -> value.
        source: the file that holds the debug information.
    """

    structs: dict[str, Struct]
    enums: dict[str, dict[str, int]]
    source: str


def read_types(image: ElfImage, names: Iterable[str], units: Iterable[str]) -> DebugTypes | None:
    """Structs and enumerations of an image, from it or its debug file.

    Args:
        image: the program or library.
        names: of structs and enumerations.
        units: base names of the source files to look in (``ggml.c``), in this order.

    Returns:
        What was found, or None without any debug information.
    """
    holder = next(
        (i for i in (image, image.debug) if i is not None and i.section(".debug_info")), None
    )
    if holder is None:
        return None
    wanted = set(names)
    found = DebugTypes({}, {}, str(holder.path))
    try:
        tops = dict(_units(holder, set(units)))
        for unit in units:
            for top in tops.get(unit, ()):
                for die in top.iter_children():
                    name = _text(die, "DW_AT_name")
                    if name in wanted and "DW_AT_declaration" not in die.attributes:
                        _take(die, name, found)
                wanted -= found.structs.keys() | found.enums.keys()
                if not wanted:
                    return found
    except (ELFError, KeyError, IndexError, ValueError, AttributeError, NotImplementedError):
        # Of a form that pyelftools does not read: the structs known so far still hold.
        return found if found.structs else None
    return found


class _Abbreviations:
    """One table of abbreviations, of which only what is asked for is decoded.

    pyelftools decodes whole tables. The name of a unit needs one line of its table, and an engine
    has a thousand units: seconds, in which its process may be held.
    """

    def __init__(self, dwarf: Any, data: bytes, offset: int) -> None:
        self._structs, self._stream = dwarf.structs, dwarf.debug_abbrev_sec.stream
        self._data = data
        self._at = offset
        self._places: dict[int, int] = {}  # code -> where its declaration begins
        self._known: dict[int, Any] = {}

    def get_abbrev(self, code: int) -> Any:
        """The declaration of a code.

        Raises:
            KeyError: the table has none.
        """
        if code not in self._known:
            while code not in self._places:
                self._pass_one(code)
            self._stream.seek(self._places[code])
            shape = struct_parse(self._structs.Dwarf_abbrev_declaration, self._stream)
            self._known[code] = AbbrevDecl(code, shape)
        return self._known[code]

    def _pass_one(self, wanted: int) -> None:
        """Note where the next declaration is and go behind it (DWARF 5, section 7.5.3)."""
        data = self._data
        found, at = _uleb(data, self._at)
        if found == 0:
            raise KeyError(wanted)
        self._places[found] = at
        _tag, at = _uleb(data, at)
        at += 1  # whether it has children
        attribute = 1
        while attribute:
            attribute, at = _uleb(data, at)
            form, at = _uleb(data, at)
            if form == _IMPLICIT_CONST:
                _, at = _uleb(data, at)  # signed; as long as an unsigned one
        self._at = at


def _uleb(data: bytes, at: int) -> tuple[int, int]:
    """A number of 7 bits a byte, and where the next one is."""
    value = data[at] & 0x7F
    shift = 7
    while data[at] & 0x80:
        at += 1
        value |= (data[at] & 0x7F) << shift
        shift += 7
    return value, at + 1


def _units(holder: ElfImage, units: set[str]) -> Iterator[tuple[str, list[Any]]]:
    by_name: dict[str, list[Any]] = {}
    dwarf = holder.dwarf
    section = dwarf.debug_abbrev_sec.stream
    section.seek(0)
    data = section.read()
    tables: dict[int, _Abbreviations] = {}

    def table_at(offset: int) -> _Abbreviations:
        if offset not in tables:
            tables[offset] = _Abbreviations(dwarf, data, offset)
        return tables[offset]

    dwarf.get_abbrev_table = table_at  # units ask it for theirs
    for unit in dwarf.iter_CUs():
        top = unit.get_top_DIE()
        name = PurePosixPath(_text(top, "DW_AT_name")).name
        if name in units:
            by_name.setdefault(name, []).append(top)
    yield from by_name.items()


def _text(die: Any, attribute: str) -> str:
    value = die.attributes.get(attribute)
    return value.value.decode("utf-8", "replace") if value and value.value else ""


def _take(die: Any, name: str, found: DebugTypes) -> None:
    if die.tag == "DW_TAG_enumeration_type":
        found.enums[name] = {
            _text(child, "DW_AT_name"): int(child.attributes["DW_AT_const_value"].value)
            for child in die.iter_children()
            if child.tag == "DW_TAG_enumerator"
        }
    elif die.tag in ("DW_TAG_structure_type", "DW_TAG_class_type"):
        members = {}
        for child in die.iter_children():
            at = child.attributes.get("DW_AT_data_member_location")
            if child.tag == "DW_TAG_member" and at is not None and isinstance(at.value, int):
                size, count, struct = _measure(child)
                members[_text(child, "DW_AT_name")] = Member(at.value, size, count, struct)
        found.structs[name] = Struct(die.attributes["DW_AT_byte_size"].value, members)


def _measure(die: Any) -> tuple[int, int, str]:
    """(bytes, elements of an array or 0, name of the struct) of what a DIE is of."""
    if "DW_AT_type" not in die.attributes:
        return 0, 0, ""
    kind = die.get_DIE_from_attribute("DW_AT_type")
    if kind.tag in _PASSED:
        return _measure(kind)
    if kind.tag == "DW_TAG_array_type":
        count = 1
        for child in kind.iter_children():
            if child.tag == "DW_TAG_subrange_type":
                if (top := child.attributes.get("DW_AT_upper_bound")) is not None:
                    count *= int(top.value) + 1
                elif (length := child.attributes.get("DW_AT_count")) is not None:
                    count *= int(length.value)
        return _measure(kind)[0] * count, count, ""
    size = kind.attributes.get("DW_AT_byte_size")
    if size is None:
        return (_POINTER if kind.tag == "DW_TAG_pointer_type" else 0), 0, ""
    struct = _text(kind, "DW_AT_name") if kind.tag == "DW_TAG_structure_type" else ""
    return int(size.value), 0, struct
