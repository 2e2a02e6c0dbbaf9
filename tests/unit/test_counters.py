"""Names of counters, presets and refusals, on machines that are only folders of files."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path

import pytest

from profinfer.capture.counters import Counter, CounterNames, Encoding
from profinfer.capture.cpukinds import cpu_kinds
from profinfer.capture.perfevents import Refused, attr, open_counters, refusal
from profinfer.capture.presets import preset
from profinfer.errors import UsageProblem


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


@pytest.fixture
def x86(tmp_path: Path) -> CounterNames:
    write(
        tmp_path,
        {
            "software/type": "1",
            "cpu/type": "4",
            "cpu/format/event": "config:0-7",
            "cpu/format/umask": "config:8-15",
            "cpu/format/inv": "config:23",
            "cpu/format/split": "config:0-3,32-35",
            "cpu/format/ldlat": "config1:0-15",
            "cpu/events/mem-loads": "event=0xcd,umask=0x1,ldlat=3",
            "cpu/events/topdown-slots.scale": "2",
            "uncore_imc_0/type": "17",
            "uncore_imc_0/cpumask": "0",
            "uncore_imc_0/format/event": "config:0-7",
            "uncore_imc_0/events/cas_count_read": "event=0x4",
            "uncore_imc_0/events/cas_count_read.scale": "6.103515625e-5",
            "uncore_imc_0/events/cas_count_read.unit": "MiB",
            "uncore_imc_1/type": "18",
            "uncore_imc_1/cpumask": "0",
            "uncore_imc_1/format/event": "config:0-7",
            "uncore_imc_1/events/cas_count_read": "event=0x4",
        },
    )
    return CounterNames(tmp_path)


@pytest.fixture
def rk3588(tmp_path: Path) -> CounterNames:
    """Four A55 and four A76: two PMUs that number events alike, each on its own CPUs."""
    for name, kind, cpus in (("a55", 8, "0-3"), ("a76", 9, "4-7")):
        write(
            tmp_path / f"armv8_cortex_{name}",
            {
                "type": str(kind),
                "cpus": cpus,
                "format/event": "config:0-15",
                "events/l3d_cache_refill": "event=0x2a",
                "events/mem_access": "event=0x13",
            },
        )
    return CounterNames(tmp_path)


@pytest.mark.parametrize(
    ("text", "kind", "config", "sides"),
    [
        ("page-faults", 1, 2, "both"),
        ("cycles", 0, 0, "user"),
        ("cycles:k", 0, 0, "kernel"),
        ("instructions:uk", 0, 1, "both"),
        ("page-faults:u", 1, 2, "user"),
        ("LLC-load-misses", 3, 0x10002, "user"),
        ("L1-dcache-stores", 3, 0x100, "user"),
        ("dTLB-prefetch-misses", 3, 0x10203, "user"),
        ("r04cb", 4, 0x4CB, "user"),
        ("r04cb:u", 4, 0x4CB, "user"),
        ("cpu/event=0x3c,umask=0x1/", 4, 0x13C, "user"),
        ("cpu/event=0x3c,inv/k", 4, 0x80003C, "kernel"),
        ("cpu/config=0x1ff/", 4, 0x1FF, "user"),
        ("cpu/split=0x21/", 4, 0x200000001, "user"),
        ("cpu/mem-loads/", 4, 0x1CD, "user"),
        ("cpu:mem-loads", 4, 0x1CD, "user"),
        ("mem-loads", 4, 0x1CD, "user"),
    ],
)
def test_names(x86: CounterNames, text: str, kind: int, config: int, sides: str) -> None:
    counter = x86.one(text)
    assert (counter.encodings[0].type, counter.encodings[0].config) == (kind, config)
    assert counter.side == sides and counter.name == text and not counter.system


def test_second_config_word_and_lists(x86: CounterNames) -> None:
    assert x86.one("mem-loads").encodings[0].config1 == 3
    found = x86.parse("cycles, cpu/event=0x3c,umask=0x1/,r1")
    assert [c.name for c in found] == ["cycles", "cpu/event=0x3c,umask=0x1/", "r1"]


def test_a_package_counter_is_told(x86: CounterNames) -> None:
    counter = x86.one("uncore_imc_0:cas_count_read")
    assert counter.system and counter.encodings[0] == Encoding(17, 4, cpus=frozenset({0}))


def test_every_memory_controller_counts(x86: CounterNames) -> None:
    for text in ("uncore_imc/cas_count_read/", "uncore_imc:cas_count_read"):
        counter = x86.one(text)
        assert [e.type for e in counter.encodings] == [17, 18] and counter.system
        assert (counter.scale, counter.unit) == (6.103515625e-5, "MiB")


def test_an_event_of_the_whole_machine(x86: CounterNames) -> None:
    counter = x86.one("system:cycles")
    assert counter.system and counter.user and counter.kernel and counter.side == "both"
    assert (counter.name, counter.encodings) == ("system:cycles", (Encoding(0, 0),))
    # They are read by the recorder: the limit of what is read at an operator is not theirs.
    listed = ",".join(["r1", "r2", "r3", "r4", "r5", "r6", "system:r7", "uncore_imc_0/event=1/"])
    assert [c.system for c in x86.parse(listed)] == 6 * [False] + 2 * [True]
    with pytest.raises(UsageProblem, match="no counter is called page-fault"):
        x86.one("system:page-fault")


def test_cores_of_two_kinds(rk3588: CounterNames) -> None:
    for name in ("armv8:l3d_cache_refill", "l3d_cache_refill", "r2a"):
        little, big = rk3588.one(name).encodings
        assert (little.type, big.type, little.config, big.config) == (8, 9, 0x2A, 0x2A)
        assert little.fits(3) and not little.fits(4) and big.fits(4)
    assert len(rk3588.one("armv8_cortex_a76:mem_access").encodings) == 1


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ("page-fault", "no counter is called page-fault here", "page-faults"),
        ("mem-load", "mem-load", "mem-loads"),
        ("cpu:mem-lods", "cpu:mem-lods", "cpu:mem-loads"),
        ("gpu/event=1/", "no PMU gpu", "a PMU of this machine: cpu, uncore_imc_0, uncore_imc_1"),
        ("cpu/evnt=1/", "cpu knows no evnt", "event, inv"),
        ("cpu/event=0x100/", "does not fit 8 bits", ""),
        ("cpu/event=x/", "has no number", ""),
        ("", "names no counter", "page-faults"),
        ("cycles,cycles", "twice", ""),
        ("r1,r2,r3,r4,r5,r6,r7", "7 counters are too many", "twice"),
    ],
)
def test_one_line_for_what_is_not_known(x86: CounterNames, text: str, said: str, hint: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        x86.parse(text)
    assert said in caught.value.message and hint in (caught.value.hint or "")
    assert "\n" not in caught.value.message


A55, A76, N1 = "arm64 0x41 0xd05", "arm64 0x41 0xd0b", "arm64 0x41 0xd0c"


def test_memory_on_a76(rk3588: CounterNames) -> None:
    """Beside cores of another kind, of which nobody says what an event moves."""
    cpus = dict.fromkeys(range(4), A55) | dict.fromkeys(range(4, 8), A76)
    made = preset("memory", cpus, rk3588)
    read, write = made.counters
    assert (read.name, read.bytes, read.direction) == ("l3d_cache_refill", 64, "read")
    # This kernel lists no mem_access_wr; the code is the architecture's.
    assert (write.name, write.bytes, write.direction) == ("r67", 16, "write")
    for counter in made.counters:
        assert [(e.type, e.cpus) for e in counter.encodings] == [(9, frozenset(range(4, 8)))]
    assert write.encodings[0].config == 0x67
    assert made.notes == ("counted on Cortex-A76 alone: of CPUs 0,1,2,3 the bytes are not known",)


@pytest.mark.parametrize("kind", [A55, N1, "arm64 0x61 0x22", "arm64"])
def test_no_bytes_of_cores_that_nobody_measured(rk3588: CounterNames, kind: str) -> None:
    made = preset("memory", dict.fromkeys(range(8), kind), rk3588)
    assert [c.name for c in made.counters] == ["l3d_cache_refill", "r67"]
    assert not any(c.bytes or c.direction for c in made.counters)
    assert made.notes == (f"bytes of an event are not known for {kind}: counts only",)


def test_cores_that_one_pmu_counts_are_not_told_apart(x86: CounterNames) -> None:
    made = preset("memory", {0: A55, 1: A76}, x86)
    assert not any(c.bytes for c in made.counters) and len(made.notes) == 1


@pytest.mark.parametrize(
    ("kind", "config", "size"),
    [
        ("x86 AuthenticAMD 23", 0x4843, 64),
        ("x86 AuthenticAMD 25", 0x4844, 64),
        ("x86 AuthenticAMD 26", 0x4844, 0),
    ],
)
def test_memory_on_zen(x86: CounterNames, kind: str, config: int, size: int) -> None:
    """LLC-load-misses cannot be opened there, and no event of a core counts writes."""
    made = preset("memory", {0: kind, 1: kind}, x86)
    (read,) = made.counters
    assert (read.encodings[0].config, read.bytes) == (config, size)
    assert read.name.startswith("ls_") and any("writes" in note for note in made.notes)
    assert any("counts only" in note for note in made.notes) == (size == 0)


def test_presets_on_x86(x86: CounterNames) -> None:
    intel = {0: "x86 GenuineIntel 6"}
    read, write = preset("memory", intel, x86).counters
    assert (read.name, read.bytes) == ("LLC-load-misses", 64)
    assert (write.direction, write.bytes) == ("write", 64)
    assert not any(c.bytes for c in preset("memory", {0: "x86 CentaurHauls 7"}, x86).counters)
    assert not any(counter.hardware for counter in preset("faults", intel, x86).counters)
    assert "instructions" in [counter.name for counter in preset("stalls", intel, x86).counters]
    with pytest.raises(UsageProblem, match="no preset memory for riscv64"):
        preset("memory", {0: "riscv64"}, x86)


def test_kinds_of_cpus(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    amd = "processor\t: {}\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t: 17\n"
    file.write_text("\n".join(amd.format(n) for n in range(2)))
    assert cpu_kinds("x86_64", file) == dict.fromkeys(range(2), "x86 AuthenticAMD 25")
    arm = "processor\t: {}\nCPU implementer\t: 0x41\nCPU part\t: {}\n"
    file.write_text(arm.format(0, "0xd05") + "\n" + arm.format(4, "0xd0b") + "\nSerial\t: 1\n")
    assert cpu_kinds("aarch64", file) == {0: A55, 4: A76}
    assert cpu_kinds("riscv64", tmp_path / "nothing") == {0: "riscv64"}


def test_what_the_kernel_is_asked(x86: CounterNames) -> None:
    counter = x86.one("mem-loads")
    raw = attr(counter, counter.encodings[0]).raw
    kind, size, config = struct.unpack_from("=IIQ", raw)
    flags, config1 = struct.unpack_from("=Q", raw, 40)[0], struct.unpack_from("=Q", raw, 56)[0]
    assert (kind, size, config, config1) == (4, 72, 0x1CD, 3)
    # Users only: the kernel's part has what our own probes cost.
    assert flags == 1 << 5 | 1 << 6
    assert struct.unpack_from("=Q", attr(x86.one("page-faults"), Encoding(1, 2)).raw, 40)[0] == 0


def test_refused_counters_are_left_out(rk3588: CounterNames, x86: CounterNames) -> None:
    asked = []

    def opener(raw: ctypes.Array[ctypes.c_char], pid: int, cpu: int, flags: int) -> int:
        kind = struct.unpack_from("=I", raw.raw)[0]
        asked.append((kind, pid, cpu))
        if kind in (0, 8):
            raise OSError(errno.ENOENT, "no")
        return os.open(os.devnull, os.O_RDONLY)

    wanted = [Counter("cycles", (Encoding(0, 0),)), rk3588.one("r2a"), rk3588.one("task-clock")]
    opened = open_counters(wanted, [3, 4], opener)
    assert [c.name for c in opened.counters] == ["r2a", "task-clock"]
    assert [sorted(held) for held in opened.files] == [[4], [3, 4]]
    assert [r.counter.name for r in opened.refused] == ["cycles"]
    assert asked == [(0, -1, 3), (0, -1, 4), (8, -1, 3), (9, -1, 4), (1, -1, 3), (1, -1, 4)]
    opened.close()


def test_a_refusal_says_why(x86: CounterNames) -> None:
    cycles, faults = x86.one("cycles"), x86.one("page-faults")
    assert refusal([]) == ""
    absent = refusal([Refused(cycles, errno.ENOENT)], lambda: errno.ENOENT)
    assert absent == (
        "this machine has no hardware counters (a VM without a virtual PMU): recorded without "
        "cycles; software events work"
    )
    this_one = refusal([Refused(cycles, errno.EINVAL)], lambda: 0)
    assert this_one.startswith("this CPU does not count cycles (invalid argument)")
    assert "try as root" in refusal([Refused(faults, errno.EACCES)], lambda: 0)
