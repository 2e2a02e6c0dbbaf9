"""Layer 8: a trace's tables as CSV files in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from profinfer.errors import ProfinferError, UsageProblem

if TYPE_CHECKING:
    from profinfer.model.trace import Trace


def write_tables(trace: Trace, folder: Path, *, force: bool) -> int:
    """Write every table as ``folder/NAME.csv``; returns the bytes.

    Args:
        trace: what was recorded.
        folder: is made if it is not there.
        force: overwrite files that are there already.

    Raises:
        UsageProblem: files are there already.
        ProfinferError: they cannot be written.
    """
    files = {name: folder / f"{name}.csv" for name in trace.tables}
    there = [path for path in files.values() if path.exists()]
    if there and not force:
        raise UsageProblem(f"{there[0]} exists", "--force to overwrite it, or another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, path in files.items():
            trace.tables[name].to_csv(path, index=False)
    except OSError as error:
        raise ProfinferError(
            f"cannot write the tables to {folder}: {error.strerror}", "another folder with --csv"
        ) from error
    return sum(path.stat().st_size for path in files.values())
