"""Layer 1: where calibrations are kept: one JSON file a machine, in the user's state folder.

Owns the folder and the names of the files. Imports the standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import re
from pathlib import Path

from profinfer.machine.roofs import BadCalibration, Calibration, Machine


def folder() -> Path:
    """``$XDG_STATE_HOME/profinfer`` or ``~/.local/state/profinfer``."""
    root = os.environ.get("XDG_STATE_HOME") or ""
    return (Path(root) if os.path.isabs(root) else Path.home() / ".local" / "state") / "profinfer"


def path_of(machine: Machine, below: Path | None = None) -> Path:
    """The file of a machine."""
    words = re.sub(r"[^a-z0-9]+", "-", machine.key.lower()).strip("-")[:60]
    digest = hashlib.blake2b(machine.key.encode(), digest_size=4).hexdigest()
    return (below or folder()) / f"calibration-{words}-{digest}.json"


def save(calibration: Calibration) -> Path:
    """Write it under its machine's name, in one step; returns the file.

    Raises:
        OSError: the folder cannot be written.
    """
    path = path_of(calibration.machine)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(f".{os.getpid()}.tmp")
    beside.write_text(json.dumps(calibration.to_json(), indent=1) + "\n")
    beside.replace(path)
    return path


def load(machine: Machine) -> Calibration | None:
    """The calibration of a machine, or None: there is none, or none that can be read."""
    for place in _folders():
        try:
            found = Calibration.from_json(json.loads(path_of(machine, place).read_text()))
        except (OSError, ValueError, BadCalibration):
            continue
        if found.machine.key == machine.key:
            return found
    return None


def others(machine: Machine) -> list[str]:
    """Keys of the other machines that have a calibration here."""
    found = set()
    for place in _folders():
        for path in sorted(place.glob("calibration-*.json")) if place.is_dir() else []:
            try:
                found.add(Calibration.from_json(json.loads(path.read_text())).machine.key)
            except (OSError, ValueError, BadCalibration):
                continue
    return sorted(found - {machine.key})


def _folders() -> list[Path]:
    """The user's folder; under sudo also that of the user who called it."""
    found = [folder()]
    caller = os.environ.get("SUDO_USER")
    if caller:
        try:
            found.append(Path(pwd.getpwnam(caller).pw_dir) / ".local" / "state" / "profinfer")
        except KeyError:
            pass
    return found
