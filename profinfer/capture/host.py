"""Layer 4: facts about the machine that a later reader of the trace will want."""

from __future__ import annotations

import os
import platform
import time
from pathlib import Path
from typing import Any

from profinfer.capture.sysfs import text_of
from profinfer.machine.roofs import Machine
from profinfer.tracefile.metadata import Clock, Host

_CPU = Path("/sys/devices/system/cpu")
_FIRST_PID_NAMESPACE = "pid:[4026531836]"  # PROC_PID_INIT_INO


def describe_host() -> Host:
    """The machine, from /proc and /sys; what cannot be read is left out."""
    return Host(
        kernel=platform.release(),
        machine=platform.machine(),
        hostname=platform.node() or None,
        cpu_model=_cpu_model(),
        cpus_online=os.sysconf("SC_NPROCESSORS_ONLN"),
        topology=_topology(),
        page_size=os.sysconf("SC_PAGE_SIZE"),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    )


def this_machine() -> Machine:
    """The machine, as calibrations know it."""
    host = describe_host()
    return Machine(host.cpu_model, host.cpus_online, host.memory_bytes)


def read_clock() -> Clock:
    """The clocks, read together: of a few tries, the one with the shortest gap between them."""

    def once() -> tuple[int, Clock]:
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        real = time.clock_gettime_ns(time.CLOCK_REALTIME)
        boot = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        clock = Clock(monotonic_ns=(before + after) // 2, realtime_ns=real, boottime_ns=boot)
        return after - before, clock

    return min((once() for _ in range(5)), key=lambda reading: reading[0])[1]


def _cpu_model() -> str | None:
    fields: dict[str, str] = {}
    for line in (text_of(Path("/proc/cpuinfo")) or "").splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    # arm64 boards have no "model name"; the device tree names the board instead.
    board = (text_of(Path("/proc/device-tree/model")) or "").strip("\0")
    return fields.get("model name") or fields.get("Hardware") or board or None


def _topology() -> dict[str, Any]:
    """CPU id -> core, package, and the highest clock where the kernel tells it."""
    cpus: dict[str, Any] = {}
    for folder in sorted(_CPU.glob("cpu[0-9]*"), key=lambda p: int(p.name[3:])):
        facts = {
            "core": text_of(folder / "topology/core_id"),
            "package": text_of(folder / "topology/physical_package_id"),
            "max_khz": text_of(folder / "cpufreq/cpuinfo_max_freq"),
        }
        numbers = {
            key: int(v) for key, v in facts.items() if v is not None and v.lstrip("-").isdigit()
        }
        if numbers:
            cpus[folder.name[3:]] = numbers
    return {"cpus": cpus} if cpus else {}


def sees_kernel_pids() -> bool:
    """Whether our process ids are those of the kernel: we are in the first pid namespace."""
    return os.readlink("/proc/self/ns/pid") == _FIRST_PID_NAMESPACE
