"""The checks against made-up machines: a folder stands for /."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from profinfer.capture import preflight
from profinfer.capture.preflight import System
from profinfer.errors import EnvironmentProblem

FULL = "000001ffffffffff"
BCC = "class BPF(object):\n    pass\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine on which everything is well."""
    put(tmp_path, "proc/self/status", f"Uid:\t0\t0\t0\t0\nCapEff:\t{FULL}\n")
    put(tmp_path, "proc/self/uid_map", "         0          0 4294967295\n")
    put(tmp_path, "proc/sys/kernel/perf_event_paranoid", "2\n")
    put(tmp_path, "proc/cpuinfo", "flags\t\t: fpu sse\n")
    put(tmp_path, "sys/bus/event_source/devices/uprobe/type", "9\n")
    put(tmp_path, "modules/bcc/__init__.py", BCC)
    put(tmp_path, "modules/elftools/__init__.py", "")
    put(tmp_path, "modules/capstone/__init__.py", "")
    return tmp_path


def put(root: Path, path: str, text: str) -> None:
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def machine(root: Path, **changes: object) -> System:
    made: dict[str, object] = {
        "root": root,
        "release": "6.18.1",
        "machine": "x86_64",
        "modules": [str(root / "modules")],
        "ring_buffer": lambda: 0,
        "cycles": lambda: 0,
        **changes,
    }
    return System(**made)  # type: ignore[arg-type]


def blocked(system: System) -> tuple[str, str]:
    with pytest.raises(EnvironmentProblem) as caught:
        preflight.require_recording(system)
    assert caught.value.exit_code != 0
    return caught.value.message, caught.value.hint or ""


def found(system: System, name: str) -> preflight.Check:
    return next(check for check in preflight.run_checks(system) if check.name == name)


def test_a_good_machine(root: Path) -> None:
    system = machine(root)
    preflight.require_recording(system)
    checks = preflight.run_checks(system)
    assert [check.name for check in checks if check.state == "problem"] == []
    assert len({check.name for check in checks}) == len(checks) >= 16
    # Whatever is wrong comes with something to do.
    assert all("\n" not in check.seen for check in checks)


@pytest.mark.parametrize("release", ["5.7.19", "4.19.0-26-amd64", "nonsense"])
def test_an_old_kernel(root: Path, release: str) -> None:
    message, hint = blocked(machine(root, release=release))
    assert "older than 5.8" in message and "5.8" in hint


def test_another_architecture(root: Path) -> None:
    assert "only x86_64 and aarch64" in blocked(machine(root, machine="riscv64"))[0]


@pytest.mark.parametrize(
    ("caps", "enough"),
    [
        (0, False),
        (1 << 39, False),
        (1 << 38, False),
        (1 << 39 | 1 << 38, True),
        (1 << 21, True),
    ],
)
def test_capabilities(root: Path, caps: int, enough: bool) -> None:
    put(root, "proc/self/status", f"Uid:\t1000\t1000\t1000\t1000\nCapEff:\t{caps:016x}\n")
    if enough:
        preflight.require_recording(machine(root))
    else:
        message, hint = blocked(machine(root))
        assert "needs root" in message and hint.startswith("sudo ")


def test_root_of_a_container(root: Path) -> None:
    put(root, "proc/self/status", "Uid:\t0\t0\t0\t0\nCapEff:\t00000000a80425fb\n")
    message, hint = blocked(machine(root))
    assert "root without CAP_SYS_ADMIN" in message and "--privileged" in hint


def test_a_user_namespace(root: Path) -> None:
    put(root, "proc/self/uid_map", "0 1000 1\n")
    assert "user namespace" in blocked(machine(root))[0]


def test_no_bcc(root: Path) -> None:
    (root / "modules/bcc/__init__.py").unlink()
    (root / "modules/bcc").rmdir()
    message, hint = blocked(machine(root))
    assert "missing" in message and "apt install python3-bpfcc" in hint
    # Installed for the system's Python, but the venv does not see it.
    put(root, "usr/lib/python3/dist-packages/bcc/__init__.py", BCC)
    message, hint = blocked(machine(root))
    assert "does not see it" in message and "--system-site-packages" in hint


def test_the_wrong_bcc(root: Path) -> None:
    put(root, "modules/bcc/__init__.py", "def compile(): ...\n")
    message, hint = blocked(machine(root))
    assert "namesake from PyPI" in message and hint.startswith("pip uninstall bcc && apt")


def test_libraries(root: Path) -> None:
    (root / "modules/capstone/__init__.py").unlink()
    (root / "modules/capstone").rmdir()
    assert blocked(machine(root)) == ("capstone missing", "pip install capstone")


def test_no_uprobes(root: Path) -> None:
    (root / "sys/bus/event_source/devices/uprobe/type").unlink()
    assert "CONFIG_UPROBE_EVENTS" in blocked(machine(root))[0]


@pytest.mark.parametrize(
    ("error", "said"),
    [(errno.EPERM, "EPERM"), (errno.EINVAL, "EINVAL"), (errno.ENOSYS, "CONFIG_BPF_SYSCALL")],
)
def test_no_ring_buffer(root: Path, error: int, said: str) -> None:
    message, hint = blocked(machine(root, ring_buffer=lambda: error))
    assert said in message and hint


def test_notes_do_not_block(root: Path) -> None:
    put(root, "sys/kernel/security/lockdown", "none integrity [confidentiality]\n")
    put(root, "proc/sys/kernel/bpf_stats_enabled", "1\n")
    put(root, "proc/cpuinfo", "flags\t\t: fpu hypervisor sse\n")
    system = machine(root, release="6.1.0-18-amd64", cycles=lambda: errno.ENOENT)
    preflight.require_recording(system)
    for name, words in {
        "lockdown": "confidentiality",
        "BPF statistics": "every probe costs more",
        "PMU": "no hardware counters",
        "probe cost": "lacks fast returns (6.11), probes that scale over CPUs (6.13)",
    }.items():
        check = found(system, name)
        assert check.state == "note" and words in check.seen
    assert "20 times" in found(system, "probe cost").seen


def test_a_container_with_its_own_pids(root: Path) -> None:
    put(root, ".dockerenv", "")
    put(root, "proc/self/ns/pid", "")  # any inode but that of the first namespace
    check = found(machine(root), "container")
    assert check.state == "note" and "docker" in check.seen
    assert check.remedy and "--pid=host" in check.remedy


def test_looking_does_not_load_bcc() -> None:
    code = (
        "import sys; from profinfer.capture import preflight; preflight.run_checks();"
        "print(sorted(m for m in ('bcc', 'elftools', 'capstone') if m in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_doctor_agrees_with_itself() -> None:
    from profinfer.cli import group, run

    ran = CliRunner().invoke(group, ["doctor", "--format", "json"], standalone_mode=False)
    told = json.loads(ran.stdout)
    assert told["can_record"] == all(c["state"] != "problem" for c in told["checks"])
    assert ran.return_value == (0 if told["can_record"] else 1)
    table = CliRunner().invoke(group, ["doctor"], standalone_mode=False)
    assert all(len(line) <= 80 for line in table.stdout.splitlines())
    for check in told["checks"]:
        assert check["name"] in table.stdout
    verdict = table.stdout.splitlines()[-1]
    assert verdict.startswith("This machine can record.") == told["can_record"]
    assert run(group, ["doctor", "--format", "json"]) == ran.return_value


def test_without_btf_there_are_no_thread_states(root: Path) -> None:
    absent = preflight.check_btf(machine(root))
    assert (absent.state, absent.remedy) == ("note", "a kernel with CONFIG_DEBUG_INFO_BTF=y")
    assert "no thread states" in absent.seen
    put(root, "sys/kernel/btf/vmlinux", "")
    assert preflight.check_btf(machine(root)).state == "ok"
