"""Layer 4: can this machine record? Checks as data, each with what was seen and a remedy.

Owns the list of checks; ``profinfer doctor`` prints it and ``record`` asks for the blocking ones.
Must not import bcc: it looks for it without loading it.
"""

from __future__ import annotations

import errno
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Literal

from profinfer.capture.frequency import Frequency
from profinfer.capture.kernelprobe import try_cycles_counter, try_ring_buffer
from profinfer.errors import EnvironmentProblem
from profinfer.units import format_bytes

State = Literal["ok", "note", "problem"]

KERNEL_FLOOR = (5, 8)  # BPF ring buffer, CAP_BPF
_CAPABILITIES = {"CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}
_INIT_PID_NAMESPACE = 4026531836  # PROC_PID_INIT_INO, the same on every kernel
_DEBIAN_BCC = "usr/lib/python3/dist-packages/bcc"
_VENV = "/usr/bin/python3 -m venv --system-site-packages VENV"
# What made uprobes cheaper, and the release it came with.
_UPROBE_STEPS = (
    ((6, 13), "probes that scale over CPUs"),
    ((6, 14), "lockless lookup"),
)
_UPROBE_STEPS_OF = {
    "x86_64": (((6, 11), "fast returns"), *_UPROBE_STEPS, ((6, 16), "emulated nop")),
    "aarch64": (*_UPROBE_STEPS, ((6, 13), "emulated nop")),
}


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked at.
        state: "ok", "note" (recording works, something is worth knowing), "problem" (it does not).
        seen: what was found, one line.
        remedy: what to do about it, None when there is nothing to do.
    """

    name: str
    state: State
    seen: str
    remedy: str | None = None


@dataclass(frozen=True)
class System:
    """The machine that is looked at; a test gives it another root and release.

    Attributes:
        root: where /proc, /sys and /usr are.
        release: kernel release, such as ``6.1.0-18-amd64``.
        machine: such as ``x86_64``.
        modules: where Python modules are looked for; None is ``sys.path``.
        ring_buffer: errno of creating a BPF ring buffer, 0 when it worked, None if untried.
        cycles: the same for a hardware cycle counter.
    """

    root: Path = Path("/")
    release: str = field(default_factory=platform.release)
    machine: str = field(default_factory=platform.machine)
    modules: list[str] | None = None
    ring_buffer: Callable[[], int | None] = try_ring_buffer
    cycles: Callable[[], int | None] = try_cycles_counter

    @property
    def version(self) -> tuple[int, int]:
        """Kernel version, (0, 0) when the release cannot be parsed."""
        match = re.match(r"(\d+)\.(\d+)", self.release)
        return (int(match[1]), int(match[2])) if match else (0, 0)

    def read(self, path: str) -> str | None:
        """Text of a file below the root, None if it cannot be read."""
        try:
            return (self.root / path).read_text(errors="replace").strip("\0 \n")
        except OSError:
            return None


def check_kernel(system: System) -> Check:
    """Linux, a supported architecture, recent enough."""
    seen = f"Linux {system.release} {system.machine}"
    if system.machine not in ("x86_64", "aarch64"):
        return Check("kernel", "problem", f"{seen}: only x86_64 and aarch64 are supported")
    if system.version < KERNEL_FLOOR:
        floor = ".".join(map(str, KERNEL_FLOOR))
        remedy = f"use a kernel from {floor} on (Debian 11, Ubuntu 22.04 and later have one)"
        return Check("kernel", "problem", f"{seen} is older than {floor}", remedy)
    return Check("kernel", "ok", seen)


def check_privileges(system: System) -> Check:
    """The capabilities that loading BPF and attaching uprobes need."""
    match = re.search(r"^CapEff:\s*([0-9a-f]+)", system.read("proc/self/status") or "", re.M)
    have = int(match[1], 16) if match else 0
    missing = [name for name, bit in _CAPABILITIES.items() if not have >> bit & 1]
    sudo = f"sudo {sys.argv[0] or 'profinfer'} ..."
    if "CAP_SYS_ADMIN" in missing and set(missing) & {"CAP_BPF", "CAP_PERFMON"}:
        root = re.search(r"^Uid:\s*\d+\s+0\b", system.read("proc/self/status") or "", re.M)
        if root:
            seen = f"root without {', '.join(missing)}: this container may not record"
            return Check(
                "privileges", "problem", seen, "docker run --privileged, or record outside"
            )
        seen = "recording needs root, or the capabilities CAP_BPF and CAP_PERFMON"
        return Check("privileges", "problem", seen, sudo)
    uid_map = (system.read("proc/self/uid_map") or "0 0 4294967295").split()
    if uid_map != ["0", "0", "4294967295"]:
        seen = "inside a user namespace, whose root the kernel does not let record"
        return Check("privileges", "problem", seen, "record as the machine's own root")
    return Check(
        "privileges", "ok", "all needed capabilities" if not missing else "CAP_BPF, CAP_PERFMON"
    )


def check_ring_buffer(system: System) -> Check:
    """Whether the kernel really gives a BPF ring buffer."""
    error = system.ring_buffer()
    if error == 0:
        return Check("BPF", "ok", "a ring buffer could be created")
    if error is None:
        return Check("BPF", "note", "not tried on this architecture")
    if error == errno.ENOSYS:
        return Check("BPF", "problem", "this kernel is built without BPF (CONFIG_BPF_SYSCALL)",
                     "use your distribution's kernel")  # fmt: skip
    if error == errno.EPERM:
        return Check("BPF", "problem", "the kernel refuses BPF to this process (EPERM)",
                     "record as root; in a container: --privileged, or allow bpf in its seccomp "
                     "profile")  # fmt: skip
    name = errno.errorcode.get(error, str(error))
    remedy = f"use a kernel from {'.'.join(map(str, KERNEL_FLOOR))} on"
    return Check("BPF", "problem", f"no BPF ring buffer ({name})", remedy)


def check_uprobes(system: System) -> Check:
    """The uprobe event source of perf."""
    if system.read("sys/bus/event_source/devices/uprobe/type") is not None:
        return Check("uprobes", "ok", "the kernel has them")
    if not (system.root / "sys/bus").exists():
        return Check("uprobes", "problem", "/sys is not mounted", "mount -t sysfs sysfs /sys")
    return Check("uprobes", "problem", "this kernel has no uprobes (CONFIG_UPROBE_EVENTS)",
                 "use your distribution's kernel")  # fmt: skip


def check_bcc(system: System) -> Check:
    """BCC's Python bindings, found but not loaded."""
    spec = PathFinder.find_spec("bcc", system.modules)
    debian = (system.root / _DEBIAN_BCC).exists()
    if spec is None or spec.origin is None:
        if debian:
            seen = "BCC is installed for /usr/bin/python3, but this Python does not see it"
            return Check("BCC", "problem", seen, f"make the venv with {_VENV}")
        seen = "BCC's Python bindings are missing"
        remedy = f"apt install python3-bpfcc, and a venv made with {_VENV}"
        return Check("BCC", "problem", seen, remedy)
    try:
        text = Path(spec.origin).read_text(errors="replace")
    except OSError:
        text = ""
    if "class BPF" not in text:
        seen = "the installed 'bcc' is a namesake from PyPI, not the BPF Compiler Collection"
        remedy = "pip uninstall bcc" + ("" if debian else " && apt install python3-bpfcc")
        return Check("BCC", "problem", seen, remedy)
    return Check("BCC", "ok", str(Path(spec.origin).parent))


def check_bcc_loads(system: System) -> Check:
    """Whether ``import bcc`` works, tried in another process."""
    if system.modules is not None or check_bcc(system).state != "ok":
        return Check("libbcc", "note", "not tried")
    code = "import bcc; print(bcc.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return Check("libbcc", "ok", f"version {done.stdout.strip()} loads")
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    return Check(
        "libbcc", "problem", f"import bcc fails: {last}", "apt install --reinstall libbpfcc"
    )


def check_libraries(system: System) -> Check:
    """What reads ELF files and instructions."""
    wanted = {"elftools": "pyelftools", "capstone": "capstone"}
    missing = [
        package
        for module, package in wanted.items()
        if PathFinder.find_spec(module, system.modules) is None
    ]
    if missing:
        seen = f"{' and '.join(missing)} missing"
        return Check("libraries", "problem", seen, f"pip install {' '.join(missing)}")
    return Check("libraries", "ok", "pyelftools and capstone")


def check_uprobe_cost(system: System) -> Check:
    """What this kernel can do about the price of a probe."""
    steps = _UPROBE_STEPS_OF.get(system.machine, _UPROBE_STEPS)
    missing = [f"{what} ({v[0]}.{v[1]})" for v, what in steps if system.version < v]
    virtual = re.search(r"^flags\s*:.*\bhypervisor\b", system.read("proc/cpuinfo") or "", re.M)
    seen = "this kernel has the cheap uprobe paths"
    if missing:
        seen = f"this kernel lacks {', '.join(missing)}"
    if virtual:
        seen += "; on a virtual machine a single-stepped instruction costs 20 times an emulated one"
    remedy = "a newer kernel makes recording cheaper" if missing else None
    return Check("probe cost", "note" if missing or virtual else "ok", seen, remedy)


def check_counters(system: System) -> Check:
    """Hardware performance counters."""
    error = system.cycles()
    if error == 0:
        return Check("PMU", "ok", "hardware counters can be opened")
    if error in (errno.EACCES, errno.EPERM):
        return Check("PMU", "note", "hardware counters are not allowed to this process",
                     "record as root, or lower kernel.perf_event_paranoid")  # fmt: skip
    return Check(
        "PMU",
        "note",
        "no hardware counters (usual on virtual machines): record --counters has software events",
    )


def check_clocks(system: System) -> Check:
    """Whether the clocks of the CPUs are told, so that slow ones can be."""
    folder = system.root / "sys/devices/system/cpu"
    cpus = [int(p.name[3:]) for p in folder.glob("cpu[0-9]*") if p.name[3:].isdigit()]
    frequency = Frequency(cpus, root=folder)
    heat = "told" if frequency.throttles() else "not told"
    if frequency.known:
        return Check("clocks", "ok", f"the CPUs' clocks are recorded; throttling by heat is {heat}")
    return Check("clocks", "note", "the kernel does not tell the CPUs' clocks (usual on virtual "
                 "machines): a slow one is not seen")  # fmt: skip


def check_paranoid(system: System) -> Check:
    """kernel.perf_event_paranoid, which binds those without CAP_PERFMON."""
    value = system.read("proc/sys/kernel/perf_event_paranoid")
    if value is None:
        return Check("perf", "problem", "this kernel is built without perf events",
                     "use your distribution's kernel")  # fmt: skip
    if check_privileges(system).state == "ok":
        return Check("perf", "ok", f"perf_event_paranoid is {value}; it does not bind this process")
    return Check("perf", "note", f"perf_event_paranoid is {value}", "record as root")


def check_lockdown(system: System) -> Check:
    """Kernel lockdown, which comes with secure boot on some distributions."""
    text = system.read("sys/kernel/security/lockdown")
    match = re.search(r"\[(\w+)\]", text or "")
    mode = match[1] if match else "none"
    if mode == "confidentiality":
        return Check("lockdown", "note", "confidentiality: the kernel may refuse tracing",
                     "boot with lockdown=integrity if recording fails")  # fmt: skip
    return Check("lockdown", "ok", mode if text else "not in this kernel")


def check_tracefs(system: System) -> Check:
    """Tracefs: profinfer does without."""
    mounted = any((system.root / p / "uprobe_events").exists() for p in
                  ("sys/kernel/tracing", "sys/kernel/debug/tracing"))  # fmt: skip
    return Check("tracefs", "ok", "mounted" if mounted else "not mounted; not needed")


def check_btf(system: System) -> Check:
    """Kernel type information: thread states need it, everything else does without."""
    if (system.root / "sys/kernel/btf/vmlinux").exists():
        return Check("BTF", "ok", "present: thread states can be recorded")
    return Check("BTF", "note", "absent: no thread states are recorded; nothing else needs it",
                 "a kernel with CONFIG_DEBUG_INFO_BTF=y")  # fmt: skip


def check_bpf_stats(system: System) -> Check:
    """Run-time statistics of BPF programs, which cost two clock readings a probe."""
    if system.read("proc/sys/kernel/bpf_stats_enabled") == "1":
        return Check("BPF statistics", "note", "switched on: every probe costs more",
                     "sysctl kernel.bpf_stats_enabled=0")  # fmt: skip
    return Check("BPF statistics", "ok", "off")


def check_container(system: System) -> Check:
    """Containers and pid namespaces."""
    hints = [name for path, name in ((".dockerenv", "docker"), ("run/.containerenv", "podman"))
             if (system.root / path).exists()]  # fmt: skip
    if found := re.search(r"docker|kubepods|lxc|libpod", system.read("proc/1/cgroup") or ""):
        hints.append(found[0])
    try:
        inode: int | None = (system.root / "proc/self/ns/pid").stat().st_ino
    except OSError:
        inode = None
    if inode not in (None, _INIT_PID_NAMESPACE):
        seen = f"in a pid namespace of its own{f' ({hints[0]})' if hints else ''}"
        remedy = "thread ids in the trace are the host's; docker run --pid=host makes them equal"
        return Check("container", "note", seen, remedy)
    return Check("container", "ok", f"{hints[0]}, host pid namespace" if hints else "none")


def check_memlock(system: System) -> Check:
    """Locked memory, which older kernels charge BPF maps to."""
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    limit = "unlimited" if soft == resource.RLIM_INFINITY else format_bytes(soft)
    if system.version < (5, 11) and soft != resource.RLIM_INFINITY and soft < 64 << 20:
        return Check("locked memory", "note", f"limited to {limit}; this kernel counts BPF maps",
                     "ulimit -l unlimited")  # fmt: skip
    return Check("locked memory", "ok", limit)


def check_disk(system: System) -> Check:
    """Room for the trace in the current folder."""
    try:
        free = shutil.disk_usage(Path.cwd()).free
    except OSError as error:
        return Check(
            "disk", "note", f"the current folder is gone ({error.strerror})", "cd elsewhere"
        )
    if free < 256 << 20:
        return Check("disk", "note", f"only {format_bytes(free)} free in the current folder",
                     "record to another disk with -o")  # fmt: skip
    return Check("disk", "ok", f"{format_bytes(free)} free in the current folder")


_Checker = Callable[[System], Check]
# In the order in which a first-time user should meet them. Cheap: a few file reads.
BLOCKING: tuple[_Checker, ...] = (
    check_kernel,
    check_privileges,
    check_bcc,
    check_libraries,
    check_uprobes,
    check_ring_buffer,
)
OTHERS: tuple[_Checker, ...] = (
    check_bcc_loads,
    check_uprobe_cost,
    check_counters,
    check_clocks,
    check_paranoid,
    check_lockdown,
    check_container,
    check_tracefs,
    check_btf,
    check_bpf_stats,
    check_memlock,
    check_disk,
)


def run_checks(system: System | None = None) -> list[Check]:
    """Every check, the blocking ones first."""
    system = system or System()
    return [check(system) for check in (*BLOCKING, *OTHERS)]


def require_recording(system: System | None = None) -> None:
    """Return when this machine can record.

    Raises:
        EnvironmentProblem: the first reason why not, with its remedy as hint.
    """
    system = system or System()
    for check in BLOCKING:
        found = check(system)
        if found.state == "problem":
            raise EnvironmentProblem(found.seen, found.remedy)
