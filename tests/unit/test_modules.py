"""From a program's name to its libraries, as the loader finds them."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from profinfer.elf.modules import find_executable, open_program
from profinfer.errors import TargetError

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


def build(out: Path, source: str, *flags: str | Path) -> Path:
    code = out.with_suffix(".c")
    code.write_text(source)
    subprocess.run(["cc", "-O1", "-o", out, code, *flags], check=True)
    return out


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """main -> libmid.so (RUNPATH) -> libleaf.so (RUNPATH $ORIGIN/deep)."""
    deep = tmp_path / "deep"
    deep.mkdir()
    shared = ("-shared", "-fPIC")
    leaf = build(
        deep / "libleaf.so", "const char *ggml_op_name(int i) { return 0; }", *shared,
        "-Wl,-soname,libleaf.so",
    )  # fmt: skip
    mid = build(
        tmp_path / "libmid.so",
        "const char *ggml_op_name(int); int llama_decode(void) { return !ggml_op_name(1); }",
        *shared, leaf, "-Wl,-rpath,$ORIGIN/deep", "-Wl,-soname,libmid.so",
    )  # fmt: skip
    return build(
        tmp_path / "main", "int llama_decode(void); int main(void) { return llama_decode(); }",
        mid, f"-Wl,-rpath-link,{deep}", "-Wl,-rpath,$ORIGIN",
    )  # fmt: skip


@needs_cc
def test_libraries_are_found_through_runpath(program: Path) -> None:
    found = open_program(program)
    assert {(i.elf.path.name, i.roles) for i in found.images} == {
        ("libmid.so", ("llama",)),
        ("libleaf.so", ("ggml-base",)),
    }
    assert [o.path.name for o in found.others] == ["main"] and found.missing == ()


@needs_cc
def test_library_path_and_missing_libraries(program: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (program.parent / "libmid.so").rename(elsewhere / "libmid.so")
    assert open_program(program).missing == ("libmid.so",)
    found = open_program(program, library_path=str(elsewhere))
    assert found.missing == ("libleaf.so",) and found.images[0].roles == ("llama",)


@needs_cc
def test_scripts_lead_to_their_interpreter(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "run"
    script.write_text(f"#!{program}\n")
    assert find_executable(script) == program
    monkeypatch.setenv("PATH", str(tmp_path))
    script.write_text("#!/usr/bin/env -S main -x\n")
    assert find_executable(script) == program
    assert find_executable("main") == program
    script.write_text("#!/no/such/thing\n")
    with pytest.raises(TargetError, match="interpreter /no/such/thing does not exist"):
        find_executable(script)
    script.write_text(f"#!{script}\n")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(TargetError, match="without end"):
        find_executable(script)


def test_a_name_that_is_nowhere() -> None:
    with pytest.raises(TargetError, match="not found") as caught:
        find_executable("no-such-program-anywhere")
    assert caught.value.hint
