"""Layer 4: what the user names becomes what the kernel is asked to count.

Generic names, raw codes and the names and formats that sysfs lists for each PMU of this machine.
Opens nothing; the tree of sysfs is an argument, so that other machines can be tried.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from profinfer.capture.counternames import (
    CACHE,
    CACHE_EVENTS,
    GENERIC,
    HARDWARE,
    RAW,
    SOFTWARE,
    SOFTWARE_EVENTS,
)
from profinfer.errors import UsageProblem

SYSFS = Path("/sys/bus/event_source/devices")
SYSTEM = "system:"  # before the name of an event: count it of the whole machine
MAX_COUNTERS = 6  # PF_MAX_COUNTERS
# What has no events that count: everything there is asked for by another way.
_NO_PMUS = {"software", "tracepoint", "breakpoint", "kprobe", "uprobe"}
_RAW_CODE = re.compile(r"r([0-9a-fA-F]{1,16})")
# A list's commas, but not those between slashes.
_ITEM = re.compile(r"(?:[^,/]|/[^/]*/)+")


@dataclass(frozen=True)
class Encoding:
    """One event as a PMU numbers it: the fields of ``struct perf_event_attr``.

    Attributes:
        type, config, config1, config2: of the attr.
        cpus: CPUs that this PMU belongs to, None for all.
    """

    type: int
    config: int
    config1: int = 0
    config2: int = 0
    cpus: frozenset[int] | None = None

    def fits(self, cpu: int) -> bool:
        """Whether this is how the event is counted on a CPU."""
        return self.cpus is None or cpu in self.cpus


@dataclass(frozen=True)
class Counter:
    """One thing to count.

    Attributes:
        name: as the user wrote it.
        encodings: by PMU; on CPUs with different cores there are several.
        user, kernel: which side counts.
        system: the PMU counts a whole package and knows no threads; ``cpus`` are where it is read.
        bytes: what one event moves, 0 if that is not known.
        direction: ``read`` or ``write``, with ``bytes``.
        scale, unit: what one event is worth, where sysfs says so: 6.1e-5 MiB.
    """

    name: str
    encodings: tuple[Encoding, ...]
    user: bool = True
    kernel: bool = True
    system: bool = False
    bytes: int = 0
    direction: str = ""
    scale: float = 1.0
    unit: str = ""

    @property
    def hardware(self) -> bool:
        """A PMU counts it, not the kernel."""
        return self.encodings[0].type != SOFTWARE

    def to_json(self) -> dict[str, Any]:
        """For the trace's metadata."""
        out: dict[str, Any] = {"name": self.name, "side": self.side, "hardware": self.hardware}
        if self.bytes:
            out |= {"bytes": self.bytes, "direction": self.direction}
        return out

    @property
    def side(self) -> str:
        """``user``, ``kernel`` or ``both``."""
        return "both" if self.user and self.kernel else "user" if self.user else "kernel"


class CounterNames:
    """The counters of one machine.

    Args:
        sysfs: ``/sys/bus/event_source/devices``, or a copy of another machine's.
    """

    def __init__(self, sysfs: Path = SYSFS) -> None:
        self._sysfs = sysfs

    def parse(self, text: str) -> list[Counter]:
        """Counters of a list such as ``cycles:u,r04cb,armv8:l3d_cache_refill``.

        Raises:
            UsageProblem: a name is not known, or a list is empty, too long or names one twice.
        """
        found = [self.one(item.strip()) for item in _ITEM.findall(text) if item.strip()]
        if not found:
            raise UsageProblem("--counters names no counter", "--counters page-faults,task-clock")
        names = [counter.name for counter in found]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UsageProblem(f"--counters names {twice} twice", "name each counter once")
        if (many := len([c for c in found if not c.system])) > MAX_COUNTERS:
            raise UsageProblem(
                f"{many} counters are too many: {MAX_COUNTERS} are read at a time",
                "record twice, with other counters",
            )
        return found

    def one(self, text: str) -> Counter:
        """One counter.

        Raises:
            UsageProblem: the name is not known here.
        """
        if text.startswith(SYSTEM):  # of everybody, on every CPU
            return replace(self.one(text.removeprefix(SYSTEM)), name=text, system=True,
                           user=True, kernel=True)  # fmt: skip
        if match := re.fullmatch(r"([\w-]+)/([^/]*)/:?([uk]*)", text):
            return self._terms(text, match[1], match[2], match[3])
        name, _, sides = text.rpartition(":")
        if not name or not sides or set(sides) - {"u", "k"}:
            name, sides = text, ""
        found = self._generic(name) or self._listed(name)
        if found is None:
            raise self._unknown(text, name)
        return _sided(replace(found, name=text), sides)

    def known(self) -> list[str]:
        """Every name, those of sysfs with their PMU where they need it."""
        names = [*GENERIC, *SOFTWARE_EVENTS, *CACHE_EVENTS]
        for pmu in self._pmus():
            listed = [path.name for path in _listing(pmu / "events")]
            names += [f"{pmu.name}:{name}" for name in listed]
            names += listed if self._core(pmu) else []
        return names

    # --- the ways to name one -------------------------------------------------------------
    def _generic(self, name: str) -> Counter | None:
        for kind, table in (
            (SOFTWARE, SOFTWARE_EVENTS),
            (HARDWARE, GENERIC),
            (CACHE, CACHE_EVENTS),
        ):
            if name in table:
                return Counter(name, (Encoding(kind, table[name]),))
        if match := _RAW_CODE.fullmatch(name):
            code = int(match[1], 16)
            cores = [pmu for pmu in self._pmus() if (pmu / "cpus").is_file()]
            several = tuple(self._encoding(pmu, {"config": code}) for pmu in cores)
            return Counter(name, several or (Encoding(RAW, code),))
        return None

    def _listed(self, text: str) -> Counter | None:
        """A name of sysfs, alone or behind its PMU's name or the beginning of it."""
        device, _, event = text.rpartition(":")
        pmus = [p for p in self._pmus() if (p.name.startswith(device) if device else self._core(p))]
        exact = [pmu for pmu in pmus if pmu.name == device]
        pmus = [p for p in exact or pmus if (p / "events" / event).is_file()]
        if not event or not pmus:
            return None
        encodings = []
        for pmu in pmus:
            listed = (pmu / "events" / event).read_text().strip()
            encodings.append(self._encoding(pmu, self._values(text, pmu, listed)))
        found = Counter(text, tuple(encodings), system=(pmus[0] / "cpumask").is_file())
        return _scaled(found, pmus[0] / "events" / event)

    def _terms(self, text: str, device: str, terms: str, sides: str) -> Counter:
        # A package with several memory controllers has uncore_imc_0, uncore_imc_1: all of them.
        alike = [p for p in self._pmus() if re.fullmatch(re.escape(device) + r"_?\d+", p.name)]
        pmus = [self._sysfs / device] if (self._sysfs / device / "type").is_file() else alike
        if not pmus or device in _NO_PMUS:
            names = [p.name for p in self._pmus()]
            raise UsageProblem(
                f"this machine has no PMU {device}",
                f"a PMU of this machine: {', '.join(names)}"
                if names
                else "software events: page-faults, ...",
            )
        encodings = []
        for pmu in pmus:
            listed = pmu / "events" / terms
            named = terms and "=" not in terms and listed.is_file()
            values = listed.read_text().strip() if named else terms
            encodings.append(self._encoding(pmu, self._values(text, pmu, values)))
        found = Counter(text, tuple(encodings), system=(pmus[0] / "cpumask").is_file())
        return _sided(_scaled(found, pmus[0] / "events" / terms), sides)

    # --- sysfs ----------------------------------------------------------------------------
    def _pmus(self) -> list[Path]:
        return [p for p in _listing(self._sysfs) if p.name not in _NO_PMUS]

    @staticmethod
    def _core(pmu: Path) -> bool:
        """It counts on every CPU, or on those in ``cpus``: not a package's."""
        return (pmu / "cpus").is_file() or pmu.name.startswith(("cpu", "armv"))

    def _encoding(self, pmu: Path, values: dict[str, int]) -> Encoding:
        kind = int((pmu / "type").read_text())
        where = next((pmu / n for n in ("cpus", "cpumask") if (pmu / n).is_file()), None)
        cpus = None if where is None else frozenset(_numbers(where.read_text()))
        return Encoding(kind, **values, cpus=cpus)

    def _values(self, text: str, pmu: Path, terms: str) -> dict[str, int]:
        """``event=0x3c,umask=0x1`` put into the bits that the PMU's format names."""
        out = {"config": 0}
        for term in filter(None, terms.split(",")):
            key, _, value = term.partition("=")
            try:
                number = int(value, 0) if value else 1
            except ValueError:
                raise UsageProblem(
                    f"{text}: {term} has no number", "a term is event=0x3c"
                ) from None
            if key in ("config", "config1", "config2"):
                out[key] = out.get(key, 0) | number
                continue
            form = pmu / "format" / key
            if not form.is_file():
                names = ", ".join(path.name for path in _listing(pmu / "format"))
                raise UsageProblem(f"{text}: {pmu.name} knows no {key}", f"it knows {names}")
            field, _, bits = form.read_text().strip().partition(":")
            out[field] = out.get(field, 0) | _spread(number, list(_numbers(bits)), text, term)
        return out

    def _unknown(self, text: str, name: str) -> UsageProblem:
        names = sorted(set(self.known()))
        near = difflib.get_close_matches(name, names, n=4, cutoff=0.5)
        near += [n for n in names if name.lower() in n.lower() and n not in near][: 4 - len(near)]
        hint = f"like {', '.join(near)}" if near else "page-faults, task-clock, cycles, r04cb, ..."
        return UsageProblem(f"no counter is called {text} here", hint)


def _sided(counter: Counter, sides: str) -> Counter:
    """User and kernel as asked for; else PMUs leave the kernel out: it has our probes' own cost."""
    if counter.system:
        return counter
    if not sides:
        return replace(counter, kernel=not counter.hardware)
    return replace(counter, user="u" in sides, kernel="k" in sides)


def _scaled(counter: Counter, event: Path) -> Counter:
    """With what one event is worth: files beside the event's own, such as event.scale."""
    scale, unit = 1.0, ""
    with contextlib.suppress(OSError, ValueError):
        scale = float(event.with_name(event.name + ".scale").read_text())
    with contextlib.suppress(OSError):
        unit = event.with_name(event.name + ".unit").read_text().strip()
    return replace(counter, scale=scale, unit=unit)


def _listing(folder: Path) -> list[Path]:
    # Events have files beside them that tell their unit.
    skip = (".unit", ".scale", ".per-pkg", ".snapshot")
    try:
        return sorted(path for path in folder.iterdir() if path.suffix not in skip)
    except OSError:
        return []


def _numbers(text: str) -> Iterator[int]:
    """Numbers of a list such as ``0-3,8``."""
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def _spread(number: int, bits: list[int], text: str, term: str) -> int:
    if number >> len(bits):
        raise UsageProblem(f"{text}: {term} does not fit {len(bits)} bits", "a smaller number")
    return sum((number >> n & 1) << bit for n, bit in enumerate(bits))
