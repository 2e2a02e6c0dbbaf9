"""Every table and column is documented, and can be had as a file."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from builders import TraceBuilder, sample_run

import profinfer
from profinfer.model.columns import COLUMNS, NAMED_BY_USER, as_markdown
from profinfer.model.trace import TABLES, Trace

ROOT = Path(__file__).parents[2]


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    return profinfer.open(sample_run().builder.write(tmp_path / "t.pf"))


def test_every_column_is_described(trace: Trace) -> None:
    assert set(COLUMNS) == set(TABLES)
    assert set(trace.tables) == set(TABLES) - set(NAMED_BY_USER)  # nothing was counted
    for name, table in trace.tables.items():
        assert list(COLUMNS[name][1]) == list(table.columns), name


def test_the_page_is_what_the_data_says() -> None:
    assert (ROOT / "docs" / "tables.md").read_text() == as_markdown()


def test_ids_are_row_numbers(trace: Trace) -> None:
    for table, column in (("calls", "call_id"), ("graphs", "graph_id"), ("nodes", "node_id")):
        assert trace.tables[table][column].tolist() == list(range(len(trace.tables[table])))


def test_tables_as_files(trace: Trace, tmp_path: Path, call_profinfer) -> None:
    folder = tmp_path / "tables"
    done = call_profinfer("export", trace.path, "--csv", folder)
    assert done.returncode == 0, done.stderr
    assert {p.stem for p in folder.iterdir()} == set(trace.tables)
    for name in ("calls", "ops", "nodes"):
        read = pd.read_csv(folder / f"{name}.csv", keep_default_na=False)
        assert list(read.columns) == list(trace.tables[name].columns)
        assert len(read) == len(trace.tables[name])
    assert pd.read_csv(folder / "ops.csv")["end_ns"].tolist() == trace.ops["end_ns"].tolist()
    again = call_profinfer("export", trace.path, "--csv", folder)
    assert again.returncode != 0 and "--force" in again.stderr
    assert call_profinfer("export", trace.path, "--csv", folder, "--force").returncode == 0
    both = call_profinfer("export", trace.path, "--csv", folder, "-o", tmp_path / "x")
    assert both.returncode != 0 and "Traceback" not in both.stderr


def test_every_token_is_a_row(trace: Trace) -> None:
    tokens = trace.tokens
    assert len(tokens) == trace.calls["n_tokens"].sum()
    prompt = tokens[tokens["phase"] == "prefill"]
    assert prompt["position"].tolist() == [0, 1, 2, 3, 4]
    assert (prompt["step_ns"] == -1).all() and prompt["call_id"].nunique() == 1
    decoded = tokens[tokens["phase"] == "decode"]
    assert decoded["position"].tolist() == [5, 6, 7]
    assert decoded["token_index"].tolist() == [0, 1, 2]
    ends = trace.calls["end_ns"].to_numpy()[decoded["call_id"]]
    assert decoded["step_ns"].tolist() == [-1, *(ends[1:] - ends[:-1]).tolist()]


def test_tokens_of_sequences_that_share_a_call(tmp_path: Path) -> None:
    builder = TraceBuilder()
    batches = [[(0, 0, 2), (5, 10, 2)], [(0, 2, 1), (5, 12, 1)], [(0, 3, 1), (5, 13, 1)]]
    for ts, runs in zip((1_000, 2_000, 3_500), batches, strict=True):
        n_tokens = sum(n for _, _, n in runs)
        builder.call_begin(77, ts, n_tokens=n_tokens, pos_first=runs[0][1], seq=-1)
        builder.seqs(77, ts, runs)
        builder.call_end(77, ts + 500)
    tokens = profinfer.open(builder.write(tmp_path / "two.pf")).tokens
    assert tokens["seq"].tolist() == [0, 0, 5, 5, 0, 5, 0, 5]
    assert tokens["position"].tolist() == [0, 1, 10, 11, 2, 12, 3, 13]
    assert tokens["step_ns"].tolist() == [-1] * 6 + [1_500, 1_500]
