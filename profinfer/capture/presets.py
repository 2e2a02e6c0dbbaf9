"""Layer 4: sets of counters for a question: which ones, and what one event moves, by CPU.

Sources: the ProfInfer paper's Table 3 for the Cortex-A76: l3d_cache_refill reads a line of 64
bytes from memory, mem_access_wr writes 16. On x86 a miss of the last cache moves a 64-byte line.
"""

from __future__ import annotations

from dataclasses import replace

from profinfer.capture.counters import Counter, CounterNames
from profinfer.errors import UsageProblem

LINE = 64
# (names that may be there, first one wins; bytes of one event; direction)
_Wanted = tuple[tuple[tuple[str, ...], int, str], ...]

_ARM_MEMORY: _Wanted = (
    (("l3d_cache_refill", "r2a"), LINE, "read"),
    (("mem_access_wr", "r67"), 16, "write"),
)
_X86_MEMORY: _Wanted = (
    (("LLC-load-misses",), LINE, "read"),
    (("LLC-store-misses",), LINE, "write"),
)
_STALLS: _Wanted = (
    (("cycles",), 0, ""),
    (("instructions",), 0, ""),
    (("stalled-cycles-backend",), 0, ""),
    (("task-clock",), 0, ""),
)
_FAULTS: _Wanted = (
    (("minor-faults",), 0, ""),
    (("major-faults",), 0, ""),
    (("task-clock",), 0, ""),
    (("context-switches",), 0, ""),
    (("cpu-migrations",), 0, ""),
)
PRESETS = ("memory", "stalls", "faults")


def preset(name: str, machine: str, names: CounterNames) -> list[Counter]:
    """The counters of a preset.

    Args:
        name: one of ``PRESETS``.
        machine: ``x86_64`` or ``aarch64``.
        names: what this machine knows.

    Raises:
        UsageProblem: there is no such preset, or none for this kind of CPU.
    """
    memory = {"x86_64": _X86_MEMORY, "aarch64": _ARM_MEMORY}.get(machine)
    wanted = {"memory": memory, "stalls": _STALLS, "faults": _FAULTS}.get(name)
    if wanted is None:
        raise UsageProblem(f"no preset {name} for {machine}", f"one of {', '.join(PRESETS)}")
    out = []
    for choices, size, direction in wanted:
        found = _first(choices, names)
        out.append(replace(found, bytes=size, direction=direction))
    return out


def _first(choices: tuple[str, ...], names: CounterNames) -> Counter:
    for choice in choices[:-1]:
        try:
            return names.one(choice)
        except UsageProblem:
            continue
    return names.one(choices[-1])
