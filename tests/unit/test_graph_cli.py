"""``profinfer graph``: in words, as JSON, in Graphviz' language, and what cannot be drawn."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from builders import TraceBuilder, sample_run
from kvruns import kv_run

from profinfer.analysis.opgraph import OpGraph, definitions, op_graph
from profinfer.cli import group, run
from profinfer.errors import EnvironmentProblem
from profinfer.model.trace import Trace
from profinfer.render import dotshapes, dotstyle, svg
from profinfer.render.dot import to_dot
from profinfer.render.dottext import Look

Capture = pytest.CaptureFixture[str]
NODE = re.compile(r"^ +(n\d+) \[label", re.MULTILINE)
EDGE = re.compile(r"^ +n(\d+) -> n(\d+) ", re.MULTILINE)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = sample_run(decode_tokens=4, layers=12, fuse_norms=True)
    return run.builder.write(tmp_path_factory.mktemp("graph") / "t.pf")


@pytest.fixture(scope="module")
def drawn(trace: Path) -> OpGraph:
    opened = Trace.open(trace)
    selection = opened.select(phase="decode")
    return op_graph(opened, int(definitions(opened, selection)["def_id"].iloc[0]), selection)


def graph(*args: object) -> int:
    return run(group, ["graph", *map(str, args)])


def test_in_words(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert graph(trace) == 0
    out = capsys.readouterr().out
    assert "layers 0-11 have the same 14 operators" in out
    assert "acyclic" in out and "critical path" in out
    assert max(map(len, out.splitlines())) <= 80


def test_json(trace: Path, drawn: OpGraph, capsys: pytest.CaptureFixture[str]) -> None:
    assert graph(trace, "--format", "json") == 0
    found = json.loads(capsys.readouterr().out)
    tables = {table["name"]: table for table in found["results"]}
    assert set(tables) == {
        "graph", "graph_layers", "graph_pattern", "graph_nodes", "graph_path",
        "graph_widths", "graph_steps",
    }  # fmt: skip
    (row,) = tables["graph"]["rows"]
    steps, widths = (tables[f"graph_{name}"]["rows"] for name in ("steps", "widths"))
    assert len(steps) == row["steps"] == sum(w["steps"] for w in widths)
    assert max(step["width"] for step in steps) == row["widest"] == widths[-1]["width"]
    assert sum(step["width"] for step in steps) == row["operators"]
    assert sum(w["wall_ns"] for w in widths) == pytest.approx(row["total_ns"])
    assert row["nodes"] == len(drawn)
    assert row["operators"] == int(drawn.works.sum())
    assert row["critical_ns"] == pytest.approx(drawn.paths.length)


def test_the_scope_is_what_the_numbers_are_of(tmp_path: Path, capsys: Capture) -> None:
    made = kv_run(90, {})  # the cache gets longer: three graphs
    trace = made.write(tmp_path / "kv.pf")
    assert graph(trace) == 0
    said = " ".join(capsys.readouterr().out.split())
    opened = Trace.open(trace)
    chosen = opened.select(phase="decode")
    runs = definitions(opened, chosen)["graphs"]
    assert len(runs) == 3 and f"means over {runs[0]} executions of graph" in said
    assert f"(decode: {chosen.n_graphs} graphs)" in said


def test_a_graph_without_operators_has_no_times(tmp_path: Path, capsys: Capture) -> None:
    plan = {"level": "graph", "ops": {"mode": "none"}}
    trace = sample_run(layers=4, plan=plan).builder.write(tmp_path / "g.pf")
    assert graph(trace, "--format", "json") == 0
    tables = {t["name"]: t for t in json.loads(capsys.readouterr().out)["results"]}
    assert tables["graph"]["rows"][0]["fused"] is None
    for name in ("graph_layers", "graph_pattern", "graph_nodes"):
        for row in tables[name]["rows"]:
            times = {k: v for k, v in row.items() if k.endswith("_ns") or k in ("share", "on_path")}
            assert set(times.values()) == {None}, (name, times)
    assert graph(trace, "--dot") == 0
    assert "critical path" not in capsys.readouterr().out


def test_two_parts_at_once(trace: Path, capsys: Capture) -> None:
    assert graph(trace, "--layer", "2:5", "--nodes", "3:100") == 2
    assert "--nodes and --layer" in capsys.readouterr().err


@pytest.mark.parametrize("args", [["--nodes", "3:9"], ["--layer", "4"], ["--token", "2"],
                                  ["--phase", "prefill"], ["--def", "0"]])  # fmt: skip
def test_parts(trace: Path, args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert graph(trace, *args) == 0
    assert capsys.readouterr().out
    assert graph(trace, *args, "--dot") == 0
    assert capsys.readouterr().out.startswith("digraph operators {")


def test_the_whole_graph_in_dot(drawn: OpGraph) -> None:
    text = to_dot(drawn)
    assert sorted(int(n[1:]) for n in NODE.findall(text)) == np.flatnonzero(drawn.works).tolist()
    found = {(int(a), int(b)) for a, b in EDGE.findall(text)}
    assert found == set(zip(drawn.folded.src, drawn.folded.dst, strict=True))
    assert text.count("style=dashed") >= drawn.folded.memory.sum() > 0
    for layer in range(12):
        assert f"subgraph cluster_{layer} " in text
    weights = drawn.sources[drawn.sources["kind"] == "weight"]["src_name"]
    assert text.count("shape=note") == len(set(weights))
    assert to_dot(drawn) == text


def test_views_are_drawn_on_request(drawn: OpGraph) -> None:
    text = to_dot(drawn, look=Look(views=True))
    assert len(NODE.findall(text)) == len(drawn)
    assert {(int(a), int(b)) for a, b in EDGE.findall(text)} == set(
        zip(drawn.every.src, drawn.every.dst, strict=True)
    )


def test_a_large_graph_is_drawn_by_one_layer(
    trace: Path, drawn: OpGraph, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "g.dot"
    assert graph(trace, "-o", out) == 0
    assert f"one of 12 alike; all {drawn.works.sum():,} operators: --all" in capsys.readouterr().err
    layer = drawn.nodes["layer"].to_numpy()
    text = out.read_text()
    inside = {int(n[1:]) for n in re.findall(r'id="node(\d+)"', text) for n in [f"n{n}"]}
    assert inside == set(np.flatnonzero((layer == 6) & drawn.works).tolist())
    # With what it reads of its neighbours and who reads it.
    beside = {int(n[1:]) for n in NODE.findall(text)} - inside
    assert beside and all(abs(layer[n] - 6) <= 1 for n in beside)
    assert graph(trace, "-o", out) == 2
    assert "exists" in capsys.readouterr().err
    assert graph(trace, "-o", out, "--all", "--force") == 0
    assert len(NODE.findall(out.read_text())) == drawn.works.sum()


@pytest.mark.parametrize("color", dotstyle.COLORS)
@pytest.mark.parametrize("theme", dotstyle.THEMES)
def test_colours(drawn: OpGraph, color: str, theme: str) -> None:
    shown = np.ones(len(drawn), bool)
    coloring = dotstyle.coloring(drawn, color, shown)
    used = {coloring.fill[i] for i in np.flatnonzero(drawn.works)}
    named = {c for c, _ in coloring.legend}
    assert used <= named | {dotstyle.NEUTRAL}
    text = to_dot(drawn, look=Look(color, theme))
    assert all(c in text for c in named)


def contrast(a: str, b: str) -> float:
    def light(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (p / 12.92 if p <= 0.03928 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    x, y = sorted((light(a), light(b)))
    return (y + 0.05) / (x + 0.05)


@pytest.mark.parametrize("kind", ["time", "bytes", "rate", "wait", "counter"])
def test_text_is_readable_on_every_colour(kind: str) -> None:
    colors = dotstyle.ramp(kind)
    assert all(contrast(c, dotstyle.ink_on(c)) >= 4.5 for c in colors)
    lights = [contrast(c, "#000000") for c in colors]
    assert lights == sorted(lights, reverse=True)  # light to dark


def test_the_form_says_what_kind_of_work_it_is(drawn: OpGraph) -> None:
    text = to_dot(drawn, look=Look(views=True))
    forms = dict(re.findall(r"(?m)^ +n(\d+) \[label=<.*>, shape=(\w+), style=", text))
    ops, roles = drawn.texts("op"), drawn.texts("role")
    assert len(forms) == len(drawn)
    wanted = {"MUL_MAT": "box", "RMS_NORM": "box", "SOFT_MAX": "octagon", "GET_ROWS": "cds",
              "VIEW": "cds", "SET_ROWS": "cds"}  # fmt: skip
    for place, form in forms.items():
        op = ops[int(place)]
        assert form == wanted.get(op, form), (op, roles[int(place)])
    assert {"box", "octagon", "cds"} == set(forms.values())
    for part in ("sharp corners: matrix product", "octagon: attention", "arrow: copy or view"):
        assert part in text
    # A router's softmax is no attention.
    assert dotshapes.kind("SOFT_MAX", "moe router") == dotshapes.OTHER


def test_colours_by_a_counter(capsys: Capture) -> None:
    path = Path(__file__).parents[1] / "golden" / "counted.pf"
    assert graph(path, "--color", "l3d_cache_refill", "--dot") == 0
    text = capsys.readouterr().out
    # One event of 64 bytes each 128 ns on each of two threads: about 1 GB/s.
    assert "l3d_cache_refill x 64 B / time" in text and "GB/s" in text
    assert graph(path, "--color", "cycles", "--dot") == 0
    assert "cycles of an execution" in capsys.readouterr().out
    assert graph(path, "--color", "instruction", "--dot") == 2
    assert "--color time, bytes, rate, wait, role, cycles" in capsys.readouterr().err
    opened = Trace.open(path)
    chosen = opened.select(phase="decode")
    found = op_graph(opened, int(definitions(opened, chosen)["def_id"].iloc[0]), chosen)
    values, _ = dotstyle.counted(found, "l3d_cache_refill")
    rows = chosen.rows(opened.ops)
    rows = rows[rows["graph_id"].map(opened.graphs["def_id"]) == found.def_id]
    refills = np.nan_to_num(opened.counted.values[rows.index.to_numpy(), 2]).sum()
    both = values[found.works] * found.nodes["wall_ns"].to_numpy()[found.works] / 1e9
    assert np.nansum(both) * found.executions == pytest.approx(64 * refills)


def test_hostile_names_do_not_break_the_language(tmp_path: Path) -> None:
    played = sample_run(decode_tokens=1, layers=1)
    evil = 'a"b\\c<d>&{e}|\n'
    played.definitions[-1].nodes[3].name = evil
    builder = TraceBuilder()
    builder.call_begin(77, 1_000, n_tokens=1, pos_first=0)
    truth = builder.run_graph(played.definitions[-1], begin=2_000)
    builder.call_end(77, truth.end_ns + 10)
    trace = Trace.open(builder.write(tmp_path / "t.pf"))
    text = to_dot(op_graph(trace, 0, trace.select()))
    # Quotes pair up, but for escaped ones; tags pair up.
    plain = text.replace("\\\\", "").replace('\\"', "")
    assert plain.count('"') % 2 == 0
    assert plain.count("<TD>") == plain.count("</TD>") - plain.count("<TD ")
    if shutil.which("dot"):
        svg.draw(text)


def test_without_graphviz_it_says_what_to_do(
    trace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert graph(trace, "--svg") == 1
    err = capsys.readouterr().err
    assert "Graphviz is not installed" in err and "apt install graphviz" in err
    assert graph(trace, "--dot") == 0


def test_a_failing_graphviz_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "dot"
    fake.write_text("#!/bin/sh\ncat >/dev/null; echo 'syntax error' >&2; exit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    with pytest.raises(EnvironmentProblem, match="dot failed: syntax error"):
        svg.draw("digraph {}")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--def", "99"], "no graph 99"),
        (["--layer", "77"], "no layer 77"),
        (["--nodes", "9000:9001"], "no operator among these nodes"),
        (["--token", "77"], "no such graph"),
        (["--token", "1", "--phase", "prefill"], "--token counts decoded tokens"),
        (["--dot", "--svg"], "one of them"),
        (["-o", "graph"], "ending"),
        (["--dot", "--format", "json"], "numbers"),
    ],
)
def test_what_cannot_be_done_is_one_clear_line(
    trace: Path, args: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert graph(trace, *args) == 2
    err = capsys.readouterr().err
    assert says in err
    assert len(err.splitlines()) <= 2


def test_traces_without_graphs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert graph(TraceBuilder().write(tmp_path / "none.pf")) == 2
    assert "holds no graph" in capsys.readouterr().err
    assert graph(tmp_path / "missing.pf") == 1


def test_without_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace = sample_run(layers=2, plan={"ops": {"mode": "none"}}).builder.write(tmp_path / "g.pf")
    assert graph(trace) == 0
    out = capsys.readouterr().out
    assert "its operators were not recorded: it has no times" in out
    assert "Critical path" not in out
    assert graph(trace, "--dot", "--all") == 0
    assert "n1 -> n2" in capsys.readouterr().out


def test_two_traces(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = sample_run(decode_tokens=2, layers=3).builder.write(tmp_path / "other.pf")
    assert graph(trace, other) == 0
    assert "no operator is missing, and none differs" in capsys.readouterr().out
    assert graph(trace, other, "--dot") == 0
    assert "t → other" in capsys.readouterr().out
    assert graph(trace, other, "--format", "json") == 0
    names = [t["name"] for t in json.loads(capsys.readouterr().out)["results"]]
    assert names == ["graphs", "graph_changes", "graph_counts"]
    assert graph(trace, other, "--layer", "1") == 2
    assert "compared whole" in capsys.readouterr().err
