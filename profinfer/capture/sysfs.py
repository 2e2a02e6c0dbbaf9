"""Layer 4: small files of the kernel that hold one value: sysfs, cgroups, the device tree.

What cannot be read is None: machines differ in what they tell. Must not import bcc.
"""

from __future__ import annotations

from pathlib import Path


def text_of(path: Path) -> str | None:
    """What a file holds, without white space around it; None if it cannot be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return None


def number_of(path: Path) -> int | None:
    """The number that a file holds, None if it holds none."""
    found = text_of(path)
    return int(found) if found and found.isdigit() else None
