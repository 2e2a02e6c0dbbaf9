from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from builders import TraceBuilder, sample_run
from click.testing import CliRunner

from profinfer.cli import group, run
from profinfer.tracefile.schema import CNT_LOST, CNT_NO_SLOT, Kind


def info(path: Path, *args: str) -> str:
    ran = CliRunner().invoke(group, ["info", str(path), *args], standalone_mode=False)
    assert ran.exception is None, ran.exception
    return ran.stdout


def told(path: Path) -> dict[str, Any]:
    out: dict[str, Any] = json.loads(info(path, "--format", "json"))
    return out


def test_a_sound_trace(tmp_path: Path) -> None:
    path = sample_run().builder.write(tmp_path / "t.pf")
    text = info(path)
    assert all(len(line) <= 80 for line in text.splitlines())
    flat = " ".join(text.split())
    for words in (
        "./llama-completion -m model.gguf -n 4",
        "target exited, exit code 0",
        "2: llama (77), worker-78 (78)",
        "llama.cpp 0.25.3 from ggml_version() in libggml-base.so",
        "ggml-2025, tensors of 336 bytes from version table",
        "build id c0ffee01",
        "call ggml_barrier (emulated) 480 ns",
        "level op, operators by mode site",
        "llama_process no such symbol in libllama.so (call)",
        "CALL_BEGIN 5",
        "OPS 10 (batches of 330 operator records)",
        "Lost ",
        "nothing",
    ):
        assert words in flat, words
    assert text.rstrip().endswith("none")


def test_json_has_the_numbers(tmp_path: Path) -> None:
    out = told(sample_run().builder.write(tmp_path / "t.pf"))
    assert out["complete"] and out["problems"] == [] and out["losses"] == {}
    assert out["records"]["GRAPH_BEGIN"] == 5 and out["operator_records"] == 330
    assert out["metadata"]["plan"]["ops"] == {
        "mode": "site", "bias": 1, "barrier_always": False
    }  # fmt: skip
    assert out["trailer"]["exit_code"] == 0 and out["chunks"] == {"RING": 1, "TRAILER": 1}


def test_losses_and_an_unfinished_file(tmp_path: Path) -> None:
    b = TraceBuilder()
    b.call_end(1, 10)
    b.counters[CNT_LOST + Kind.OPS] = 7
    b.counters[CNT_NO_SLOT] = 1234
    b.counters[Kind.CALL_END] += 2
    b.note(20, "the disk is slow")
    b.loss(30)
    path = b.write(tmp_path / "t.pf", trailer=False)
    flat = " ".join(info(path).split())
    assert "7 OPS records" in flat
    assert "1,234 operator records of threads beyond the table" in flat
    assert "2 CALL_END records sent that the file does not hold" in flat
    assert "the disk is slow" in flat
    assert "unknown: the recording did not finish" in flat
    assert "- the trailer is missing" in flat
    assert told(path)["missing_records"] == {"CALL_END": 2}


def test_no_counters_is_not_the_same_as_no_losses(tmp_path: Path) -> None:
    path = TraceBuilder().write(tmp_path / "t.pf", trailer=False)
    assert "the file holds no counters" in " ".join(info(path).split())


def test_hostile_text_is_shown_not_obeyed(tmp_path: Path) -> None:
    odd = b"caf\xe9".decode("utf-8", "surrogateescape")
    b = TraceBuilder(target={"argv": ["./x", "[red]bold[/red]", odd, "a" * 300]})
    text = info(b.write(tmp_path / "t.pf"))
    assert "[red]bold[/red]" in text and "\\xe9" in text
    assert text.replace("\n", "").replace(" ", "").count("a" * 300) == 1
    assert all(len(line) <= 80 for line in text.splitlines())


def test_metadata_that_says_little(tmp_path: Path) -> None:
    b = TraceBuilder()
    b.meta = {"profinfer": "0.1.0", "clock": {"monotonic_ns": 0, "realtime_ns": 0}}
    text = info(b.write(tmp_path / "t.pf", trailer={}))
    assert "none" in text
    told(tmp_path / "t.pf")


def test_errors_are_one_line(tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "t.pf").write_bytes(b"GGUF" + bytes(100))
    assert run(group, ["info", str(tmp_path / "t.pf")]) == 1
    err = capfd.readouterr().err.splitlines()
    assert len(err) == 2 and "not a profinfer trace, but a GGUF model" in err[0]
    assert err[1].startswith("  try: ")
