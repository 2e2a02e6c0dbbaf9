"""Compiled BPF programs as data, and the cache that root loads them from."""

from __future__ import annotations

import os
import signal
import struct
import sys
import types
from pathlib import Path

import pytest

from profinfer.capture import compiler
from profinfer.capture.objectcache import ObjectCache, object_key
from profinfer.capture.objectcode import MapSpec, ObjectCode, ObjectProblem, unlinked
from profinfer.errors import EnvironmentProblem

# From 3.12 on Python warns of fork beside other threads, which numpy has.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")


def insn(code: int, registers: int = 0, immediate: int = 0) -> bytes:
    return struct.pack("<BBhi", code, registers, 0, immediate)


def load_map(fd: int) -> bytes:
    """r1 = map: two instructions."""
    return insn(0x18, 0x11, fd) + insn(0)


EXIT = insn(0x95)
PLAIN_NUMBER = insn(0x18, 0x01, 7) + insn(0, immediate=1)


@pytest.fixture
def code(tmp_path: Path) -> ObjectCode:
    made_by = tmp_path / "libcompiler.so"
    made_by.write_text("1")
    facts = made_by.stat()
    return ObjectCode(
        (MapSpec("a", 2, 4, 8, 1, 0), MapSpec("ring", 27, 0, 0, 4096, 0)),
        {"f": unlinked(load_map(7) + PLAIN_NUMBER + load_map(9) + EXIT, {9: 0, 7: 1})},
        ((str(made_by), facts.st_size, facts.st_mtime_ns),),
    )


# --- instructions -----------------------------------------------------------------------------


def test_links_to_other_descriptors(code: ObjectCode) -> None:
    assert code.functions["f"] == load_map(1) + PLAIN_NUMBER + load_map(0) + EXIT
    assert code.linked("f", [30, 40]) == load_map(40) + PLAIN_NUMBER + load_map(30) + EXIT


@pytest.mark.parametrize(
    "bad",
    [
        load_map(8),
        insn(0x18, 0x21) + insn(0),  # the address of a map's value
        insn(0x85, 0x10, 3),  # a call of another function of the program
    ],
)
def test_what_cannot_be_linked_is_refused(bad: bytes) -> None:
    with pytest.raises(ObjectProblem):
        unlinked(EXIT + bad, {7: 0})


def test_survives_as_bytes(code: ObjectCode) -> None:
    assert ObjectCode.from_bytes(code.to_bytes()) == code


@pytest.mark.parametrize("at", [0, 70, 200, -3])
def test_damage_is_noticed(code: ObjectCode, at: int) -> None:
    data = bytearray(code.to_bytes())
    data[at] ^= 1
    with pytest.raises(ObjectProblem):
        ObjectCode.from_bytes(bytes(data))


# --- the cache --------------------------------------------------------------------------------


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = tmp_path / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(base))
    return base


def test_gives_back_what_was_put(base: Path, code: ObjectCode) -> None:
    cache = ObjectCache.of_user()
    assert cache.folder == base / "profinfer" / "bpf"
    assert cache.get("k") is None
    cache.put("k", code)
    assert ObjectCache.of_user().get("k") == code
    assert (cache.folder / "k").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in cache.folder.iterdir()] == ["k"]
    cache.drop("k")
    assert cache.get("k") is None


def test_another_compiler_does_not_count(base: Path, code: ObjectCode) -> None:
    cache = ObjectCache.of_user()
    cache.put("k", code)
    Path(code.made_by[0][0]).write_text("22")
    assert cache.get("k") is None
    Path(code.made_by[0][0]).unlink()
    assert cache.get("k") is None


def test_what_others_can_write_is_not_read(base: Path, code: ObjectCode, tmp_path: Path) -> None:
    cache = ObjectCache.of_user()
    cache.put("k", code)
    assert cache.folder is not None
    file = cache.folder / "k"
    file.chmod(0o620)
    assert cache.get("k") is None
    file.chmod(0o600)
    assert cache.get("k") == code
    moved = tmp_path / "elsewhere"
    file.rename(moved)
    file.symlink_to(moved)
    assert cache.get("k") is None
    file.unlink()
    moved.rename(file)
    cache.folder.chmod(0o770)
    assert cache.get("k") is None


@pytest.mark.parametrize("which", ["", "profinfer", "profinfer/bpf"])
def test_folders_that_others_can_write_are_passed_over(base: Path, which: str) -> None:
    assert ObjectCache.of_user().folder == base / "profinfer" / "bpf"
    (base / which).chmod(0o777)
    found = ObjectCache.of_user().folder
    assert found is None or base not in found.parents


@pytest.mark.skipif(os.geteuid() != 0, reason="gives a folder to somebody else")
def test_root_makes_nothing_in_a_folder_of_the_caller(base: Path) -> None:
    """Sudo that keeps XDG_CACHE_HOME."""
    base.mkdir()
    os.chown(base, 65534, 65534)
    found = ObjectCache.of_user().folder
    assert found is None or base not in found.parents
    assert list(base.iterdir()) == []


def test_damaged_and_half_written_files_count_as_none(base: Path, code: ObjectCode) -> None:
    cache = ObjectCache.of_user()
    cache.put("k", code)
    assert cache.folder is not None
    file = cache.folder / "k"
    file.write_bytes(file.read_bytes()[:-20])
    assert cache.get("k") is None
    file.write_bytes(b"")
    assert cache.get("k") is None


def test_only_the_latest_are_kept(base: Path, code: ObjectCode) -> None:
    cache = ObjectCache.of_user()
    assert cache.folder is not None
    for n in range(70):
        cache.put(f"k{n}", code)
        os.utime(cache.folder / f"k{n}", (n, n))
    cache.put("last", code)
    names = {path.name for path in cache.folder.iterdir()}
    assert len(names) <= 65
    assert {"last", "k69"} <= names
    assert "k0" not in names


def test_without_a_folder_there_is_no_cache(code: ObjectCode) -> None:
    cache = ObjectCache(None)
    cache.put("k", code)
    assert cache.get("k") is None


def test_the_key_depends_on_everything(tmp_path: Path) -> None:
    (tmp_path / "a.h").write_text("1")
    keys = [object_key("text", ["-DA=1"], tmp_path)]
    keys.append(object_key("text2", ["-DA=1"], tmp_path))
    keys.append(object_key("text", ["-DA=2"], tmp_path))
    (tmp_path / "a.h").write_text("2")
    keys.append(object_key("text", ["-DA=1"], tmp_path))
    keys.append(object_key("text", ["-DA=1"], None))
    assert len(set(keys)) == len(keys)
    assert object_key("text", ["-DA=1"], tmp_path) == keys[3]


# --- the compiling child --------------------------------------------------------------


@pytest.mark.parametrize(
    ("module", "says"),
    [(None, "BCC's Python bindings are missing"), (types.ModuleType("bcc"), "namesake")],
)
def test_missing_bcc(
    module: types.ModuleType | None, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bcc", module)
    with pytest.raises(EnvironmentProblem, match=says) as caught:
        compiler.compile_text("", [], None)
    assert caught.value.hint and "python3-bpfcc" in caught.value.hint


def test_a_compiler_that_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(compiler, "_compile", crash)
    with pytest.raises(EnvironmentProblem, match="compiler was killed by SIGKILL"):
        compiler.compile_text("", [], None)


def test_the_child_holds_nothing_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gate that the child kept open would not close when the recorder dies."""
    reader, writer = os.pipe()
    gate = os.fstat(writer).st_ino

    def look(*_: object) -> None:
        held = [f"/proc/self/fd/{name}" for name in os.listdir("/proc/self/fd")]
        names = [os.readlink(path) for path in held if os.path.exists(path)]
        raise EnvironmentProblem("\n".join(names))

    monkeypatch.setattr(compiler, "_compile", look)
    with pytest.raises(EnvironmentProblem) as caught:
        compiler.compile_text("", [], None)
    os.close(reader)
    os.close(writer)
    assert f"pipe:[{gate}]" not in caught.value.message
    assert "/dev/null" in caught.value.message


def test_the_child_survives_files_that_are_closed_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of the parent's is collected in the child, which has got a file by then."""
    late = [open(os.devnull) for _ in range(20)]

    def make(*_: object) -> None:
        with open(os.devnull):
            late.clear()
            os.lseek(os.open(__file__, os.O_RDONLY), 0, os.SEEK_END)
        raise EnvironmentProblem("well")

    monkeypatch.setattr(compiler, "_compile", make)
    with pytest.raises(EnvironmentProblem, match="well"):
        compiler.compile_text("", [], None)
    for file in late:
        file.close()
