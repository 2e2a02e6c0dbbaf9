"""How a recording starts and ends: exit codes, signals, crashes, bad input, full disks."""

from __future__ import annotations

import bisect
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from profinfer.model.trace import Trace
from profinfer.tracefile.reader import TraceReader
from profinfer.tracefile.schema import CNT_LOST, CNT_OP_LOST, CNT_OP_RECORDS, CNT_SENT, Kind

pytestmark = pytest.mark.bpf

REPO = Path(__file__).resolve().parents[2]


def one_clear_line(result: subprocess.CompletedProcess[str]) -> str:
    """The error line; there is one, with no traceback, and the exit status says so."""
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    assert "internal error" not in result.stderr
    lines = [ln for ln in result.stderr.splitlines() if ln.startswith("profinfer: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


def start(*args: str | Path) -> subprocess.Popen[str]:
    env = os.environ | {"PYTHONPATH": str(REPO)}
    return subprocess.Popen(
        [sys.executable, "-m", "profinfer", *map(str, args)],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_size(path: Path, size: int, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if path.exists() and path.stat().st_size > size:
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} did not grow beyond {size} bytes")


# --- exit status --------------------------------------------------------------------------


def test_exit_code_is_the_targets(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    out = tmp_path / "t.pf"
    result = run_profinfer("record", "-o", out, "--", fake_ggml, "--mode", "exit3")
    assert result.returncode == 3
    assert Trace.open(out).reader.trailer.exit_code == 3


def test_a_shell_that_becomes_the_program(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    out = tmp_path / "t.pf"
    become = ["/bin/sh", "-c", f"exec {fake_ggml} --tokens 2 --out /dev/null"]
    result = run_profinfer("record", "-o", out, "--", *become)
    assert result.returncode == 0, result.stderr
    assert Trace.open(out).meta.target.exe == str(fake_ggml.resolve())


def test_stdout_is_the_targets(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    result = run_profinfer("record", "-o", tmp_path / "t.pf", "--", fake_ggml, "--tokens", "2")
    assert result.returncode == 0
    assert json.loads(result.stdout)["threads"] == 2


def test_crash_leaves_a_good_trace(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    out = tmp_path / "t.pf"
    result = run_profinfer("record", "-o", out, "--", fake_ggml, "--mode", "crash")
    assert "was killed by SIGSEGV" in one_clear_line_of_crash(result)
    assert result.returncode == 128 + signal.SIGSEGV
    trace = Trace.open(out)
    assert trace.problems == []
    assert trace.reader.trailer.exit_signal == signal.SIGSEGV
    # The graph it died in is there, as far as it came, and is not counted as a whole one.
    assert trace.graphs["cut"].sum() == 1
    cut = trace.graphs[trace.graphs["cut"]].iloc[0]
    ran = trace.ops[trace.ops["graph_id"] == cut["graph_id"]]
    assert len(ran) > 0
    assert trace.graphs["complete"].sum() == len(trace.graphs) - 1
    assert trace.losses["cut_calls"] == 1


def one_clear_line_of_crash(result: subprocess.CompletedProcess[str]) -> str:
    lines = [ln for ln in result.stderr.splitlines() if "was killed by" in ln]
    assert len(lines) == 1, result.stderr
    return lines[0]


def test_forked_children_do_not_disturb(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    out = tmp_path / "t.pf"
    result = run_profinfer("record", "-o", out, "--", fake_ggml, "--mode", "fork", "--tokens", "12")
    assert result.returncode == 0
    trace = Trace.open(out)
    assert {k: v for k, v in trace.losses.items() if v} == {}
    assert (trace.calls["phase"] == "decode").sum() == 12
    assert trace.graphs["complete"].all()


def test_no_inference(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    out = tmp_path / "t.pf"
    result = run_profinfer("record", "-o", out, "--", fake_ggml, "--mode", "idle")
    assert "ran no inference" in one_clear_line(result)
    report = run_profinfer("report", out)
    one_clear_line(report)


def test_tensors_of_another_layout(tmp_path: Path, build_fake_ggml, run_profinfer) -> None:
    """The target runs to its end, and nobody is given numbers read from the wrong places."""
    target = build_fake_ggml(defs="-DFAKE_OTHER_LAYOUT")
    out = tmp_path / "t.pf"
    result = run_profinfer("record", "-o", out, "--", target, "--tokens", "30")
    line = one_clear_line(result)
    assert "makes no sense (strides do not follow from the shapes)" in line
    assert "the probes were removed" in line
    assert "--level token" in result.stderr
    report = run_profinfer("report", out)
    assert "ERROR: what was read of tensors makes no sense" in report.stdout
    again = run_profinfer("record", "--force", "--level", "token", "-o", out, "--", target)
    assert again.returncode == 0, again.stderr


def test_target_runs_as_the_user_behind_sudo(fake_ggml: Path) -> None:
    """The target drops root, and the trace belongs to the user."""
    folder = Path("/tmp/pf_sudo")
    shutil.copytree(fake_ggml.parent, folder, dirs_exist_ok=True)
    folder.chmod(0o777)
    try:
        result = subprocess.run(
            [
                sys.executable,
                "-m",
                "profinfer",
                "record",
                "-o",
                folder / "t.pf",
                "--",
                folder / "fake_ggml",
                "--tokens",
                "1",
                "--out",
                folder / "truth.json",
            ],
            env=os.environ | {"PYTHONPATH": str(REPO), "SUDO_UID": "65534", "SUDO_GID": "65534"},
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        assert (folder / "truth.json").stat().st_uid == 65534
        assert (folder / "truth.json").stat().st_gid == 65534
        assert (folder / "t.pf").stat().st_uid == 65534
        assert len(Trace.open(folder / "t.pf").calls) == 3
    finally:
        shutil.rmtree(folder)


def test_progress_line(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    out = tmp_path / "t.pf"
    command = [fake_ggml, "--seconds", "1.5", "--out", "/dev/null"]
    result = run_profinfer("record", "--progress", "-o", out, "--", *command)
    assert result.returncode == 0
    lines = [ln for ln in result.stderr.splitlines() if " events/s" in ln]
    assert len(lines) >= 3
    assert "none lost" in lines[-1]
    # Not where it would spoil something: a pipe, unless asked for.
    quiet = run_profinfer("record", "--force", "-o", out, "--", *command)
    assert "events/s" not in quiet.stderr


# --- signals --------------------------------------------------------------------------------


def test_interrupt_ends_the_target_and_keeps_the_trace(tmp_path: Path, fake_ggml: Path) -> None:
    out = tmp_path / "t.pf"
    recorder = start("record", "-o", out, "--", fake_ggml, "--seconds", "60")
    wait_for_size(out, 150_000)
    recorder.send_signal(signal.SIGINT)
    _, stderr = recorder.communicate(timeout=20)
    assert recorder.returncode == 130
    assert "wrote" in stderr
    trace = Trace.open(out)
    assert trace.problems == []
    assert trace.reader.trailer.reason == "interrupted"
    assert len(trace.graphs) > 5


def test_terminal_interrupt_reaches_the_target_once(tmp_path: Path, fake_ggml: Path) -> None:
    """Ctrl-C in a terminal goes to the whole group; we must not send a second one."""
    out = tmp_path / "t.pf"
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["PYTHONPATH"] = str(REPO)
        argv = [sys.executable, "-m", "profinfer", "record", "-o", str(out), "--"]
        os.execv(argv[0], [*argv, str(fake_ggml), "--seconds", "60", "--out", "/dev/null"])
    wait_for_size(out, 20_000)
    os.write(terminal, b"\x03")
    shown = b""
    try:
        while chunk := os.read(terminal, 4096):
            shown += chunk
    except OSError:
        pass  # the terminal is gone with its last user
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 130, shown
    assert b"wrote" in shown
    assert Trace.open(out).reader.trailer.reason in ("interrupted", "target exited")


def test_killed_recorder_leaves_a_readable_trace(tmp_path: Path, fake_ggml: Path) -> None:
    out = tmp_path / "t.pf"
    recorder = start("record", "-o", out, "--", fake_ggml, "--seconds", "5")
    wait_for_size(out, 300_000)  # what a busy machine switches is in it, too
    recorder.kill()
    recorder.wait(timeout=10)
    assert recorder.stderr is not None
    recorder.stderr.close()
    trace = Trace.open(out)
    assert len(trace.graphs) > 5
    assert any("did not finish" in p for p in trace.problems)


def test_killed_target_in_the_middle(tmp_path: Path, fake_ggml: Path) -> None:
    out = tmp_path / "t.pf"
    recorder = start("record", "-o", out, "--", fake_ggml, "--seconds", "60")
    wait_for_size(out, 50_000)
    children = Path(f"/proc/{recorder.pid}/task/{recorder.pid}/children").read_text().split()
    os.kill(int(children[-1]), signal.SIGKILL)
    _, stderr = recorder.communicate(timeout=20)
    assert recorder.returncode == 128 + signal.SIGKILL
    assert "was killed by SIGKILL" in stderr
    trace = Trace.open(out)
    assert trace.problems == []
    lost = {
        k: v for k, v in trace.losses.items() if v and k.startswith(("lost", "missing", "orphan"))
    }
    assert lost == {}


# --- bad input --------------------------------------------------------------------------------


def test_exec_failure(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    """Found, readable, an engine; but the kernel will not run it."""
    plain = tmp_path / "not_executable"
    shutil.copy(fake_ggml, plain)
    plain.chmod(0o644)
    out = tmp_path / "t.pf"
    line = one_clear_line(run_profinfer("record", "-o", out, "--", plain))
    assert str(plain) in line
    assert not out.exists()


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("/nonexistent/llama-cli", "llama-cli"),
        ("/etc/passwd", "ELF"),
        ("/bin/true", "no ggml"),
        ("/tmp", "folder"),
    ],
)
def test_not_a_target(program: str, says: str, tmp_path: Path, run_profinfer) -> None:
    out = tmp_path / "t.pf"
    assert says in one_clear_line(run_profinfer("record", "-o", out, "--", program))
    assert not out.exists()


def test_existing_trace_is_kept(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    out = tmp_path / "t.pf"
    out.write_text("precious")
    line = one_clear_line(run_profinfer("record", "-o", out, "--", fake_ggml))
    assert "exists" in line
    assert out.read_text() == "precious"
    forced = run_profinfer("record", "--force", "-o", out, "--", fake_ggml, "--tokens", "1")
    assert forced.returncode == 0
    assert len(Trace.open(out).calls) == 3


def test_unwritable_output(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    out = tmp_path / "nowhere" / "t.pf"
    assert str(out) in one_clear_line(run_profinfer("record", "-o", out, "--", fake_ggml))


def test_no_root(tmp_path: Path, fake_ggml: Path) -> None:
    """An ordinary user is told what is missing."""
    # Imports first: the tests' own Python may lie where only root can read.
    code = (
        "import os, profinfer.capture.session, profinfer.capture.preflight, profinfer.cli.record\n"
        "from profinfer.cli import main\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "main()"
    )
    shutil.copytree(fake_ggml.parent, "/tmp/pf_no_root", dirs_exist_ok=True)
    Path("/tmp/pf_no_root").chmod(0o755)
    try:
        program = "/tmp/pf_no_root/fake_ggml"
        result = subprocess.run(
            [sys.executable, "-c", code, "record", "-o", "/tmp/pf_no_root/t.pf", "--", program],
            env=os.environ | {"PYTHONPATH": str(REPO)},
            capture_output=True,
            text=True,
        )
    finally:
        shutil.rmtree("/tmp/pf_no_root")
    assert "root" in one_clear_line(result)
    assert "sudo" in result.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def test_full_disk(small_disk: Path, fake_ggml: Path, run_profinfer) -> None:
    out = small_disk / "t.pf"
    command = [
        fake_ggml,
        "--layers",
        "60",
        "--tokens",
        "60",
        "--base-us",
        "2",
        "--out",
        "/dev/null",
    ]
    result = run_profinfer("record", "-o", out, "--", *command)
    assert "no space left" in one_clear_line(result)
    reader = TraceReader(out)  # what is whole can be read
    assert any("did not finish" in p for p in reader.problems)


# --- losses -------------------------------------------------------------------------------


def test_losses_add_up(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    """With a ring far too small, what is missing is exactly what was counted as lost."""
    out, truth = tmp_path / "t.pf", tmp_path / "truth.json"
    command = [fake_ggml, "--layers", "20", "--seconds", "3", "--base-us", "2", "--out", truth]
    recorder = start("record", "--ring-size", "64K", "-o", out, "--", *command)
    wait_for_size(out, 60_000)
    recorder.send_signal(signal.SIGSTOP)
    time.sleep(0.7)
    recorder.send_signal(signal.SIGCONT)
    _, stderr = recorder.communicate(timeout=30)
    assert recorder.returncode == 0
    assert "LOST" in stderr
    reader = TraceReader(out)
    counters = reader.trailer.counters
    assert counters[CNT_OP_LOST] > 0
    # Records: the kernel's own count of what it put in equals what the file holds.
    held = reader.count_by_kind()
    for kind in Kind:
        assert held.get(kind, 0) == counters[CNT_SENT + kind], kind
    assert len(reader.ops().ops) == counters[CNT_OP_RECORDS]
    # And what it gave up equals what the target knows to have done and the file lacks.
    said = json.loads(truth.read_text())["contexts"][0]
    calls = len(said["calls"])
    for kind in (Kind.CALL_BEGIN, Kind.CALL_END, Kind.GRAPH_BEGIN, Kind.GRAPH_END):
        assert held.get(kind, 0) + counters[CNT_LOST + kind] == calls, kind
    # No call is made of the begin of one and the end of another.
    truth_ns = {c["begin_ns"]: c["end_ns"] for c in said["calls"]}
    begins = sorted(truth_ns)
    calls = Trace.open(out).calls
    assert 0 < calls["lost_before"].sum() < len(calls) < len(said["calls"])
    for begin, end in calls[~calls["cut"]][["begin_ns", "end_ns"]].to_numpy().tolist():
        # The probes lie inside of the two moments that the target notes.
        own = begins[bisect.bisect_right(begins, begin) - 1]
        assert own <= begin < end <= truth_ns[own]
    # Every view says so, and what is shown is of whole graphs only.
    shown = run_profinfer("report", out)
    assert shown.returncode == 0
    assert "lost" in shown.stdout.lower()
    trace = Trace.open(out)
    assert trace.losses["lost_op_records"] == counters[CNT_OP_LOST]
    assert 0 < trace.graphs["complete"].sum() < len(trace.graphs) + counters[CNT_LOST + 7]
    whole = trace.ops[trace.ops["complete"]]
    nodes = trace.nodes[~trace.nodes["empty"] & (trace.nodes["flags"] & 16 > 0)]
    per_def = nodes.groupby("def_id").size()
    graphs = trace.graphs[trace.graphs["complete"]].set_index("graph_id")
    covered = whole.groupby("graph_id")["fused"].sum()
    for graph_id, row in graphs.iterrows():
        assert covered[graph_id] == per_def[row["def_id"]] * row["threads_seen"]
