"""Layer 4: what kind each CPU of this machine is, as /proc/cpuinfo tells it.

Must not import bcc.
"""

from __future__ import annotations

from pathlib import Path

from profinfer.capture.sysfs import text_of

CPUINFO = Path("/proc/cpuinfo")
_ARCHITECTURES = {"x86_64": "x86", "aarch64": "arm64"}
# The fields that tell kinds apart, in the order of the id.
_FIELDS = (("vendor_id", "cpu family"), ("CPU implementer", "CPU part"))


def cpu_kinds(machine: str, cpuinfo: Path = CPUINFO) -> dict[int, str]:
    """Id of each CPU, such as ``x86 AuthenticAMD 25`` or ``arm64 0x41 0xd0b``.

    Args:
        machine: ``x86_64``, ``aarch64`` or another name of an architecture, with which ids begin.
        cpuinfo: the file, or a copy of another machine's.
    """
    first = _ARCHITECTURES.get(machine, machine)
    found: dict[int, str] = {}
    for block in (text_of(cpuinfo) or "").split("\n\n"):
        fields: dict[str, str] = {}
        for line in block.splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
        number = fields.get("processor", "")
        if number.isdigit():
            names = next((n for n in _FIELDS if n[0] in fields), ())
            found[int(number)] = " ".join([first, *(fields[n] for n in names if n in fields)])
    return found or {0: first}
