"""Layer 1: backends that an engine loads while it starts, as ggml's registry looks for them.

A program whose CPU backend is linked may still load others by dlopen (GGML_BACKEND_PATH, or
libggml-*.so beside it): then it has to be looked at once they are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from profinfer.elf.modules import Program

# The registry's loaders; without one of them no plug-in is looked for.
_LOADERS = ("ggml_backend_load_all_from_path", "ggml_backend_load_all")


def plugins(program: Program, environment: Mapping[str, str], cwd: Path) -> Iterator[Path]:
    """Backend libraries that the program will load besides those that it is linked with.

    Args:
        program: the program.
        environment: what it will run with.
        cwd: where it will run.
    """
    images = [*(image.elf for image in program.images), *program.others]
    if not any(image.function(loader) for image in images for loader in _LOADERS):
        return
    linked = {image.path.resolve() for image in images}
    named = environment.get("GGML_BACKEND_PATH")
    if named and Path(cwd, named).is_file():
        yield Path(cwd, named)
    for folder in dict.fromkeys((program.path.resolve().parent, cwd.resolve())):
        for path in sorted(folder.glob("libggml-*.so")):
            if path.resolve() not in linked:
                yield path
