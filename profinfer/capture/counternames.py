"""Layer 4: names of counters that every Linux knows, and how perf numbers them.

Data only. Numbers are those of linux/perf_event.h, names those of perf(1).
"""

from __future__ import annotations

from itertools import product

HARDWARE, SOFTWARE, CACHE, RAW = 0, 1, 3, 4  # enum perf_type_id

GENERIC: dict[str, int] = {
    "cycles": 0,
    "cpu-cycles": 0,
    "instructions": 1,
    "cache-references": 2,
    "cache-misses": 3,
    "branches": 4,
    "branch-instructions": 4,
    "branch-misses": 5,
    "bus-cycles": 6,
    "stalled-cycles-frontend": 7,
    "idle-cycles-frontend": 7,
    "stalled-cycles-backend": 8,
    "idle-cycles-backend": 8,
    "ref-cycles": 9,
}

SOFTWARE_EVENTS: dict[str, int] = {
    "cpu-clock": 0,
    "task-clock": 1,
    "page-faults": 2,
    "faults": 2,
    "context-switches": 3,
    "cs": 3,
    "cpu-migrations": 4,
    "migrations": 4,
    "minor-faults": 5,
    "major-faults": 6,
    "alignment-faults": 7,
    "emulation-faults": 8,
}

_LEVELS = {"L1-dcache": 0, "L1-icache": 1, "LLC": 2, "dTLB": 3, "iTLB": 4, "branch": 5, "node": 6}
_OPERATIONS = {"load": 0, "store": 1, "prefetch": 2}


def _cache_events() -> dict[str, int]:
    out = {}
    for (level, number), (operation, op) in product(_LEVELS.items(), _OPERATIONS.items()):
        plural = f"{operation}es" if operation.endswith("h") else f"{operation}s"
        out[f"{level}-{plural}"] = number | op << 8
        out[f"{level}-{operation}-misses"] = number | op << 8 | 1 << 16
    return out


CACHE_EVENTS: dict[str, int] = _cache_events()
