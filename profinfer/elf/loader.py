"""Layer 1: the dynamic loader's hook that debuggers use.

ld.so calls ``_dl_debug_state`` (glibc, musl) after it has mapped libraries and before their
constructors run; gdb sets a breakpoint there for the same purpose.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from profinfer.elf.symbols import ElfImage
from profinfer.errors import TargetError

HOOK = "_dl_debug_state"


@dataclass(frozen=True)
class LoaderHook:
    """Where the loader says that the set of libraries has changed."""

    path: Path
    offset: int


def loader_hook(program: Path) -> LoaderHook:
    """The hook of the loader that a program asks for.

    Raises:
        TargetError: the program is static, or its loader has no such function.
    """
    image = ElfImage(program)
    if image.section(".interp") is None:
        raise TargetError(
            f"{program}: no ggml or llama.cpp function inside, and a static program loads none",
            "give a program built with llama.cpp or ggml, such as ./llama-completion",
        )
    loader = Path(image.table(".interp").split(b"\0")[0].decode())
    linker = ElfImage(loader)
    function = linker.function(HOOK)
    if function is None:
        raise TargetError(f"{loader}: the loader has no {HOOK} to watch libraries with")
    return LoaderHook(linker.path, linker.file_offset(function.address))
