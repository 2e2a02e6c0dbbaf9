"""Layer 7: a table of a trace as a Parquet file, every column with its unit and its meaning.

pyarrow is wanted only here, and only when it is asked for. Must not import the command line.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from profinfer.errors import EnvironmentProblem
from profinfer.model.columns import COLUMNS, described

SCHEMA = "profinfer.tables/1"


def require_pyarrow() -> None:
    """Say what to install if it is not there.

    Raises:
        EnvironmentProblem: pyarrow cannot be imported.
    """
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise EnvironmentProblem(
            "Parquet files need pyarrow, which is not installed",
            "pip install 'profinfer[parquet]', or export --csv FOLDER",
        ) from error


def write(name: str, table: pd.DataFrame, path: Path) -> None:
    """Write one table.

    Each field's metadata has ``unit`` and ``description``; the schema's has ``profinfer.schema``,
    ``profinfer.table`` and ``description``, beside what pandas reads its types from.

    Raises:
        EnvironmentProblem: pyarrow is not there.
        OSError: the file cannot be written.
    """
    require_pyarrow()
    import pyarrow as pa
    import pyarrow.parquet as pq

    row, _ = COLUMNS[name]
    made = pa.Table.from_pandas(table, preserve_index=False)
    fields = []
    for field in made.schema:
        unit, meaning = described(name, field.name)
        fields.append(field.with_metadata({"unit": unit, "description": meaning}))
    about = {"profinfer.schema": SCHEMA, "profinfer.table": name, "description": row}
    schema = pa.schema(fields, {**(made.schema.metadata or {}), **about})
    pq.write_table(made.cast(schema), path)
