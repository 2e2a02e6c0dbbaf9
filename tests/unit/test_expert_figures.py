"""Charts of experts, and the table of their passes: what is drawn is what was chosen."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from moetraces import MoeRun

from profinfer.analysis import expertpasses
from profinfer.cli import run
from profinfer.cli.report import command
from profinfer.model.trace import Trace
from profinfer.render.html import expertcostfigures as costs
from profinfer.render.html import expertfigures as figures
from profinfer.render.html import plot
from profinfer.render.html.drawing import NARROW

# Of each pass, of layers 0 and 1: expert 0 always, another one that comes back after 3 passes.
CHOICES = [[[[0, 1 + i % 3]], [[7, 6]]] for i in range(12)]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = MoeRun(layers=2, experts=8, used=2)
    made.decode([[[0, 5]], [[7, 6]]])  # warms up
    for number, choice in enumerate(CHOICES):
        made.decode(choice, slow_ns=3_000_000, read=4096 if number == 4 else 0)
    return made.builder.write(tmp_path_factory.mktemp("moe") / "moe.pf")


@pytest.fixture(scope="module")
def trace(path: Path) -> Trace:
    return Trace.open(path)


def test_every_use_of_an_expert_is_one_point_at_its_pass(trace: Trace) -> None:
    chosen = trace.select(phase="decode")
    uses = expertpasses.needed(trace, chosen)
    drawn = figures.routes(uses, 0, 8)
    assert drawn is not None
    points = {(x, y) for s in drawn.series for x, y in zip(s.x, s.y, strict=True)}
    layer = uses[uses["layer"] == 0]
    assert points == set(zip(layer["step"], layer["expert"], strict=True))
    assert len(points) == 2 * layer["step"].nunique()
    by_name = {s.name: s for s in drawn.series}
    # Expert 0 is needed by every pass; 1, 2 and 3 every third one.
    assert set(by_name["needed by the pass before"].y) == {0}
    assert set(by_name["2 to 4 passes ago"].y) == {1, 2, 3}
    assert "4 of 8 experts" in drawn.about


def test_each_expert_of_each_layer_has_the_passes_that_needed_it(trace: Trace) -> None:
    uses = expertpasses.needed(trace, trace.select(phase="decode"))
    drawn = figures.loads(uses, {0: 8, 1: 8})
    assert drawn is not None and drawn.cells is not None
    assert sum(drawn.cells.counts) == len(uses)
    passes = uses["step"].nunique()
    found = dict(zip(drawn.cells.places, drawn.cells.counts, strict=True))
    assert found[0.0, 1.0, -0.5, 0.5] == found[7.0, 8.0, 0.5, 1.5] == passes
    many = pd.DataFrame({"layer": np.arange(100), "expert": 127})
    drawn = figures.loads(many, dict.fromkeys(range(100), 128))
    assert drawn is not None and drawn.cells is not None and "neighbours share" in drawn.about
    assert all(right == 128 for _, right, _, _ in drawn.cells.places)


def test_long_runs_are_drawn_in_part_and_say_so() -> None:
    n = 3 * figures.PASSES_MAX
    uses = pd.DataFrame({"layer": 0, "step": np.arange(n), "expert": np.arange(n) % 4, "gap": 4})
    drawn = figures.routes(uses, 0, 4)
    assert drawn is not None
    assert sum(len(s.x) for s in drawn.series) == figures.PASSES_MAX
    assert f"{figures.PASSES_MAX} of {n:,} passes" in drawn.about


def test_the_slow_passes_are_those_whose_experts_were_away(trace: Trace) -> None:
    done = expertpasses.costs(trace, trace.select(phase="decode"))
    distance, times = figures.times(done, 0)
    every = [y for s in times.series for y in s.y]
    assert min(every) > 3_000_000  # in layer 0 one expert is always away
    assert max(distance.series[0].y) == 2.0  # (1 + 3) / 2
    _, calm = figures.times(done, 1)
    assert max(y for s in calm.series for y in s.y) < 3_000_000


def test_the_grid_holds_every_pass_once(trace: Trace) -> None:
    generator = np.random.default_rng(5)
    gap = generator.geometric(0.2, 500).astype(float)
    done = pd.DataFrame({"layer": 0, "gap": gap, "op_ns": 1e5 * gap, "first": 0})
    drawn = costs.density(done)
    assert drawn is not None and drawn.cells is not None
    assert sum(drawn.cells.counts) == 500
    places = drawn.cells.places
    assert all(a < b and c < d for a, b, c, d in places)
    middle = drawn.series[0]
    assert list(middle.y) == sorted(middle.y)  # the time grows with the distance
    svg = plot.draw(drawn, NARROW)
    assert svg.count('class="cell') == len(places) + 4  # and the legend
    assert len(plot.tips(drawn)) == len(places)


def test_products_with_faults_stand_at_what_they_read(trace: Trace) -> None:
    found = expertpasses.products(trace, trace.select(phase="decode"))
    assert set(found["product"]) == {"ffn_moe_up", "ffn_moe_down"}
    assert found["majors"].sum() == (trace.faults["major"] & (trace.faults["graph_id"] > 0)).sum()
    drawn = costs.disk(found.assign(read=0))
    assert drawn is not None and drawn.x.unit == "count"
    away = found[found["majors"] > 0]
    points = [v for s in drawn.series if s.kind == "points" for v in s.y]
    assert sorted(points) == sorted(away["op_ns"].astype(float))
    assert costs.disk(found.assign(read=0, majors=0)) is None


def test_the_table_names_the_experts_of_each_pass(
    path: Path, trace: Trace, capsys: pytest.CaptureFixture[str]
) -> None:
    table = expertpasses.by_pass(trace, trace.select(phase="decode", layer=(0, 1))).frame
    assert set(table["layer"]) == {0}
    assert table["which"].tolist() == [f"0 {1 + i % 3}" for i in range(12)][-len(table) :]
    assert set(table["ago"][3:]) == {"1 3"}
    args = [str(path), "--experts", "--by", "token", "--layer", "1", "--format", "csv"]
    assert run(command, [*args, "--phase", "decode"]) == 0
    assert "6 7,1 1" in capsys.readouterr().out


def test_the_page_has_them_for_the_layers_that_are_asked_for(path: Path, tmp_path: Path) -> None:
    out, narrow = tmp_path / "a.html", tmp_path / "b.html"
    assert run(command, [str(path), "--html", str(out), "--plots", str(tmp_path / "p")]) == 0
    for name in ("expert-routes-0", "expert-time-1", "expert-reuse", "expert-disk"):
        assert f'id="{name}"' in out.read_text()
        assert (tmp_path / "p" / f"{name}.svg").is_file()
    assert run(command, [str(path), "--html", str(narrow), "--layer", "1"]) == 0
    assert 'id="expert-routes-1"' in narrow.read_text()
    assert 'id="expert-routes-0"' not in narrow.read_text()
