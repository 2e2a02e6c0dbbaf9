"""Roofs: the arithmetic on repeats, what is kept where, the kernels, the command."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from profinfer.cli import run
from profinfer.cli.calibrate import command
from profinfer.machine import measure, store
from profinfer.machine.roofs import BadCalibration, Calibration, Machine, Roof

MACHINE = Machine("Example CPU", 2, 8 << 30)


def calibration(machine: Machine = MACHINE, threads: tuple[int, ...] = (1, 2)) -> Calibration:
    roofs = [
        Roof(kind, n, n * peak, 0.95 * n * peak, 0.02, 20, 20)
        for n in threads
        for kind, peak in (("read", 10e9), ("triad", 9e9), ("fp32", 50e9), ("int8", 200e9))
    ]
    return Calibration(machine, "2026-11-24T10:00:00Z", "by hand", tuple(roofs))


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("SUDO_USER", raising=False)
    return tmp_path / "state" / "profinfer"


def lines(kind: str, *repeats: tuple[float, float]) -> list[dict[str, object]]:
    return [{"kind": kind, "per_s": rate, "cpu": cpu} for rate, cpu in repeats]


def test_disturbed_repeats_do_not_count_if_there_are_others() -> None:
    found = lines("read", (10, 1.0), (9, 1.0), (8, 0.97), (30, 0.5), (2, 0.6))
    (roof,) = measure.summed(2, found, cpus=2)
    assert (roof.kind, roof.threads, roof.best, roof.median) == ("read", 2, 10, 9)
    assert (roof.repeats, roof.undisturbed) == (5, 3)
    assert roof.spread == pytest.approx(2 / 9)
    assert roof.doubt == "unsteady: 22 % spread"


def test_too_few_undisturbed_repeats_are_said() -> None:
    (roof,) = measure.summed(1, lines("fp32", *[(100.0, 0.5)] * 9, (101.0, 1.0)), cpus=2)
    assert (roof.best, roof.median) == (200, 200)  # half of the CPUs did 100
    (read,) = measure.summed(1, lines("read", *[(100.0, 0.5)] * 9, (101.0, 1.0)), cpus=2)
    assert read.best == 101 and read.doubt == roof.doubt
    assert roof.doubt == "disturbed: in 9 of 10 repeats something else used the CPUs"
    (roof,) = measure.summed(1, lines("fp32", *[(100.0, 1.0)] * 9), cpus=2)
    assert roof.doubt == "" and roof.spread == 0


def test_threads_without_a_cpu_each_add_nothing() -> None:
    """Of 8 threads on 2 CPUs each has a quarter of one: that is not what 8 CPUs would do."""
    (roof,) = measure.summed(8, lines("fp32", *[(236.0, 0.25)] * 9), cpus=2)
    assert roof.best == 236 and roof.doubt
    (roof,) = measure.summed(8, lines("fp32", *[(118.0, 0.125)] * 9), cpus=2)
    assert roof.best == 236  # something else had half of both


def test_numbers_of_threads() -> None:
    assert measure.thread_counts(2) == (1, 2)
    assert measure.thread_counts(8) == tuple(range(1, 9))
    assert measure.thread_counts(24, 12) == (1, 2, 4, 8, 12, 16, 24)


def test_arrays_are_larger_than_all_last_caches(tmp_path: Path) -> None:
    """Two packages of two CPUs with 64 MiB each; an own second cache a CPU."""
    for cpu in range(4):
        for level, size, sharing in (
            (2, "1024K", f"{cpu}"),
            (3, "64M", f"{cpu // 2 * 2}-{cpu | 1}"),
        ):
            folder = tmp_path / f"cpu{cpu}" / "cache" / f"index{level}"
            folder.mkdir(parents=True)
            for name, text in (("level", level), ("size", size), ("shared_cpu_list", sharing)):
                (folder / name).write_text(f"{text}\n")
    assert measure.last_caches_bytes(tmp_path) == 128 << 20
    assert measure.last_caches_bytes(tmp_path / "nothing") == 0
    assert measure.array_megabytes(1 << 30) == 134  # an eighth of a small machine's memory


def test_a_roof_for_other_numbers_of_threads() -> None:
    made = calibration(threads=(1, 2, 4))
    assert [made.at(n) for n in (1, 2, 3, 4, 8)] == [1, 2, 2, 4, 4]


def test_roofs_of_threads_without_a_cpu_are_not_read() -> None:
    made = calibration(threads=(1, 2, 8, 99))
    assert Calibration.from_json(made.to_json()) == calibration(threads=(1, 2))


def test_other_numbers_of_threads_stay() -> None:
    old, new = calibration(threads=(1, 2)), calibration(threads=(1,))
    new = replace(new, created_utc="2026-12-01T10:00:00Z", roofs=(*new.roofs[:3],))
    both = new.with_others_of(old)
    assert both.threads == (1, 2) and both.created_utc == old.created_utc
    assert both.roof("int8", 1) is None and both.roof("int8", 2) is not None
    assert replace(new, method="another").with_others_of(old).threads == (1,)
    assert calibration().with_others_of(old).created_utc == old.created_utc


def test_json_and_back() -> None:
    made = calibration()
    assert Calibration.from_json(json.loads(json.dumps(made.to_json()))) == made


@pytest.mark.parametrize(
    "change",
    [{"schema": "profinfer.calibration/9"}, {"roofs": []}, {"roofs": 3}, {"machine": None}],
)
def test_what_is_no_calibration_is_refused(change: dict[str, object]) -> None:
    data = calibration().to_json() | change
    if change.get("roofs") == []:
        data["roofs"] = [{**calibration().to_json()["roofs"][0], "kind": "triad"}]
    with pytest.raises(BadCalibration):
        Calibration.from_json(data)
    with pytest.raises(BadCalibration):
        Calibration.from_json([])


def test_it_is_kept_by_machine(own_state: Path) -> None:
    other = Machine("Other CPU", 8, 16 << 30)
    assert store.load(MACHINE) is None
    path = store.save(calibration())
    assert path.parent == own_state
    assert store.load(MACHINE) == calibration()
    assert store.load(other) is None
    assert store.others(other) == ["Example CPU, 2 CPUs, 8 GiB"]
    # A few MiB less, as after a kernel update, are the same machine.
    assert store.load(Machine("Example CPU", 2, (8 << 30) - (90 << 20))) is not None
    path.write_text("{")
    assert store.load(MACHINE) is None


@pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")
def test_the_c_kernel_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "array_megabytes", lambda memory: 24)
    made = measure.measure(MACHINE, (1, 2), repeats=3, seconds=0.5)
    assert made.method.startswith("C kernel")
    assert made.threads == (1, 2)
    for kind in ("read", "triad", "fp32"):
        for threads in (1, 2):
            roof = made.roof(kind, threads)
            # A slow board to a large server.
            assert roof is not None and 1e7 < roof.best < 1e14, roof
            assert roof.repeats >= 3 and roof.median <= roof.best


def test_the_numpy_kernel_prints_the_same_lines() -> None:
    arguments = ["1", "2", "12", "1", "0.1"]
    done = subprocess.run(
        [sys.executable, "-m", "profinfer.machine.numpy_kernel", *arguments],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = measure.summed(1, map(json.loads, done.stdout.splitlines()), cpus=1)
    assert [roof.kind for roof in found] == ["read", "triad", "fp32"]
    assert all(roof.best > 1e6 for roof in found)


def test_the_command(
    own_state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from profinfer.capture.host import this_machine

    assert run(command, ["--show"]) == 1
    said = capsys.readouterr()
    assert said.out == "" and "profinfer calibrate" in said.err and "Traceback" not in said.err

    def quick(machine: Machine, counts: tuple[int, ...], **_: object) -> Calibration:
        return calibration(machine, counts)

    monkeypatch.setattr(measure, "measure", quick)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    assert run(command, ["--threads", "1,2,8"]) == 2
    assert "8 threads would share 2 CPUs" in (said := capsys.readouterr().err)
    assert "--threads 1,2" in said
    assert run(command, ["--threads", "2,1"]) == 0
    said = capsys.readouterr()
    assert "kept in" in said.err and "GFLOP/s" in said.out
    assert max(map(len, said.out.splitlines())) <= 80
    assert run(command, ["--show", "--json"]) == 0
    kept = Calibration.from_json(json.loads(capsys.readouterr().out))
    assert kept.machine == this_machine() and kept.threads == (1, 2)
    assert run(command, ["--threads", "1"]) == 0
    assert "the roofs of 2 threads, 2026-11-24, are kept" in capsys.readouterr().err
    assert (found := store.load(this_machine())) is not None and found.threads == (1, 2)
    assert run(command, ["--threads", "two"]) == 2
    assert "--threads 1,2,4" in capsys.readouterr().err
    (own_state).chmod(0o755)
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/nowhere")
    assert run(command, ["--threads", "1"]) == 1
    assert "cannot keep it" in capsys.readouterr().err


def test_measuring_loads_no_bcc() -> None:
    modules = ("profinfer.cli.calibrate", "profinfer.machine.measure", "profinfer.capture.host")
    code = f"import sys, {', '.join(modules)}\n"
    code += "print([m for m in ('bcc', 'elftools', 'capstone') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
