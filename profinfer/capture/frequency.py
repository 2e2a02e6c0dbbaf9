"""Layer 4: at which clock CPUs run, and how often heat held them back, as sysfs tells it.

Reads small files; needs neither root nor BPF. The tree is an argument, so that other machines can
be tried. Must not import bcc.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from profinfer.capture.sysfs import number_of, text_of

_CPU = Path("/sys/devices/system/cpu")
# Intel's counters of thermal throttling; of a package every one of its CPUs has a copy.
_THROTTLES = {"core": "core_throttle_count", "package": "package_throttle_count"}


class Frequency:
    """The clocks of some CPUs.

    Args:
        cpus: which.
        root: ``/sys/devices/system/cpu``, or a copy of another machine's.
    """

    def __init__(self, cpus: Iterable[int], *, root: Path = _CPU) -> None:
        self._folders = {cpu: root / f"cpu{cpu}" for cpu in cpus}
        clocks = {cpu: f / "cpufreq/scaling_cur_freq" for cpu, f in self._folders.items()}
        self._clocks = {cpu: path for cpu, path in clocks.items() if number_of(path) is not None}

    @property
    def known(self) -> bool:
        """Whether the kernel tells the clock of any of them: virtual machines rarely do."""
        return bool(self._clocks)

    def khz(self) -> dict[str, int]:
        """Clock by CPU, now; CPUs whose clock is not told are left out."""
        found = {str(cpu): number_of(path) for cpu, path in self._clocks.items()}
        return {cpu: value for cpu, value in found.items() if value is not None}

    def facts(self) -> dict[str, Any]:
        """For the metadata: by CPU the lowest and highest clock and who chooses between them."""
        out: dict[str, Any] = {}
        for cpu in self._clocks:
            folder = self._folders[cpu] / "cpufreq"
            told = {
                "min_khz": number_of(folder / "cpuinfo_min_freq"),
                "max_khz": number_of(folder / "cpuinfo_max_freq"),
                "limit_khz": number_of(folder / "scaling_max_freq"),
                "governor": text_of(folder / "scaling_governor"),
            }
            out[str(cpu)] = {key: value for key, value in told.items() if value is not None}
        return out

    def throttles(self) -> dict[str, int]:
        """How often heat lowered a clock so far: of ``core`` and ``package``, where it is told.

        Cores are summed, one a core; of packages too.
        """
        out: dict[str, int] = {}
        for kind, name in _THROTTLES.items():
            seen: dict[tuple[str | None, str | None], int] = {}
            for folder in self._folders.values():
                count = number_of(folder / "thermal_throttle" / name)
                if count is not None:
                    package = text_of(folder / "topology/physical_package_id")
                    core = text_of(folder / "topology/core_id") if kind == "core" else None
                    seen[package, core] = count
            if seen:
                out[kind] = sum(seen.values())
        return out
