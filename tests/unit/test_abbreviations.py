"""Abbreviations of debug information, decoded one by one, are what pyelftools decodes."""

from __future__ import annotations

import subprocess

import pytest
from elftools.dwarf.abbrevtable import AbbrevTable

from profinfer.elf.dwarf import _Abbreviations, read_types
from profinfer.elf.symbols import ElfImage

PROGRAM = """
enum colour { red, green = 3 };
struct pair { int a; const char *b[4]; enum colour c; };
static inline int twice(int x) { int y = x * 2; return y; }
int main(int n, char **v) { struct pair p = { n, { v[0] }, green }; return twice(p.a) + p.c; }
"""


@pytest.fixture(scope="module", params=["-gdwarf-4", "-gdwarf-5", "-gdwarf-5 -O2"])
def image(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> ElfImage:
    folder = tmp_path_factory.mktemp("dwarf")
    (folder / "a.c").write_text(PROGRAM)
    (folder / "b.c").write_text(PROGRAM.replace("main", "other"))
    command = ["cc", *request.param.split(), "-o", folder / "program", "a.c", "b.c"]
    subprocess.run(command, cwd=folder, check=True)
    return ElfImage(folder / "program")


def test_every_declaration_is_the_same(image: ElfImage) -> None:
    dwarf = image.dwarf
    stream = dwarf.debug_abbrev_sec.stream
    stream.seek(0)
    data = stream.read()
    offsets = {unit["debug_abbrev_offset"] for unit in dwarf.iter_CUs()}
    assert len(offsets) >= 2
    for offset in offsets:
        whole = AbbrevTable(dwarf.structs, stream, offset)
        ours = _Abbreviations(dwarf, data, offset)
        codes = list(whole._abbrev_map)
        assert len(codes) > 8
        for code in [*reversed(codes), *codes]:
            mine, theirs = ours.get_abbrev(code), whole.get_abbrev(code)
            assert mine["tag"] == theirs["tag"]
            assert mine.has_children() == theirs.has_children()
            assert list(mine.iter_attr_specs()) == list(theirs.iter_attr_specs())
        with pytest.raises(KeyError):
            ours.get_abbrev(max(codes) + 1)


def test_types_are_found_in_the_unit_asked_for(image: ElfImage) -> None:
    found = read_types(image, ["pair", "colour"], ["b.c"])
    assert found is not None
    assert found.structs["pair"].size == 48
    assert found.structs["pair"].members["b"].count == 4
    assert found.enums["colour"] == {"red": 0, "green": 3}
    nothing = read_types(image, ["pair"], ["c.c"])
    assert nothing is not None and not nothing.structs
