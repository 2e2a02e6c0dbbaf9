"""Layer 2: what a hit of a probe costs, from the measured table ``costs.toml``."""

from __future__ import annotations

from functools import cache
from typing import Any

from profinfer.engine.catalog import load_from


@cache
def _costs() -> dict[str, Any]:
    return load_from("profinfer.probes", "costs.toml")


def is_measured(machine: str) -> bool:
    """Whether the table was measured on such a machine; elsewhere it is an estimate."""
    return bool(_costs()["machine"] == machine)


def hit_cost(emulated: str | None, kind: str, *, shared: bool = False) -> int:
    """Estimated nanoseconds of one hit, before the recorder's own work."""
    costs = _costs()
    base = costs["emulated"][emulated] if emulated else costs["stepped"]["any"]
    if shared:
        base = 0
    return int(base + (costs["return"]["added"] if kind == "uretprobe" else 0))
