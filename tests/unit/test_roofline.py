"""The roofline view: rates and shares by hand, verdicts, what is absent without a calibration."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from builders import Graph, Node, TraceBuilder, sample_trace

from profinfer.analysis.roofline import KEYS, roofline
from profinfer.analysis.roofs import Found, of_trace
from profinfer.analysis.verdict import Facts, verdict
from profinfer.cli import run
from profinfer.cli.report import command
from profinfer.machine import store
from profinfer.machine.roofs import Calibration, Machine, Roof
from profinfer.model.trace import Trace

HOST = Machine("Example CPU", 2, 8 << 30)


def made(machine: Machine = HOST, read: float = 10e9, fp32: float = 50e9) -> Calibration:
    roofs = [Roof("read", 2, read, read, 0.01, 20, 20), Roof("fp32", 2, fp32, fp32, 0.01, 20, 20)]
    roofs.append(Roof("int8", 2, 4 * fp32, 4 * fp32, 0.01, 20, 20))
    return Calibration(machine, "2026-11-24T10:00:00Z", "by hand", tuple(roofs))


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("SUDO_USER", raising=False)


def one_product(
    tmp_path: Path, ns: int, op: str = "MUL_MAT", away: tuple[int, int] | None = None
) -> Trace:
    """A 512 x 1024 product in q8_0 with one column that takes ``ns`` on both threads.

    From ``away[0]`` to ``away[1]`` ns after its begin other processes have the CPUs.
    """
    w = Node("blk.0.ffn_up.weight", "NONE", "q8_0", (1024, 512), flags=0)
    x = Node("x", "NONE", "f32", (1024,), flags=0)
    node = Node("ffn_up-0", op, "f32", (512,), (w, x))
    builder = TraceBuilder()
    builder.call_begin(77, 1_000_000, n_tokens=1, pos_first=3, pos_last=3)
    graph = Graph([node, Node("out (view)", "VIEW", "f32", (512,), (node,), view_src=node)], [w, x])
    builder.define(graph, 77, 1_000_400)
    for tid in (77, 78) if away else ():
        other = (900 + tid, 900 + tid, "busy")
        builder.sched(tid, 999_000, "in", cpu=tid - 77)
        builder.sched(tid, 1_000_500 + away[0], "preempt", cpu=tid - 77, other=other)
        builder.sched(tid, 1_000_500 + away[1], "in", cpu=tid - 77, other=other)
    truth = builder.run_graph(graph, begin=1_000_500, compute=ns)
    builder.call_end(77, truth.end_ns + 10)
    return Trace.open(builder.write(tmp_path / "t.pf"))


def test_rates_and_shares_by_hand(tmp_path: Path) -> None:
    trace = one_product(tmp_path, 100_000)
    result = roofline(trace, trace.select(), "op", Found(made(), "trace"))
    (row,) = result.frame.to_dict("records")
    wall = row["wall_ns"]
    flops, moved = 2 * 512 * 1024, 512 * 1024 // 32 * 34 + 1024 * 4 + 512 * 4
    assert (row["flops"], row["weight_bytes"]) == (flops, 512 * 1024 // 32 * 34)
    assert row["flop_per_s"] == pytest.approx(flops / wall * 1e9)
    assert row["bytes_per_s"] == pytest.approx(moved / wall * 1e9)
    assert row["intensity"] == pytest.approx(flops / moved)
    # 563,200 bytes at 10 GB/s take 56.3 us, a million operations at 200 G/s 5.2 us.
    assert row["roof"] == row["of_memory"] == pytest.approx(moved / 10 / wall)
    assert row["of_compute"] == pytest.approx(flops / 200 / wall)
    assert row["bound"] == "memory" and row["evidence"].startswith("56 % of the memory roof")


@pytest.mark.parametrize(
    ("facts", "bound", "evidence"),
    [
        (Facts(0.7, 0.2, 0.7, 1.0, 0.4, 1e6), "memory", "70 % of the memory roof"),
        (Facts(0.2, 0.6, 0.6, 0.1, 0.4, 1e6), "compute", "60 % of the compute roof"),
        (Facts(1.4, 0.2, 1.4, 1.0, 0.0, 1e6), "cache", "140 % of the memory roof"),
        (Facts(0.3, 0.1, 0.3, 1.0, 0.4, 1e6), "sync", "40 % waiting"),
        (Facts(0.3, 0.1, 0.3, 1.0, 0.1, 5e3), "latency", "5.00 µs each"),
        (Facts(0.3, 0.1, 0.3, 1.0, float("nan"), 5e3), "latency", "5.00 µs each"),
        (Facts(0.3, 0.1, 0.3, 1.0, 0.1, 5e4), "neither", "far below both roofs"),
        (Facts(0.3, 0.1, 0.3, 1.0, 0.1, 5e4, 0.98), "neither", "far below both roofs"),
        (Facts(0.3, 0.1, 0.3, 1.0, 0.4, 5e3, 0.22), "no CPU", "on a CPU for 22 % of its"),
        (Facts(0.7, 0.2, 0.7, 1.0, 0.4, 1e6, 0.70), "memory", "70 % of the memory roof"),
    ],
)
def test_verdicts(facts: Facts, bound: str, evidence: str) -> None:
    found = verdict(facts)
    assert found[0] == bound and found[1].startswith(evidence)


def test_threads_without_a_cpu_are_what_bounds(tmp_path: Path) -> None:
    calibration = made(read=100e9, fp32=500e9)  # far away
    for away, bound in (((10_000, 90_000), "no CPU"), ((10_000, 20_000), "neither")):
        trace = one_product(tmp_path, 100_000, away=away)
        result = roofline(trace, trace.select(), "op", Found(calibration, "trace"))
        (row,) = result.frame.to_dict("records")
        assert row["bound"] == bound
        assert row["on_cpu"] == pytest.approx(1 - (away[1] - away[0]) / 100_000, abs=0.01)
    assert "of its computing" not in row["evidence"]


def test_without_a_calibration_there_is_no_roof_but_a_line(tmp_path: Path) -> None:
    trace = one_product(tmp_path, 100_000)
    result = roofline(trace, trace.select(), "op", of_trace(trace))
    assert not {"roof", "bound", "evidence"} & {c.name for c in result.columns}
    assert {"flop_per_s", "bytes_per_s"} <= {c.name for c in result.columns}
    assert any("profinfer calibrate" in n.text for n in result.notes)


def test_the_calibration_of_another_machine_is_not_used(tmp_path: Path) -> None:
    trace = one_product(tmp_path, 100_000)
    store.save(made(Machine("Other CPU", 8, 16 << 30)))
    found = of_trace(trace)
    assert found.calibration is None
    assert "recorded on Example CPU, 2 CPUs, 8 GiB" in found.source and "Other CPU" in found.source
    store.save(made())
    assert of_trace(trace) == Found(made(), "machine")


def test_a_trace_carries_its_own(tmp_path: Path) -> None:
    carried = made(read=7e9)
    store.save(made())
    path = sample_trace(calibration=carried.to_json()).write(tmp_path / "c.pf")
    assert of_trace(Trace.open(path)) == Found(carried, "trace")
    broken = sample_trace(calibration={"schema": "x"}).write(tmp_path / "d.pf")
    assert of_trace(Trace.open(broken)).source == "machine"


def test_what_is_not_known_is_said_and_not_counted(tmp_path: Path) -> None:
    trace = one_product(tmp_path, 100_000, op="CUSTOM")
    result = roofline(trace, trace.select(), "op", Found(made(), "trace"))
    (row,) = result.frame.to_dict("records")
    assert row["bound"] is None and row["unknown_ns"] == row["wall_ns"]
    assert all(row[k] != row[k] for k in ("flop_per_s", "bytes_per_s", "roof"))  # NaN
    assert any(n.text == "work not known: CUSTOM, 100.0 % of the time" for n in result.notes)


def test_a_verdict_that_rests_on_a_bound_has_a_question_mark(tmp_path: Path) -> None:
    """Attention over 4096 cells, of which the engine may pass over most."""
    q = Node("q", "NONE", "f32", (64, 1, 8), flags=0)
    k, v = (Node(f"cache_{n}_l0", "NONE", "f16", (64, 4096, 8), flags=0) for n in "kv")
    node = Node("fa-0", "FLASH_ATTN_EXT", "f32", (64, 8), (q, k, v))
    builder = TraceBuilder()
    builder.call_begin(77, 1_000_000, n_tokens=1, pos_first=3, pos_last=3)
    truth = builder.run_graph(Graph([node], [q, k, v]), begin=1_000_500, compute=1_000_000)
    builder.call_end(77, truth.end_ns + 10)
    trace = Trace.open(builder.write(tmp_path / "fa.pf"))
    result = roofline(trace, trace.select(), "op", Found(made(), "trace"))
    assert result.frame["kv_bytes"].tolist() == [2 * 64 * 4096 * 8 * 2]
    assert result.frame["bound"].tolist() == ["memory?"]  # 8.4 MB at 10 GB/s in 1 ms: 84 %
    assert any(n.text.startswith("FLASH_ATTN_EXT: at most") for n in result.notes)


def test_a_token_s_needs_are_said(tmp_path: Path) -> None:
    trace = Trace.open(sample_trace().write(tmp_path / "s.pf"))
    result = roofline(trace, trace.select(phase="decode"), "op", Found(made(), "trace"))
    assert result.notes[0].text.startswith("a token: 47.8 KiB of weights, 8.")
    assert "the roofs allow" in result.notes[0].text


@pytest.mark.parametrize("by", KEYS)
def test_groups_add_up(tmp_path: Path, by: str) -> None:
    trace = Trace.open(sample_trace().write(tmp_path / "s.pf"))
    chosen = trace.select(phase="decode")
    result = roofline(trace, chosen, by, Found(made(), "trace"))
    assert result.total is not None
    for name in ("wall_ns", "flops", "weight_bytes", "written_bytes"):
        assert result.frame[name].sum() == pytest.approx(result.total[name])
    assert result.frame["share"].sum() == pytest.approx(1)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(sample_trace(calibration=made().to_json()).write(tmp_path / "s.pf"))
    assert run(command, [path, "--roofline", "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    names = [r["name"] for r in data["results"]]
    assert names[:3] == ["roofline_by_op", "roofline_by_role", "roofline_by_node"]
    units = {c["name"]: c["unit"] for c in data["results"][0]["columns"]}
    assert (units["flop_per_s"], units["bytes_per_s"]) == ("flop_per_s", "bytes_per_s")
    assert run(command, [path, "--roofline", "--by", "thread"]) == 2
    assert "--roofline --by op" in capsys.readouterr().err
    one = ["--roofline", "--by", "node", "--phase", "decode", "--format", "csv"]
    assert run(command, [path, *one]) == 0
    assert "flop_per_s [flop_per_s]" in capsys.readouterr().out.splitlines()[0]


def test_a_trace_without_operators(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = sample_trace(plan={"level": "graph", "ops": {"mode": "none"}}).write(tmp_path / "g.pf")
    assert run(command, [str(path), "--roofline"]) == 2
    assert "--level op" in capsys.readouterr().err
