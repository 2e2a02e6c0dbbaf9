"""Every table and column is documented, and can be had as a file."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from builders import sample_run

import profinfer
from profinfer.model.columns import COLUMNS, as_markdown
from profinfer.model.trace import TABLES, Trace

ROOT = Path(__file__).parents[2]


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    return profinfer.open(sample_run().builder.write(tmp_path / "t.pf"))


def test_every_column_is_described(trace: Trace) -> None:
    assert set(COLUMNS) == set(TABLES)
    for name, table in trace.tables.items():
        assert list(COLUMNS[name][1]) == list(table.columns), name


def test_the_page_is_what_the_data_says() -> None:
    assert (ROOT / "docs" / "tables.md").read_text() == as_markdown()


def test_ids_are_row_numbers(trace: Trace) -> None:
    for table, column in (("calls", "call_id"), ("graphs", "graph_id"), ("nodes", "node_id")):
        assert trace.tables[table][column].tolist() == list(range(len(trace.tables[table])))


def test_tables_as_files(trace: Trace, tmp_path: Path, run_profinfer) -> None:
    folder = tmp_path / "tables"
    done = run_profinfer("export", trace.path, "--csv", folder)
    assert done.returncode == 0, done.stderr
    assert {p.stem for p in folder.iterdir()} == set(TABLES)
    for name in ("calls", "ops", "nodes"):
        read = pd.read_csv(folder / f"{name}.csv", keep_default_na=False)
        assert list(read.columns) == list(trace.tables[name].columns)
        assert len(read) == len(trace.tables[name])
    assert pd.read_csv(folder / "ops.csv")["end_ns"].tolist() == trace.ops["end_ns"].tolist()
    again = run_profinfer("export", trace.path, "--csv", folder)
    assert again.returncode != 0 and "--force" in again.stderr
    assert run_profinfer("export", trace.path, "--csv", folder, "--force").returncode == 0
    both = run_profinfer("export", trace.path, "--csv", folder, "-o", tmp_path / "x")
    assert both.returncode != 0 and "Traceback" not in both.stderr
