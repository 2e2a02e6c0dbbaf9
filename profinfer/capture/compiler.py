"""Layer 4: the only import of bcc, and that in a child process: C text becomes object code.

BCC's library holds a whole clang; the process that used it stays at some 170 MB. So a forked child
compiles and hands back plain data. Nothing of BCC reaches the recorder but that and its errors.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from profinfer.capture.objectcode import MapSpec, ObjectCode, ObjectProblem, unlinked
from profinfer.capture.signals import end_with
from profinfer.errors import EnvironmentProblem

_GOOD, _BAD = b"+", b"-"
_COMPILER_FILES = ("libbcc", "libLLVM", "libclang")


def compile_text(text: str, cflags: list[str], headers: Path | None) -> ObjectCode:
    """Compile in a child process and wait for it.

    Args:
        text: C source.
        cflags: ``-D`` definitions.
        headers: header tree BCC compiles against, None for the running kernel's own.

    Raises:
        EnvironmentProblem: BCC is missing, or does not compile it.
    """
    reader, writer = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        _child(writer, parent, text, cflags, headers)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        answer = answers.read()
    _, status = os.waitpid(child, 0)
    if answer[:1] == _GOOD:
        return ObjectCode.from_bytes(answer[1:])
    if answer[:1] == _BAD:
        raise EnvironmentProblem(**json.loads(answer[1:]))
    how = f"ended with {status:#x}"
    if os.WIFSIGNALED(status):
        how = f"was killed by {signal.Signals(os.WTERMSIG(status)).name}"
    raise EnvironmentProblem(f"BCC's compiler {how}", hint="profinfer doctor")


def _child(writer: int, parent: int, text: str, cflags: list[str], headers: Path | None) -> None:
    """Runs in the child only; never returns."""
    try:
        end_with(parent, signal.SIGKILL)
        # What is not ours must end with the recorder: the target's gate, the trace, a terminal.
        # The numbers stay taken: a file of the parent's that is only now collected as garbage
        # would close the number, and with it whatever of ours had got it.
        null = os.open(os.devnull, os.O_RDWR)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) != writer:
                os.dup2(null, int(name))
        try:
            answer = _GOOD + _compile(text, cflags, headers).to_bytes()
        except EnvironmentProblem as error:
            answer = _BAD + json.dumps({"message": error.message, "hint": error.hint}).encode()
        with os.fdopen(writer, "wb") as out:
            out.write(answer)
        os._exit(0)
    finally:
        os._exit(1)


@contextlib.contextmanager
def _stderr_kept(log: list[str]) -> Iterator[None]:
    """BCC's C++ side writes the compiler's messages straight to descriptor 2."""
    saved = os.dup(2)
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            sink.seek(0)
            log.extend(sink.read().decode(errors="replace").splitlines())


def _import_bcc(headers: Path | None) -> Any:
    if headers is not None:
        # libbcc reads it from the environment when it compiles; without it BCC looks for
        # kernel headers, which few machines have.
        os.environ["BCC_KERNEL_SOURCE"] = str(headers)
    try:
        import bcc
    except ImportError as error:
        raise EnvironmentProblem(
            "BCC's Python bindings are missing",
            hint="apt install python3-bpfcc, and a venv of /usr/bin/python3 made with "
            "--system-site-packages",
        ) from error
    if not hasattr(bcc, "BPF"):
        raise EnvironmentProblem(
            "the installed 'bcc' is not the BPF Compiler Collection but a namesake from PyPI",
            hint="pip uninstall bcc && apt install python3-bpfcc",
        )
    return bcc


def _compile(text: str, cflags: list[str], headers: Path | None) -> ObjectCode:
    warnings.simplefilter("ignore")  # bcc warns of str where it wants bytes
    log: list[str] = []
    try:
        with _stderr_kept(log):
            bcc = _import_bcc(headers)
            module = bcc.BPF(text=text, cflags=cflags).module
            return _extract(bcc.lib, module)
    except EnvironmentProblem:
        raise
    except Exception as error:
        said = next((line for line in log if "error:" in line), None)
        raise EnvironmentProblem(
            f"BCC could not compile the probes: {said or error}",
            hint="profinfer doctor; profinfer record --print-bpf shows the program",
        ) from error


def _extract(lib: Any, module: int) -> ObjectCode:
    """Maps and functions of a module: its instructions hold descriptors of maps made for it."""
    handle, number = ctypes.c_void_p(module), ctypes.c_ulonglong
    lib.bpf_num_tables.restype = ctypes.c_size_t
    lib.bpf_table_name.restype = ctypes.c_char_p
    maps: list[MapSpec] = []
    places: dict[int, int] = {}
    for n in range(lib.bpf_num_tables(handle)):
        name = lib.bpf_table_name(handle, number(n))
        descriptor = lib.bpf_table_fd(handle, name)
        places[descriptor] = len(maps)
        maps.append(_spec(name.decode(), descriptor))
    functions = {}
    for n in range(lib.bpf_num_functions(handle)):
        name = lib.bpf_function_name(handle, n)
        size = lib.bpf_function_size(handle, name)
        code = ctypes.string_at(lib.bpf_function_start(handle, name), size)
        functions[name.decode()] = unlinked(code, places)
    return ObjectCode(tuple(maps), functions, _compiler_files())


def _spec(name: str, descriptor: int) -> MapSpec:
    """What the kernel says of a map that exists."""
    facts = dict(
        line.split(":", 1)
        for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text().splitlines()
        if ":" in line
    )
    names = ("map_type", "key_size", "value_size", "max_entries", "map_flags")
    try:
        return MapSpec(name, *(int(facts[key], 0) for key in names))
    except KeyError as missing:
        raise ObjectProblem(f"the kernel does not say {missing} of the map {name}") from missing


def _compiler_files() -> tuple[tuple[str, int, int], ...]:
    """The files that made this object code: another version of one may make another."""
    loaded = {
        parts[5]
        for parts in (line.split(maxsplit=5) for line in open("/proc/self/maps"))
        if len(parts) == 6 and parts[5].rsplit("/", 1)[-1].startswith(_COMPILER_FILES)
    }
    found = []
    for path in sorted({name.strip() for name in loaded} | {sys.modules["bcc"].__file__ or ""}):
        facts = os.stat(path)
        found.append((path, facts.st_size, facts.st_mtime_ns))
    return tuple(found)
