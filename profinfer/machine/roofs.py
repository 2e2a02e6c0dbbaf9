"""Layer 1: the roofs of a machine, as data, to and from JSON.

Owns the schema ``profinfer.calibration/1`` and what counts as unsteady. Imports the standard
library only: reports use it on machines that measure nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

SCHEMA = "profinfer.calibration/1"
KINDS = ("read", "triad", "fp32", "int8")
UNSTEADY = 0.10  # spread beyond which a measurement says so
FEW = 3  # undisturbed repeats below which all repeats are used


class BadCalibration(ValueError):
    """It is no calibration that this version understands."""


@dataclass(frozen=True)
class Machine:
    """What tells machines apart.

    Attributes:
        cpu_model: name of the CPU or board.
        cpus: CPUs online.
        memory_bytes: installed memory.
    """

    cpu_model: str | None
    cpus: int | None
    memory_bytes: int | None

    @property
    def key(self) -> str:
        """CPU model, CPUs and whole GiB of memory: ``AMD EPYC, 2 CPUs, 8 GiB``."""
        gib = round(self.memory_bytes / 2**30) if self.memory_bytes else "?"
        return f"{self.cpu_model or 'unknown CPU'}, {self.cpus or '?'} CPUs, {gib} GiB"


@dataclass(frozen=True)
class Roof:
    """One measurement.

    Attributes:
        kind: one of ``KINDS``: bytes a second for read and triad, operations a second otherwise.
        threads: that did it together.
        best: of the repeats; this is the roof.
        median: of the repeats that count.
        spread: (90th - 10th percentile) / median of the repeats that count.
        repeats: all of them.
        undisturbed: repeats in which the threads had the CPUs for themselves.
    """

    kind: str
    threads: int
    best: float
    median: float
    spread: float
    repeats: int
    undisturbed: int

    @property
    def doubt(self) -> str:
        """Why it is not to be relied on, or ""."""
        if self.undisturbed < FEW:
            return (
                f"disturbed: in {self.repeats - self.undisturbed} of {self.repeats} repeats "
                "something else used the CPUs"
            )
        return f"unsteady: {100 * self.spread:.0f} % spread" if self.spread > UNSTEADY else ""


@dataclass(frozen=True)
class Calibration:
    """The roofs of one machine.

    Attributes:
        machine: which.
        created_utc: when, ISO 8601.
        method: with what, in words.
        roofs: every measurement.
    """

    machine: Machine
    created_utc: str
    method: str
    roofs: tuple[Roof, ...]

    @property
    def threads(self) -> tuple[int, ...]:
        """Numbers of threads that were measured, ascending."""
        return tuple(sorted({roof.threads for roof in self.roofs}))

    def at(self, threads: int) -> int:
        """The measured number of threads that stands for ``threads``: the next lower one."""
        below = [n for n in self.threads if n <= threads]
        return max(below) if below else min(self.threads)

    def roof(self, kind: str, threads: int) -> Roof | None:
        """The measurement of a kind at exactly so many threads."""
        return next((r for r in self.roofs if r.kind == kind and r.threads == threads), None)

    def peaks(self, threads: int) -> tuple[float, float, float]:
        """Roofs that hold at so many threads.

        Returns:
            Bytes a second from memory, 32-bit operations a second, and those of products of
            quantised numbers: 8-bit ones, or the 32-bit ones where there are no faster.
        """
        at = self.at(threads)
        best = {r.kind: r.best for r in self.roofs if r.threads == at}
        return best["read"], best["fp32"], max(best.get("int8", 0.0), best["fp32"])

    def with_others_of(self, before: Self) -> Self:
        """This, and the numbers of threads that only an earlier one of the same method measured.

        The date is then that of the earlier one: nothing is made to look newer than it is.
        """
        old = tuple(r for r in before.roofs if r.threads not in self.threads)
        if before.method != self.method or not old:
            return self
        return replace(self, created_utc=before.created_utc, roofs=(*old, *self.roofs))

    def to_json(self) -> dict[str, Any]:
        """The JSON object."""
        return {"schema": SCHEMA, **asdict(self), "roofs": [asdict(r) for r in self.roofs]}

    @classmethod
    def from_json(cls, data: object) -> Self:
        """Read what ``to_json`` gave, but for roofs of more threads than the machine has CPUs.

        Earlier versions measured those, and no machine has what came out.

        Raises:
            BadCalibration: another schema, or something is missing or of the wrong type.
        """
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            raise BadCalibration(f"not {SCHEMA}")
        try:
            machine = data["machine"]
            roofs = tuple(
                Roof(
                    str(r["kind"]), int(r["threads"]), float(r["best"]), float(r["median"]),
                    float(r["spread"]), int(r["repeats"]), int(r["undisturbed"]),
                )
                for r in data["roofs"]
                if not machine["cpus"] or int(r["threads"]) <= int(machine["cpus"])
            )  # fmt: skip
            found = cls(
                Machine(machine["cpu_model"], machine["cpus"], machine["memory_bytes"]),
                str(data["created_utc"]),
                str(data["method"]),
                roofs,
            )
        except (KeyError, TypeError, ValueError) as error:
            raise BadCalibration(f"{type(error).__name__}: {error}") from error
        if not all(
            found.roof(kind, n) and found.roof(kind, n).best > 0  # type: ignore[union-attr]
            for kind in ("read", "fp32")
            for n in found.threads or (0,)
        ):
            raise BadCalibration("it lacks a roof")
        return found
