"""``profinfer probes`` as a user sees it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

needs_build = pytest.mark.skipif(
    shutil.which("cc") is None or shutil.which("make") is None, reason="needs cc and make"
)


@needs_build
def test_the_page_fits_80_columns(call_profinfer: Any, fake_ggml: Path) -> None:
    done = call_profinfer("probes", fake_ggml, "--tokens", "3")
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    text = done.stdout
    parts = ["llama_decode", "an operator ends", "call ggml_barrier", "emulated", "index in"]
    parts += ["0.25.3", "llama_process", "no such function", "One probe an operator"]
    for part in parts:
        assert part in text, part


@needs_build
def test_stack_places_are_not_taken_for_markup(call_profinfer: Any, build_fake_ggml: Any) -> None:
    program = build_fake_ggml(cflags="-O0")
    text = call_profinfer("probes", program).stdout
    assert "index in [rbp-" in text


@needs_build
@pytest.mark.parametrize("level", ["token", "graph", "op"])
def test_levels(call_profinfer: Any, fake_ggml: Path, level: str) -> None:
    done = call_profinfer("probes", "--level", level, fake_ggml)
    assert done.returncode == 0
    assert ("an operator ends" in done.stdout) == (level == "op")
    assert ("ggml_graph_compute" in done.stdout) == (level != "token")


@needs_build
def test_json(run_profinfer: Any, fake_ggml: Path) -> None:
    data = json.loads(run_profinfer("probes", "--format", "json", fake_ggml).stdout)
    assert data["plan"]["ops"]["mode"] == "site"
    assert data["engine"]["layout"]["tensor"]["name"] == 256
    assert data["engine"]["images"][0]["build_id"]
    assert {"id", "role", "function", "address", "insn", "cost_ns"} <= set(
        data["plan"]["probes"][0]
    )


def test_programs_that_are_none(call_profinfer: Any, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello\n")
    (tmp_path / "empty").touch()
    for target, message in [
        ("/bin/ls", "no ggml or llama.cpp function inside"),
        (tmp_path / "text", "not an ELF program"),
        (tmp_path / "empty", "the file is empty"),
        (tmp_path / "missing", "no such file"),
        (tmp_path, "a folder, not a program"),
        ("no-such-program-anywhere", "not found"),
    ]:
        done = call_profinfer("probes", target)
        assert done.returncode == 1 and done.stdout == ""
        lines = done.stderr.splitlines()
        assert message in lines[0] and lines[0].startswith("profinfer: ")
        assert len(lines) <= 2 and "Traceback" not in done.stderr
