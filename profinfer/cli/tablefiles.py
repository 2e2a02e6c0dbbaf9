"""Layer 8: a trace's tables as CSV or Parquet files in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from profinfer.errors import ProfinferError, UsageProblem

if TYPE_CHECKING:
    from profinfer.model.trace import Trace


def write_tables(trace: Trace, folder: Path, form: str, *, force: bool) -> int:
    """Write every table as ``folder/NAME.csv`` or ``.parquet``; returns the bytes.

    Args:
        trace: what was recorded.
        folder: is made if it is not there.
        form: "csv" or "parquet".
        force: overwrite files that are there already.

    Raises:
        UsageProblem: files are there already.
        ProfinferError: they cannot be written.
    """
    from profinfer.render import parquet

    if form == "parquet":
        parquet.require_pyarrow()
    files = {name: folder / f"{name}.{form}" for name in trace.tables}
    there = [path for path in files.values() if path.exists()]
    if there and not force:
        raise UsageProblem(f"{there[0]} exists", "--force to overwrite it, or another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in files.items():
            if form == "parquet":
                parquet.write(name, trace.tables[name], path)
            else:
                trace.tables[name].to_csv(path, index=False)
    except OSError as error:
        raise ProfinferError(
            f"cannot write the tables to {folder}: {error.strerror or error}",
            f"another folder with --{form}",
        ) from error
    return sum(path.stat().st_size for path in files.values())
