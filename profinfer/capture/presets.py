"""Layer 4: sets of counters for a question: which ones, and what one event moves, by CPU.

What is known of CPUs, with its evidence, is in ``memory_events.toml``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from profinfer.capture.counters import Counter, CounterNames, Encoding
from profinfer.engine.catalog import load_from
from profinfer.errors import UsageProblem

_STALLS = ("cycles", "instructions", "stalled-cycles-backend", "task-clock")
_FAULTS = ("minor-faults", "major-faults", "task-clock", "context-switches", "cpu-migrations")
PRESETS = ("memory", "stalls", "faults")


@dataclass(frozen=True)
class Preset:
    """What is to be counted.

    Attributes:
        counters: in the order of the preset.
        notes: what they do not tell on this machine, a line each.
    """

    counters: tuple[Counter, ...]
    notes: tuple[str, ...] = ()


def preset(name: str, cpus: Mapping[int, str], names: CounterNames) -> Preset:
    """The counters of a preset.

    Args:
        name: one of ``PRESETS``.
        cpus: kind of each CPU, from ``cpukinds.cpu_kinds``.
        names: what this machine knows.

    Raises:
        UsageProblem: there is no such preset, or none for this kind of CPU.
    """
    if name == "memory":
        return _memory(cpus, names)
    listed = {"stalls": _STALLS, "faults": _FAULTS}.get(name)
    if listed is None:
        raise UsageProblem(f"no preset {name}", f"one of {', '.join(PRESETS)}")
    return Preset(tuple(names.one(wanted) for wanted in listed))


@cache
def _known() -> tuple[tuple[tuple[str, ...], dict[str, Any]], ...]:
    """Words of the id and entry, longest id first."""
    entries = load_from("profinfer.capture", "memory_events.toml")["cpu"]
    found = [(tuple(entry["id"].split()), entry) for entry in entries]
    return tuple(sorted(found, key=lambda pair: -len(pair[0])))


def _entry(kind: str) -> dict[str, Any] | None:
    words = tuple(kind.split())
    return next((entry for key, entry in _known() if words[: len(key)] == key), None)


def _memory(cpus: Mapping[int, str], names: CounterNames) -> Preset:
    entries = {cpu: entry for cpu, kind in cpus.items() if (entry := _entry(kind)) is not None}
    if not entries:
        raise UsageProblem(
            f"no preset memory for {next(iter(cpus.values())).split()[0]}",
            "--counters with the events of this CPU: perf list shows them",
        )
    # Cores of several kinds share their events' names or have nothing in common: the first of those
    # of which most is known names the events.
    chosen = max(entries.values(), key=lambda entry: len(_sized(entry)))
    sized = {cpu for cpu, entry in entries.items() if entry is chosen}
    out, notes = [], []
    for event in chosen["event"]:
        found = _first(event["names"], names)
        found = replace(found, name=event.get("called", found.name), direction=event["direction"])
        size = event.get("bytes", 0)
        if size and len(sized) < len(cpus):
            kept = _of(found, sized)
            size = size if kept else 0
            found = replace(found, encodings=kept or found.encodings)
        out.append(replace(found, bytes=size) if size else replace(found, direction=""))
    if not any(counter.bytes for counter in out):
        kinds = ", ".join(sorted(set(cpus.values())))
        notes.append(f"bytes of an event are not known for {kinds}: counts only")
    elif rest := sorted(set(cpus) - sized):
        listed = ",".join(map(str, rest))
        notes.append(f"counted on {chosen['name']} alone: of CPUs {listed} the bytes are not known")
    if not any(event["direction"] == "write" for event in chosen["event"]):
        notes.append("writes are not counted: these cores have no event for them")
    return Preset(tuple(out), tuple(notes))


def _sized(entry: dict[str, Any]) -> list[dict[str, Any]]:
    return [event for event in entry["event"] if event.get("bytes")]


def _of(counter: Counter, cpus: set[int]) -> tuple[Encoding, ...]:
    """What counts on these CPUs alone; nothing where the PMUs do not tell cores apart."""
    return tuple(e for e in counter.encodings if e.cpus is not None and e.cpus <= cpus)


def _first(choices: list[str], names: CounterNames) -> Counter:
    for choice in choices[:-1]:
        try:
            return names.one(choice)
        except UsageProblem:
            continue
    return names.one(choices[-1])
