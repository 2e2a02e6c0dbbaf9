"""Tables as Parquet files: the same values, with their units; and a clear line without pyarrow."""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from builders import sample_trace

from profinfer.cli import run as run_cli
from profinfer.cli.export import command
from profinfer.model.columns import COLUMNS
from profinfer.model.trace import Trace


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    return Trace.open(sample_trace().write(tmp_path / "t.pf"))


def test_every_table_with_its_units(trace: Trace, tmp_path: Path) -> None:
    folder = tmp_path / "tables"
    assert run_cli(command, [str(trace.path), "--parquet", str(folder)]) == 0
    assert {p.stem for p in folder.glob("*.parquet")} == set(trace.tables)
    for name in trace.tables:
        schema = pq.read_schema(folder / f"{name}.parquet")
        row, columns = COLUMNS[name]
        assert schema.metadata[b"profinfer.schema"] == b"profinfer.tables/1"
        assert schema.metadata[b"profinfer.table"].decode() == name
        assert schema.metadata[b"description"].decode() == row
        assert schema.names == list(trace.tables[name].columns)
        for field in schema:
            unit, meaning = columns[field.name]
            assert field.metadata == {b"unit": unit.encode(), b"description": meaning.encode()}
        read = pd.read_parquet(folder / f"{name}.parquet")
        table = trace.tables[name].reset_index(drop=True)
        # A file without rows does not say what the values of a category would have been.
        pd.testing.assert_frame_equal(
            read, table, check_categorical=False, check_dtype=len(table) > 0
        )


def test_what_is_there_is_kept(
    trace: Trace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "tables"
    args = [str(trace.path), "--parquet", str(folder)]
    assert run_cli(command, args) == 0
    assert run_cli(command, args) != 0
    assert "--force to overwrite" in capsys.readouterr().err
    assert run_cli(command, [*args, "--force"]) == 0
    assert run_cli(command, [*args, "--csv", str(folder)]) != 0
    assert run_cli(command, [*args, "--phase", "decode"]) != 0


def test_without_pyarrow(
    trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet", raising=False)
    assert run_cli(command, [str(trace.path), "--parquet", str(tmp_path / "x")]) != 0
    said = capsys.readouterr().err
    assert "Parquet files need pyarrow" in said and "pip install 'profinfer[parquet]'" in said
    assert not (tmp_path / "x").exists()
