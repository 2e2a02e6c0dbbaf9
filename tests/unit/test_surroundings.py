"""What goes on around a target: the system's counters, clocks, throttling; from sysfs to views."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest
from builders import TraceBuilder, sample_run
from perfetto_check import check

from profinfer.analysis import surroundings as views
from profinfer.capture.counters import Counter, Encoding
from profinfer.capture.frequency import Frequency
from profinfer.capture.limits import Limits
from profinfer.capture.preflight import System, check_clocks
from profinfer.capture.surroundings import Surroundings
from profinfer.capture.systemcounters import SystemCounters
from profinfer.model.trace import Trace
from profinfer.render import surroundingseries
from profinfer.render.perfetto import write
from profinfer.render.timeline import Timeline

IMC = Counter(
    "uncore_imc/cas_count_read/",
    (Encoding(17, 4, cpus=frozenset({0})), Encoding(18, 4, cpus=frozenset({0}))),
    system=True,
    scale=6.103515625e-5,
    unit="MiB",
)
SWITCHES = Counter("system:context-switches", (Encoding(1, 3),), system=True)


def put(root: Path, files: dict[str, str | int]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")


def a_cpu(root: Path, cpu: int, khz: int, hot: int) -> None:
    put(
        root / f"cpu{cpu}",
        {
            "cpufreq/scaling_cur_freq": khz,
            "cpufreq/cpuinfo_min_freq": 800_000,
            "cpufreq/cpuinfo_max_freq": 3_400_000,
            "cpufreq/scaling_max_freq": 3_400_000,
            "cpufreq/scaling_governor": "powersave",
            "topology/core_id": cpu // 2,
            "topology/physical_package_id": 0,
            "thermal_throttle/core_throttle_count": hot,
            "thermal_throttle/package_throttle_count": 7,
        },
    )


# --- reading ------------------------------------------------------------------------------------
def test_clocks_and_heat_of_sysfs(tmp_path: Path) -> None:
    for cpu in range(4):  # two cores with two threads each: their counts are the core's
        a_cpu(tmp_path, cpu, 1_200_000 + cpu, hot=3 + cpu // 2)
    told = Frequency([0, 1, 2, 3, 9], root=tmp_path)
    assert told.known
    assert told.khz() == {"0": 1_200_000, "1": 1_200_001, "2": 1_200_002, "3": 1_200_003}
    assert told.throttles() == {"core": 3 + 4, "package": 7}
    assert told.facts()["2"] == {
        "min_khz": 800_000,
        "max_khz": 3_400_000,
        "limit_khz": 3_400_000,
        "governor": "powersave",
    }


def test_a_machine_that_tells_no_clock(tmp_path: Path) -> None:
    put(tmp_path, {"cpu0/topology/core_id": 0, "cpu1/cpufreq/scaling_cur_freq": "<unknown>"})
    told = Frequency([0, 1], root=tmp_path)
    assert not told.known
    assert (told.khz(), told.facts(), told.throttles()) == ({}, {}, {})


def test_doctor_says_whether_clocks_are_told(tmp_path: Path) -> None:
    folder = tmp_path / "sys/devices/system/cpu"
    put(folder, {"cpu0/topology/core_id": 0})
    found = check_clocks(System(root=tmp_path))
    assert found.state == "note" and "does not tell the CPUs' clocks" in found.seen
    a_cpu(folder, 0, 1_000_000, hot=1)
    found = check_clocks(System(root=tmp_path))
    assert found.state == "ok" and found.seen.endswith("throttling by heat is told")


class Kernel:
    """perf_event_open: each event gives what it is told to, reading by reading."""

    def __init__(self, refuse: int | None = None) -> None:
        self.asked: list[tuple[int, int, int]] = []  # type of the event, pid, cpu
        self.refuse = refuse

    def __call__(self, attr: object, pid: int, cpu: int, flags: int) -> int:
        (kind,) = struct.unpack_from("=I", bytes(attr))  # type: ignore[call-overload]
        if kind == self.refuse:
            raise OSError(errno.ENOENT, "no such event")
        self.asked.append((kind, pid, cpu))
        fd, end = os.pipe()
        for n in (1, 2, 3):
            os.write(end, struct.pack("=QQQ", 100 * n * kind, 10 * n, 10 * n))
        os.close(end)
        return fd


def test_each_controller_on_its_cpu_and_the_others_on_all() -> None:
    kernel = Kernel()
    counters = SystemCounters([IMC, SWITCHES], [0, 1], kernel)
    assert kernel.asked == [(17, -1, 0), (18, -1, 0), (1, -1, 0), (1, -1, 1)]
    assert [(f["name"], f["cpus"]) for f in counters.facts()] == [
        ("uncore_imc/cas_count_read/", [0]),
        ("system:context-switches", [0, 1]),
    ]
    assert counters.read() == [[3500, 20, 20], [200, 20, 20]]
    assert counters.read() == [[7000, 40, 40], [400, 40, 40]]
    assert counters.refused == []
    counters.close()


def test_what_is_refused_is_named() -> None:
    counters = SystemCounters([IMC, SWITCHES], [0], Kernel(refuse=1))
    assert [r.counter.name for r in counters.refused] == ["system:context-switches"]
    assert [r.code for r in counters.refused] == [errno.ENOENT]
    assert len(counters.read()) == 1
    counters.close()


def test_a_reading_has_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    a_cpu(tmp_path, 0, 1_000_000, 0)
    a_cpu(tmp_path, 1, 2_000_000, 0)
    limits = Limits(os.getpid())
    throttled = {"periods": 1, "throttled": 4, "throttled_ns": 9}
    monkeypatch.setattr(Limits, "throttling", lambda self: throttled)
    around = Surroundings(SystemCounters([], []), Frequency([0, 1], root=tmp_path), limits)
    assert around.sample() == {"khz": {"0": 1_000_000, "1": 2_000_000}, "quota": throttled}
    assert around.sample() is None  # it is not time yet
    assert around.sample(now=True) is None  # all is as it was
    put(tmp_path, {"cpu1/cpufreq/scaling_cur_freq": 900_000})
    throttled = {"periods": 9, "throttled": 4, "throttled_ns": 9}  # time passes: no news
    assert around.sample(now=True) == {"khz": {"1": 900_000}}
    throttled = {"periods": 10, "throttled": 5, "throttled_ns": 12}
    assert around.sample(now=True) == {"quota": throttled}


# --- tables and views -----------------------------------------------------------------------------
SECOND = 1_000_000_000


def recorded(tmp_path: Path, clock: bool = False) -> Trace:
    """CPU 0 at 1.2 GHz for the last 60 % of the run; CPU 1 is slow too, but nobody runs there."""
    builder = TraceBuilder()
    run = sample_run(builder=builder)
    begin, end = run.call_ns[0][0], run.call_ns[-1][1]
    for tid in (77, 78):
        builder.sched(tid, begin - 10, "in", cpu=0)
    facts = {
        "counters": [
            {"name": "uncore_imc/cas_count_read/", "cpus": [0], "scale": 2.0**-14, "unit": "MiB"},
            {"name": "system:context-switches", "cpus": [0, 1], "scale": 1.0, "unit": ""},
            *([{"name": "system:task-clock:u", "cpus": [0], "scale": 1.0, "unit": ""}] * clock),
        ],
        "clocks": {"0": {"max_khz": 3_400_000}, "1": {"max_khz": 3_400_000}},
        "throttles": {"begin": {"core": 3, "package": 1}, "end": {"core": 9, "package": 1}},
    }
    builder.update(surroundings=facts)

    def note(ts: int, **what: object) -> None:
        builder.json_chunk(4, {"ts": ts, "what": "surroundings", **what})

    quota = {"periods": 10, "throttled": 2, "throttled_ns": 5_000_000}
    one, two = ([[7, 10, 10]] * clock, [[7 + 3_500_000, 1010, 1010]] * clock)
    note(begin - SECOND, counters=[[1000, 10, 10], [5, 10, 10], *one], quota=quota,
         khz={"0": 3_400_000, "1": 800_000})  # fmt: skip
    note(begin + (end - begin) * 4 // 10, khz={"0": 1_200_000})
    more = {"periods": 20, "throttled": 5, "throttled_ns": 45_000_000}
    # Of the second counter only half of the time: 30 were seen, 60 are reckoned with.
    note(end - 1, counters=[[1000 + (3 << 14), 1010, 1010], [35, 1010, 510], *two], quota=more)
    note(end, counters=[[1, 1, 1]])  # malformed: of one counter only
    return Trace.open(builder.write(tmp_path / "t.pf"))


def test_tables(tmp_path: Path) -> None:
    trace = recorded(tmp_path)
    table = trace.system_counters
    assert table["name"].tolist() == 2 * ["uncore_imc/cas_count_read/", "system:context-switches"]
    assert table["value"].tolist() == [0.0, 0.0, 3.0, 60.0]
    assert table["unit"].tolist() == ["MiB", "", "MiB", ""]
    assert table["running"].tolist() == [1.0, 1.0, 1.0, 0.5]
    assert trace.frequency["khz"].tolist() == [3_400_000, 800_000, 1_200_000]
    assert trace.frequency["cpu"].tolist() == [0, 1, 0]
    assert trace.throttling["throttled"].tolist() == [2, 5]


def test_system_counters_view(tmp_path: Path) -> None:
    trace = recorded(tmp_path)
    result = views.system_counters(trace)
    rows = result.frame.set_index("name")
    reads = rows.loc["uncore_imc/cas_count_read/"]
    assert (reads["total"], reads["unit"]) == (3.0, "MiB")
    assert reads["per_s"] == pytest.approx(3.0, rel=0.01)
    assert reads["per_token"] == pytest.approx(3.0 / trace.calls["n_tokens"].sum())
    assert rows.loc["system:context-switches", "total"] == 60
    assert any("system:context-switches 50 %" in note.text for note in result.notes)


def test_clocks_of_the_kernel_count_time(tmp_path: Path) -> None:
    trace = recorded(tmp_path, clock=True)
    assert trace.system_counters["unit"].tolist() == 2 * ["MiB", "", "ns"]
    clock = views.system_counters(trace).frame.set_index("name").loc["system:task-clock:u"]
    assert (clock["total"], clock["unit"]) == (3.5, "ms")
    assert clock["per_s"] == pytest.approx(3.5, rel=0.01)


def test_a_slow_clock_and_heat_are_findings(tmp_path: Path) -> None:
    trace = recorded(tmp_path)
    told = views.clocks(trace).set_index("cpu")
    assert told.loc[0, "slow"] == pytest.approx(0.6, abs=0.01)
    assert told.loc[0, "mean_khz"] == pytest.approx(0.4 * 3.4e6 + 0.6 * 1.2e6, rel=0.01)
    assert (told.loc[0, "used"], told.loc[1, "used"], told.loc[1, "slow"]) == (1.0, 0.0, 1.0)
    found = {f.name: f.text for f in views.findings(trace)}
    assert "CPU 0 ran at 1.2 to 3.4 of 3.4 GHz, below 80 % of it in 60 %" in found["slow_clock"]
    assert "CPU 1" not in str(found)
    assert found["heat"].startswith("heat lowered the clock 6 times (of the core)")
    assert views.frequency(trace).frame["mean_mhz"].tolist()[1] == 800


def test_a_trace_without_any_of_it(tmp_path: Path) -> None:
    builder = TraceBuilder()
    sample_run(builder=builder)
    trace = Trace.open(builder.write(tmp_path / "t.pf"))
    assert not len(trace.system_counters) and not len(trace.frequency) and not len(trace.throttling)
    assert views.findings(trace) == []
    assert not len(views.frequency(trace).frame)


def test_timeline(tmp_path: Path) -> None:
    trace = recorded(tmp_path)
    series = {s.name: s for s in surroundingseries.of_trace(trace)}
    clock, quota = series["CPU 0 clock"], series["throttled by the quota, so far"]
    assert (clock.unit, clock.value.tolist()) == ("MHz", [3400.0, 1200.0])
    assert quota.value.tolist() == [0.0, 3.0]
    reads = series["uncore_imc/cas_count_read/"]
    assert reads.unit == "MiB/s" and reads.value[0] == pytest.approx(3.0, rel=0.01)
    out = tmp_path / "t.pftrace"
    with out.open("wb") as file:
        write(Timeline.of_trace(trace), file)
    report = check(out.read_bytes())
    assert report.problems == []
    drawn = [value for _ts, value in report.counters[report.track("CPU 0 clock")]]
    assert drawn == [3400, 1200]
