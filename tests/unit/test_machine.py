from __future__ import annotations

import csv
import io
import json

import numpy as np
import pandas as pd

from profinfer.analysis.result import Column, Note, Result
from profinfer.render import machine

RESULT = Result(
    "by_op",
    "Time",
    "decode: 3 tokens",
    (
        Column("op", "operator", "text", "Operator."),
        Column("wall_ns", "time", "ns", "Time."),
        Column("share", "share", "ratio", "Part."),
    ),
    pd.DataFrame(
        {
            "op": ["MUL_MAT", "a,b"],
            "wall_ns": np.array([5, 2**60], np.int64),
            "share": [0.5, np.nan],
            "not_a_column": [1, 2],
        }
    ),
    (Note("warning", "lost"),),
    {"wall_ns": np.int64(7), "share": None},
)


def test_json_is_complete_and_plain() -> None:
    text = machine.to_json([RESULT], {"path": "x.pf"}, {"by": None})
    document = json.loads(text)
    assert document["schema"] == "profinfer.report/1"
    assert document["trace"] == {"path": "x.pf"}
    (result,) = document["results"]
    assert result["rows"] == [
        {"op": "MUL_MAT", "wall_ns": 5, "share": 0.5},
        {"op": "a,b", "wall_ns": 2**60, "share": None},
    ]
    assert result["total"] == {"wall_ns": 7, "share": None}
    assert result["columns"][1] == {
        "name": "wall_ns", "title": "time", "unit": "ns", "description": "Time.",
    }  # fmt: skip
    assert result["notes"] == [{"severity": "warning", "text": "lost"}]


def test_csv_has_units_in_its_header() -> None:
    rows = list(csv.reader(io.StringIO(machine.to_csv(RESULT))))
    assert rows == [
        ["op [text]", "wall_ns [ns]", "share [ratio]"],
        ["MUL_MAT", "5", "0.5"],
        ["a,b", str(2**60), ""],
    ]


def test_plain_values() -> None:
    for value in (None, pd.NA, float("nan"), np.float64("inf")):
        assert machine.plain(value) is None
    assert machine.plain(np.float64(3.0)) == 3
    assert isinstance(machine.plain(np.float64(3.0)), int)
    assert machine.plain(1 / 3) == 0.333333
