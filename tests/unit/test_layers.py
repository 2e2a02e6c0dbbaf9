"""The layer table, enforced: who may import whom, and what must never load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "profinfer"

# part -> (layer, third party that it may import)
LAYERS: dict[str, tuple[int, set[str]]] = {
    "errors": (0, set()),
    "units": (0, set()),
    "_version": (0, set()),
    "elf": (1, {"elftools", "capstone"}),
    "engine": (1, set()),
    "machine": (1, {"numpy"}),
    "probes": (2, set()),
    "tracefile": (3, {"numpy"}),
    "capture": (4, {"bcc"}),
    "model": (5, {"numpy", "pandas"}),
    "analysis": (6, {"numpy", "pandas"}),
    "render": (7, {"rich", "perfetto", "numpy", "pandas", "google", "pyarrow"}),
    "cli": (8, {"click", "rich"}),
    # The package itself and python -m: the top.
    "__init__": (9, set()),
    "__main__": (9, set()),
}
# Parts that may import only these, besides their own.
ONLY: dict[str, set[str]] = {
    "engine": {"errors", "units", "_version"},
    "machine": {"errors", "units", "_version"},
    "model": {"errors", "units", "_version", "tracefile", "engine"},
    "analysis": {"errors", "units", "_version", "machine", "model"},
    "render": {"errors", "units", "_version", "model", "analysis"},
}


def part_of(path: Path) -> str:
    inside = path.relative_to(PACKAGE).parts
    return inside[0] if len(inside) > 1 else path.stem


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, only for type checking) of every import anywhere in a file."""
    tree = ast.parse(path.read_text())
    typing_only: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            typing_only.update(n for child in node.body for n in ast.walk(child))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node in typing_only) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module
            if node.module == "profinfer":
                found += [(f"profinfer.{alias.name}", node in typing_only) for alias in node.names]
            else:
                found.append((node.module, node in typing_only))
    return found


def violations(path: Path, part: str) -> list[str]:
    layer, third_party = LAYERS[part]
    found = []
    for module, for_types in imports(path):
        names = module.split(".")
        if names[0] == "profinfer":
            other = names[1] if len(names) > 1 else "__init__"
            other = other if other in LAYERS else "__init__"
            if other == part or other == "__init__" == part:
                continue
            if LAYERS[other][0] > layer and not (layer == 9):
                found.append(f"{path}: layer {layer} imports {module} of layer {LAYERS[other][0]}")
            elif part in ONLY and other not in ONLY[part] and other != "__init__":
                found.append(f"{path}: {part} may not import {module}")
        elif names[0] not in sys.stdlib_module_names and not for_types:
            if names[0] not in third_party:
                found.append(f"{path}: {part} may not import {module}")
            elif names[0] == "bcc" and path.name != "compiler.py":
                found.append(f"{path}: only capture/compiler.py imports bcc")
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_part_is_in_the_table() -> None:
    assert {part_of(path) for path in FILES} <= set(LAYERS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_imports_upwards(path: Path) -> None:
    assert violations(path, part_of(path)) == []


@pytest.mark.parametrize(
    ("part", "line"),
    [
        ("tracefile", "from profinfer.model.trace import Trace"),
        ("tracefile", "import pandas"),
        ("model", "from profinfer.elf.symbols import ElfImage"),
        ("model", "def f():\n    import bcc"),
        ("capture", "import bcc"),
        ("analysis", "from profinfer.tracefile.reader import TraceReader"),
        ("render", "from profinfer import cli"),
        ("units", "from profinfer import errors, cli"),
        ("cli", "import requests"),
    ],
)
def test_a_planted_edge_is_caught(tmp_path: Path, part: str, line: str) -> None:
    planted = tmp_path / "planted.py"
    planted.write_text(line)
    assert violations(planted, part)


def test_every_module_says_its_layer() -> None:
    silent = []
    for path in FILES:
        part = part_of(path)
        doc = ast.get_docstring(ast.parse(path.read_text())) or ""
        if LAYERS[part][0] < 9 and path.name != "_version.py":
            wanted = f"Layer {LAYERS[part][0]}:"
            if not doc.startswith(wanted):
                silent.append(f"{path.relative_to(PACKAGE)}: docstring should begin {wanted!r}")
    assert silent == []


def modules_below(*parts: str) -> list[str]:
    names = []
    for part in parts:
        for path in sorted((PACKAGE / part).rglob("*.py")):
            dotted = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            names.append(dotted.removesuffix(".__init__"))
    return names


def test_offline_parts_never_load_what_recording_needs() -> None:
    names = modules_below("tracefile", "model", "analysis", "render", "cli")
    assert "profinfer.tracefile.reader" in names
    code = (
        f"import importlib, sys\nfor name in {names!r}:\n    importlib.import_module(name)\n"
        "print([m for m in ('bcc', 'elftools', 'capstone') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
