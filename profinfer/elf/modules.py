"""Layer 1: a program and the libraries it is linked with, and which of them hold an engine.

Owns the search for libraries, the way the loader does it. Libraries that a program loads
later (dlopen) are not found here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from profinfer.elf.debugfile import matches
from profinfer.elf.disasm import Decoder
from profinfer.elf.symbols import ElfImage
from profinfer.errors import TargetError

# Role of an image -> a function only it defines. One image can have several roles (static
# programs, Python extension modules).
ROLES = {
    "llama": "llama_decode",
    "ggml-base": "ggml_op_name",
    "ggml-cpu": "ggml_graph_compute",
    "common": "_Z21common_sampler_sample",
    "ggml-blas": "ggml_backend_blas_reg",
    "ggml-rpc": "ggml_backend_rpc_reg",
    "ggml-vulkan": "ggml_backend_vk_reg",
    "ggml-cuda": "ggml_backend_cuda_reg",  # ROCm too
    "ggml-opencl": "ggml_backend_opencl_reg",
    "ggml-hexagon": "ggml_backend_hexagon_reg",
    "ggml-sycl": "ggml_backend_sycl_reg",
    "ggml-cann": "ggml_backend_cann_reg",
    "blas": "cblas_sgemm",  # the library behind a backend, no engine
    "server": "_ZN12server_queue4post",
}
# An engine, or a part of it that computes or runs others.
_ENGINE = {"llama", "ggml-base", "ggml-cpu", "common"}
_DEFAULT_FOLDERS = ("/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib")
# Libraries of the system: no engine in them, and libstdc++ is slow to read.
_SYSTEM = re.compile(r"^(ld-linux.*|lib(c|m|dl|rt|pthread|gcc_s|stdc\+\+|gomp|util|resolv))\.so")
# Texts inside every program that llama.cpp was linked into: ggml's, and a tensor's name.
_ENGINE_TEXTS = (b"GGML_ASSERT", b"token_embd")


@dataclass(frozen=True)
class EngineImage:
    """An image of a program with the roles it plays in an engine."""

    elf: ElfImage
    roles: tuple[str, ...]

    @cached_property
    def decoder(self) -> Decoder:
        """Decoder of the image's code, shared by all who look at it."""
        return Decoder(self.elf)


@dataclass(frozen=True)
class Program:
    """An executable and every library it is linked with.

    Attributes:
        path: the executable, resolved on PATH and through a script's first line.
        images: those with a role in an engine.
        others: the rest, without the system's own libraries.
        missing: names of libraries that were not found.
    """

    path: Path
    images: tuple[EngineImage, ...]
    others: tuple[ElfImage, ...]
    missing: tuple[str, ...]


def open_program(
    program: str | Path,
    *,
    library_path: str | None = None,
    debug_files: Sequence[str | Path] = (),
) -> Program:
    """Find a program and its libraries.

    Args:
        program: a path, or a name to look up on PATH.
        library_path: the target's LD_LIBRARY_PATH; this process's by default.
        debug_files: files with the symbols that were stripped from the program or its libraries,
            besides those in the usual places.

    Raises:
        TargetError: it cannot be read, or is no program for this tool.
    """
    path = find_executable(program)
    main = ElfImage(path)
    search = os.environ.get("LD_LIBRARY_PATH", "") if library_path is None else library_path
    found: dict[Path, ElfImage] = {main.path: main}
    missing: list[str] = []
    queue: list[tuple[ElfImage, tuple[str, ...]]] = [(main, (main.rpath,))]
    while queue:
        image, inherited = queue.pop(0)
        for name in image.needed:
            if _SYSTEM.match(name):
                continue
            library = _find_library(name, image, inherited, search)
            if library is None:
                if name not in missing:
                    missing.append(name)
            elif library.path not in found:
                found[library.path] = library
                queue.append((library, (*inherited, library.rpath)))
    for given in debug_files:
        attach_debug_file(given, list(found.values()))
    engine = [EngineImage(image, roles) for image in found.values() if (roles := roles_of(image))]
    if not is_engine(engine):
        _refuse_stripped(found.values())
    known = {i.elf.path for i in engine}
    others = tuple(image for image in found.values() if image.path not in known)
    return Program(main.path, tuple(engine), others, tuple(missing))


def _refuse_stripped(images: Iterable[ElfImage]) -> None:
    """An engine linked into a program and stripped has no name left to begin with."""
    for image in images:
        if not image.section(".symtab") and all(image.holds(text) for text in _ENGINE_TEXTS):
            raise TargetError(
                f"{image.path}: llama.cpp is linked into it, but its functions' names are stripped",
                "record the program as it was before strip, or give its --debug-file",
            )


def attach_debug_file(given: str | Path, images: Sequence[ElfImage]) -> None:
    """Give a debug file to the image that it was made of.

    Raises:
        TargetError: it cannot be read, or was made of none of them.
    """
    debug = ElfImage(given)
    fitting = [image for image in images if matches(image, debug)]
    if not fitting:
        raise TargetError(
            f"{given}: not the debug file of this program or of one of its libraries",
            "it must have the same build id (see: readelf -n)",
        )
    for image in fitting:
        image.debug = debug


def is_engine(images: Iterable[EngineImage]) -> bool:
    """Whether some of these images make an engine; a lone backend or BLAS library does not."""
    return any(_ENGINE & set(image.roles) for image in images)


def roles_of(image: ElfImage) -> tuple[str, ...]:
    """The parts of an engine that an image holds."""
    roles = []
    for role, function in ROLES.items():
        if function in image.functions or (
            function.startswith("_Z") and any(f.startswith(function) for f in image.functions)
        ):
            roles.append(role)
    return tuple(roles)


def find_executable(program: str | Path) -> Path:
    """The ELF file that runs when ``program`` is typed: PATH and scripts resolved.

    Raises:
        TargetError: there is none.
    """
    text = str(program)
    if "/" not in text and not Path(text).exists():
        found = shutil.which(text)
        if found is None:
            raise TargetError(f"{text}: not found", "give a path, such as ./llama-completion")
        text = found
    for _ in range(4):  # a script may name another script
        interpreter = _interpreter(Path(text))
        if interpreter is None:
            return Path(text)
        text = interpreter
    raise TargetError(f"{program}: scripts that run one another without end")


def _interpreter(path: Path) -> str | None:
    """What a ``#!`` line runs (through env as well), or None if the file is no script."""
    try:
        with path.open("rb") as file:
            line = file.readline(256)
    except OSError:
        return None  # ElfImage says it better
    if not line.startswith(b"#!"):
        return None
    words = line[2:].decode("utf-8", "replace").split()
    if words and Path(words[0]).name == "env":
        words = [w for w in words[1:] if not w.startswith("-") and "=" not in w]
    if not words:
        raise TargetError(f"{path}: a script whose first line names no program")
    found = shutil.which(words[0])
    if found is None:
        raise TargetError(f"{path}: its interpreter {words[0]} does not exist")
    return found


def _find_library(
    name: str, image: ElfImage, inherited: tuple[str, ...], search: str
) -> ElfImage | None:
    """ld.so's order: RPATH (if no RUNPATH), LD_LIBRARY_PATH, RUNPATH, cache, default folders."""
    folders: list[str] = []
    if not image.runpath:
        folders += [f for r in reversed(inherited) for f in _expand(r, image)]
    folders += [f for f in re.split("[:;]", search) if f] + _expand(image.runpath, image)
    candidates = [Path(name)] if "/" in name else [Path(f) / name for f in folders]
    cached = _loader_cache().get((name, image.machine))
    if cached:
        candidates.append(Path(cached))
    candidates += [Path(f) / name for f in _DEFAULT_FOLDERS]
    for path in candidates:
        if not path.is_file():
            continue
        try:
            library = ElfImage(path)
        except TargetError:
            continue  # the loader, too, passes over libraries of another kind
        if library.machine == image.machine:
            return library
    return None


def _expand(paths: str, image: ElfImage) -> list[str]:
    origin = str(image.path.parent)
    return [
        p.replace("$ORIGIN", origin).replace("${ORIGIN}", origin) or "."
        for p in paths.split(":")
        if p
    ]


_cache: dict[tuple[str, str], str] | None = None


def _loader_cache() -> dict[tuple[str, str], str]:
    """(library name, machine) -> path, as ``ldconfig -p`` prints ld.so.cache."""
    global _cache
    if _cache is None:
        _cache = {}
        ldconfig = shutil.which("ldconfig", path=os.environ.get("PATH", "") + ":/sbin:/usr/sbin")
        if ldconfig:
            try:
                text = subprocess.run(
                    [ldconfig, "-p"], capture_output=True, text=True, timeout=10, check=False
                ).stdout
            except (OSError, subprocess.TimeoutExpired):
                text = ""
            for match in re.finditer(r"^\s*(\S+) \(([^)]*)\) => (\S+)$", text, re.MULTILINE):
                name, kind, path = match.groups()
                if "x86-64" in kind:
                    _cache.setdefault((name, "x86_64"), path)
                elif "AArch64" in kind:
                    _cache.setdefault((name, "aarch64"), path)
    return _cache
