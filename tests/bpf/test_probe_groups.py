"""Probes that come and go while the target runs, by both ways of attaching."""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from profinfer.capture import program as program_module
from profinfer.capture import uprobes
from profinfer.capture.kernelcall import bpf
from profinfer.capture.probing import Probing
from profinfer.capture.program import Program
from profinfer.capture.source import headers_folder
from profinfer.capture.uprobes import AttachError, AttachPoint, Method
from profinfer.capture.wanted import Wanted
from profinfer.elf.modules import open_program
from profinfer.errors import EnvironmentProblem
from profinfer.model.trace import Trace
from profinfer.probes.plan import make_plan
from profinfer.tracefile.schema import CNT_OP_RECORDS, CNT_SENT, OPS, Kind

# From 3.12 on Python warns of fork beside other threads, which numpy has.
pytestmark = [pytest.mark.bpf, pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")]

REPO = Path(__file__).resolve().parents[2]
RING = 4 << 20


def usable(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    """From here on probes are attached in this way."""
    if method is Method.PERF:
        monkeypatch.setattr(program_module, "_best_method", lambda: Method.PERF)
    elif program_module._best_method() is not Method.MULTI:
        pytest.skip("this kernel has no uprobe-multi links")


@pytest.fixture
def target(fake_ggml: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([fake_ggml, "--seconds", "60", "--out", "/dev/null"])
    yield process
    process.kill()
    process.wait()


def seen(probing: Probing) -> tuple[bool, bool, bool]:
    """Whether calls, graphs, operators are recorded now."""
    # What was under way when probes were removed is over, and its batches are handed over.
    time.sleep(0.1)
    probing.drain(lambda block, tensors: None)
    before = probing.counters()
    time.sleep(0.3)
    after = probing.counters()
    what = (CNT_SENT + Kind.CALL_BEGIN, CNT_SENT + Kind.GRAPH_BEGIN, CNT_OP_RECORDS)
    calls, graphs, ops = (after[n] > before[n] for n in what)
    return calls, graphs, ops


@pytest.mark.parametrize("method", list(Method))
def test_levels_come_and_go(method, fake_ggml, target, monkeypatch) -> None:
    usable(method, monkeypatch)
    probing = Probing(make_plan(open_program(str(fake_ggml))), target.pid, Wanted(RING))
    try:
        assert probing.plan_json()["attached_by"] == method.value
        assert probing.attached == ("token", "graph", "op")
        assert seen(probing) == (True, True, True)
        for _ in range(2):
            probing.detach("op")
            assert probing.attached == ("token", "graph")
            assert seen(probing) == (True, True, False)
            probing.attach("op")
            probing.attach("op")  # they are there: nothing happens
            assert seen(probing) == (True, True, True)
        probing.detach("op", "graph")
        assert seen(probing) == (True, False, False)
        probing.detach()
        probing.detach()
        assert probing.attached == ()
        assert seen(probing) == (False, False, False)
        probing.attach()
        assert seen(probing) == (True, True, True)
    finally:
        probing.close()
    assert target.poll() is None


def op_records(entries: bytes) -> int:
    """Operator records in ring entries."""
    at = records = 0
    while at < len(entries):
        length, _, kind = struct.unpack_from("<IIH", entries, at)
        if kind == Kind.OPS:
            records += struct.unpack_from("<I", entries, at + 8 + OPS.fields["n"][1])[0]
        at += (length + 8 + 7) & ~7
    return records


def test_open_batches_are_handed_over_once(fake_ggml, target) -> None:
    """What threads had begun when the operators' probes went, and nothing of it later again."""
    probing = Probing(make_plan(open_program(str(fake_ggml))), target.pid, Wanted(RING))
    got = bytearray()

    def keep(block: memoryview, tensors: int) -> None:
        got.extend(block)

    try:
        for _ in range(6):
            time.sleep(0.07)
            probing.detach("op")
            left = probing.take_open_batches()
            got += b"".join(entry + bytes(-len(entry) % 8) for entry in left)
            assert probing.take_open_batches() == []
            probing.drain(keep)
            assert op_records(bytes(got)) == probing.counters()[CNT_OP_RECORDS] > 0
            probing.attach("op")
    finally:
        probing.close()


def test_a_refused_link_makes_way_for_perf_events(
    fake_ggml, target, monkeypatch: pytest.MonkeyPatch
) -> None:
    usable(Method.MULTI, monkeypatch)

    def refuse(program: int, path: str, offsets: list[int], *_: object) -> int:
        raise AttachError(f"refused at {path}+{offsets[0]:#x}")

    monkeypatch.setattr(uprobes, "_link", refuse)
    probing = Probing(make_plan(open_program(str(fake_ggml))), target.pid, Wanted(RING))
    try:
        assert probing.plan_json()["attached_by"] == "perf event"
        assert seen(probing) == (True, True, True)
    finally:
        probing.close()


@pytest.mark.parametrize("method", list(Method))
def test_all_or_none(method, fake_ggml, target, monkeypatch) -> None:
    """One bad place, and none of its group is left behind."""
    usable(method, monkeypatch)
    plan = make_plan(open_program(str(fake_ggml)))
    where = next(probe for probe in plan.probes if probe.kind == "uprobe")
    text = "#include <linux/ptrace.h>\nint f(struct pt_regs *ctx) { return 0; }"
    program = Program(text, [], headers=headers_folder(), pid=target.pid)
    good = AttachPoint("f", where.path, where.offset, False)
    group = program.group([good, AttachPoint("f", "/nonexistent", 0, False)])
    fds = len(os.listdir("/proc/self/fd"))
    with pytest.raises(AttachError, match="nonexistent"):
        group.attach()
    assert not group.attached
    assert len(os.listdir("/proc/self/fd")) <= fds + 1  # the function was loaded
    program.release()


def links_of(pid: int) -> int:
    """Uprobe-multi links on a process, of whoever made them (bpf(2), BPF_LINK_GET_NEXT_ID)."""
    found, at = 0, 0
    while True:
        attr = ctypes.create_string_buffer(struct.pack("=III", at, 0, 0), 12)
        try:
            bpf(31, attr)
        except OSError:
            return found
        at = struct.unpack_from("=I", attr, 4)[0]
        try:
            fd = bpf(30, ctypes.create_string_buffer(struct.pack("=III", at, 0, 0), 12))
        except OSError:
            continue  # gone meanwhile
        info = ctypes.create_string_buffer(128)
        where = struct.pack("=IIQ", fd, len(info), ctypes.addressof(info))
        bpf(15, ctypes.create_string_buffer(where, len(where)))
        os.close(fd)
        kind, of = struct.unpack_from("=I", info, 0)[0], struct.unpack_from("=I", info, 60)[0]
        found += kind == 12 and of == pid  # BPF_LINK_TYPE_UPROBE_MULTI


def test_probes_vanish_with_a_killed_recorder(
    tmp_path: Path, target: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody else holds them: neither the compiling child nor the target."""
    usable(Method.MULTI, monkeypatch)
    command = [sys.executable, "-m", "profinfer", "record", "-o", tmp_path / "t.pf"]
    recorder = subprocess.Popen(
        [*command, "--pid", str(target.pid)], env=os.environ | {"PYTHONPATH": str(REPO)}
    )
    until = time.monotonic() + 30
    while links_of(target.pid) < 10 and time.monotonic() < until:
        time.sleep(0.05)
    assert links_of(target.pid) >= 10
    recorder.send_signal(signal.SIGKILL)
    recorder.wait()
    while links_of(target.pid) and time.monotonic() < until:
        time.sleep(0.05)
    assert links_of(target.pid) == 0
    assert target.poll() is None


# --- loading ------------------------------------------------------------------------------------

COUNTING = """
#include <linux/ptrace.h>
BPF_ARRAY(numbers, u64, 4);
int f(struct pt_regs *ctx) { BODY }
"""


def test_what_the_verifier_refuses_is_said_in_one_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    body = "u32 key = bpf_get_prandom_u32(); u64 *v = numbers.lookup(&key); return *v;"
    program = Program(COUNTING.replace("BODY", body), [], headers=headers_folder(), pid=1)
    with pytest.raises(EnvironmentProblem, match=r"refused the BPF program f: R\d invalid mem"):
        program.load("f")
    assert list((tmp_path / "profinfer" / "bpf").iterdir()) == []  # it is not kept
    with pytest.raises(EnvironmentProblem, match="refused the BPF program f"):
        program.load_together(["f"])
    program.release()


def test_what_does_not_compile_is_said_in_one_line(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match=r"could not compile the probes: .*error: .*nope"):
        Program(COUNTING.replace("BODY", "return nope;"), [], headers=headers_folder(), pid=1)


def test_a_cached_program_is_the_same(tmp_path, fake_ggml, run_profinfer) -> None:
    """Without BCC's compiler, the second time."""
    env = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    traces = []
    for name in ("a.pf", "b.pf"):
        out = tmp_path / name
        result = run_profinfer("record", "-o", out, "--", fake_ggml, "--tokens", "4", env=env)
        assert result.returncode == 0, result.stderr
        traces.append(Trace.open(out))
    (kept,) = (tmp_path / "cache" / "profinfer" / "bpf").iterdir()
    first, second = traces
    assert len(first.ops) == len(second.ops) > 100
    assert first.problems == second.problems == []
    # Something else of the same name is refused by its checksum, and compiled anew.
    kept.write_bytes(b"0" * 5000)
    out = tmp_path / "c.pf"
    result = run_profinfer("record", "-o", out, "--", fake_ggml, "--tokens", "4", env=env)
    assert result.returncode == 0, result.stderr
    assert len(Trace.open(out).ops) == len(first.ops)
