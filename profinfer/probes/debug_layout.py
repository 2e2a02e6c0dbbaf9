"""Layer 2: the engine's layout as its debug information has it.

It is the first source, where there is any. What the engine's code tells still has to agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from profinfer.elf.dwarf import DebugTypes, Struct, read_types
from profinfer.elf.modules import EngineImage
from profinfer.engine.catalog import Layout, layouts

# Source files that use the structs. All of ggml's are C or short C++.
_UNITS = ("ggml.c", "ggml-cpu.c", "ggml-backend.c", "ggml-backend.cpp")
_BATCH_UNITS = ("llama-batch.cpp", "llama-context.cpp", "llama.cpp")
_STRUCTS = (
    "ggml_tensor",
    "ggml_cgraph",
    "ggml_cplan",
    "ggml_backend",
    "ggml_backend_i",
    "ggml_backend_buffer",
)
_POINTER = 8  # the second function of the interface, see engine/layouts.toml
_FLAGS = "ggml_tensor_flag"
_TENSOR = (
    *("type", "buffer", "ne", "nb", "op", "op_params", "flags"),
    *("src", "view_src", "view_offs", "data", "name"),
)
_CGRAPH = ("n_nodes", "n_leafs", "nodes", "leafs")


def debug_layout(images: Sequence[EngineImage]) -> Layout | None:
    """The layout that the compiler wrote down; None if a struct that is needed is not there."""
    structs: dict[str, Struct] = {}
    enums: dict[str, dict[str, int]] = {}
    sources: list[str] = []
    for image in images:
        told = _of_image(image)
        if told is None:
            continue
        structs |= told.structs
        enums |= told.enums
        sources.append(Path(told.source).name)
    if any(name not in structs for name in _STRUCTS):
        return None
    tensor, cgraph = structs["ggml_tensor"], structs["ggml_cgraph"]
    backend, buffer = structs["ggml_backend"], structs["ggml_backend_buffer"]
    try:
        fields = {name: tensor.members[name].offset for name in _TENSOR}
        found = Layout(
            id="debug-information",
            evidence=f"debug information (DWARF) in {', '.join(sources)}",
            tensor_size=tensor.size,
            buffer_size=(buffer.size + 7) // 8 * 8,
            tensor=fields
            | {
                "op_params_size": tensor.members["op_params"].size,
                "max_src": tensor.members["src"].count,
                "name_size": tensor.members["name"].size,
            },
            cgraph={n: cgraph.members[n].offset for n in (*_CGRAPH, "uid") if n in cgraph.members},
            cplan={"n_threads": structs["ggml_cplan"].members["n_threads"].offset},
            backend={
                "guid": backend.members["guid"].offset,
                "get_name": backend.members["iface"].offset
                + structs["ggml_backend_i"].members["get_name"].offset,
            },
            buffer={
                "usage": buffer.members["usage"].offset,
                "owner": buffer.members["iface"].offset + _POINTER,
            },
            batch=_batch(structs),
            flags=_flags(enums),
        )
    except KeyError:
        return None  # an engine whose structs lack what every known one has
    return found if set(_CGRAPH) <= found.cgraph.keys() else None


def _of_image(image: EngineImage) -> DebugTypes | None:
    wanted: list[str] = []
    units: tuple[str, ...] = ()
    if {"ggml-base", "ggml-cpu"} & set(image.roles):
        wanted, units = [*_STRUCTS, _FLAGS], _UNITS
    if "llama" in image.roles:
        wanted, units = [*wanted, "llama_batch"], (*units, *_BATCH_UNITS)
    return read_types(image.elf, wanted, units) if wanted else None


def _batch(structs: dict[str, Struct]) -> dict[str, int]:
    """Part of the public interface and the same since 2023, so libllama may lack debug symbols."""
    names = ("n_tokens", "token", "embd", "pos")
    batch = structs.get("llama_batch")
    if batch is None:
        return dict(layouts()[0].batch)
    return {name: batch.members[name].offset for name in names}


def _flags(enums: dict[str, dict[str, int]]) -> dict[str, int]:
    """Compilers leave out an enumeration that no variable has; the values are public and old.

    Whether the engine uses a flag is read from its code.
    """
    told = enums.get(_FLAGS)
    if not told:
        return dict(layouts()[0].flags)
    return {name.removeprefix("GGML_TENSOR_FLAG_").lower(): v for name, v in told.items()}
