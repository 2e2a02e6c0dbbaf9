"""Spread, reuse distances and caches of experts, against sums by hand and caches played."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from builders import sample_run
from moetraces import MoeRun

from profinfer.analysis import expertfindings, expertreuse, experts, expertuse
from profinfer.analysis.expertcosts import faults, passes
from profinfer.analysis.expertuse import FIRST, accesses, covering, distances, spread
from profinfer.cli import group, run
from profinfer.model.trace import Trace

LIKED = [60, 40, 30, 20, *[1] * 28]


def skewed(tmp_path: Path, *, slow_ns: int = 0, calls: int = 60) -> Trace:
    """32 experts of which four are liked; the first call is a prompt of 6 tokens."""
    rng = random.Random(3)
    made = MoeRun(layers=2, experts=32, used=2)
    for number in range(calls):
        tokens = 1 if number else 6
        made.decode(
            [[_two(rng) for _ in range(n)] for n in (tokens, 1)], slow_ns=slow_ns
        )  # fmt: skip
    return Trace.open(made.builder.write(tmp_path / "t.pf"))


def _two(rng: random.Random) -> list[int]:
    first, second = rng.choices(range(32), LIKED, k=2)
    while second == first:
        second = rng.choices(range(32), LIKED)[0]
    return [first, second]


def even(tmp_path: Path) -> Trace:
    made = MoeRun(layers=2, experts=32, used=2)
    for number in range(64):
        at = 2 * number % 32
        made.decode([[[at, at + 1]], [[at + 1, at]]])
    return Trace.open(made.builder.write(tmp_path / "t.pf"))


def test_spread_by_hand() -> None:
    s = spread(np.array([6, 2, 0, 0]))
    assert (s.used, s.half, s.most) == (2, 1, 2)
    assert s.entropy == pytest.approx(-(0.75 * np.log2(0.75) + 0.25 * np.log2(0.25)))
    assert s.evenness == pytest.approx(s.entropy / 2)
    assert s.busiest == 3 and s.variation == pytest.approx(np.sqrt(6) / 2)
    assert s.excess == pytest.approx((12 - 3) / np.sqrt(6))  # chi2 = (16 + 0 + 4 + 4) / 2
    alike = spread(np.array([5, 5, 5, 5]))
    assert (alike.evenness, alike.busiest, alike.variation) == (1, 1, 0)
    assert alike.half == 2 and alike.most == 4 and alike.excess < 0
    nothing = spread(np.zeros(4, np.int64))
    assert nothing.used == 0 and np.isnan(nothing.entropy)
    assert spread(np.array([7])).evenness == 1
    assert covering(np.array([1] * 10), 0.9) == 9


@pytest.mark.parametrize("cells", [1 << 22, 64])
def test_distances_are_those_of_a_list_that_is_played(
    monkeypatch: pytest.MonkeyPatch, cells: int
) -> None:
    monkeypatch.setattr(expertuse, "_CELLS", cells)
    rng = random.Random(1)
    step, expert = [], []
    for number in range(150):
        for one in sorted(rng.sample(range(16), rng.choice([1, 3, 6]))):
            step.append(number)
            expert.append(one)
    gap, distance = distances(np.array(step), np.array(expert))
    order: list[int] = []
    last: dict[int, int] = {}
    for at, (number, one) in enumerate(zip(step, expert, strict=True)):
        if one in last:
            assert gap[at] == number - last[one] and distance[at] == order.index(one)
            order.remove(one)
        else:
            assert gap[at] == distance[at] == FIRST
        order.insert(0, one)
        last[one] = number
    assert len(distances(np.zeros(0, np.int64), np.zeros(0, np.int64))[0]) == 0


def test_a_pass_needs_each_expert_once(tmp_path: Path) -> None:
    made = MoeRun(layers=1, experts=8, used=2)
    made.decode([[[3, 1], [1, 0], [3, 2]]])
    made.decode([[[5, 3]]])
    made.decode([[[1, 5]]])
    table = accesses(Trace.open(made.builder.write(tmp_path / "t.pf")))
    assert table["expert"].tolist() == [0, 1, 2, 3, 3, 5, 1, 5]
    assert table["tokens"].tolist() == [1, 2, 1, 2, 1, 1, 1, 1]
    assert table["gap"].tolist() == [-1, -1, -1, -1, 1, -1, 2, 1]
    assert table["distance"].tolist() == [-1, -1, -1, -1, 0, -1, 3, 1]


def test_a_cache_of_every_size_is_what_playing_it_gives(tmp_path: Path) -> None:
    trace = skewed(tmp_path)
    selection = trace.select(phase="decode")
    view = expertreuse.by_cache(trace, selection, brief=False)
    frame = view.frame.set_index("cached")
    needed = accesses(trace)
    one = 2 * 1280  # up and down
    for size in (1, 2, 7, 32):
        hits = loads = 0
        for layer in (0, 1):
            kept: list[int] = []
            for row in needed[needed["layer"] == layer].itertuples():
                hit = row.expert in kept
                kept = [row.expert, *(e for e in kept if e != row.expert)][:size]
                if selection.graphs[row.graph_id]:
                    hits, loads = hits + hit, loads + (not hit)
        assert frame["hits"][size] == pytest.approx(hits / (hits + loads))
        assert frame["loads"][size] == pytest.approx(loads / selection.n_tokens)
        assert frame["loaded"][size] == pytest.approx(one * loads / selection.n_tokens)
        assert frame["memory"][size] == 2 * size * one
    brief = expertreuse.by_cache(trace, selection, brief=True).frame
    assert len(brief) < 14 and {2, 32} <= set(brief["cached"])


def test_by_layer_and_by_expert_agree_with_the_choices(tmp_path: Path) -> None:
    trace = skewed(tmp_path)
    selection = trace.select(phase="decode")
    table = trace.experts[selection.graphs[trace.experts["graph_id"].to_numpy()]]
    frame = experts.by_layer(trace, selection).frame
    assert frame["layer"].tolist() == [0, 1] and frame["tokens"].tolist() == [59, 59]
    for layer, row in frame.set_index("layer").iterrows():
        counts = table["expert"][table["layer"] == layer].value_counts()
        assert row["used"] == len(counts)
        assert row["busiest"] == pytest.approx(counts.max() / (2 * 59 / 32))
        assert row["addressed"] == 2 * 2 * 1280 and row["op_ns"] == pytest.approx(100_000)
    every = experts.by_expert(trace, selection, None).frame
    assert len(every) == 64 and (every["choices"] == 0).any()
    counts = table.groupby(["layer", "expert"]).size()
    got = every[every["choices"] > 0].set_index(["layer", "expert"])["choices"]
    assert got.sort_index().to_dict() == counts.to_dict()
    assert every.groupby("layer")["share"].sum().tolist() == pytest.approx([1, 1])
    assert len(experts.by_expert(trace, selection, 5).frame) == 5


def test_faults_belong_to_experts_and_make_their_pass_slow(tmp_path: Path) -> None:
    trace = skewed(tmp_path, slow_ns=200_000)
    assert set(faults(trace)["layer"]) == {0, 1} and faults(trace)["major"].all()
    selection = trace.select(phase="decode")
    done = passes(trace, selection)
    away = done["op_ns"] - 100_000
    assert (away == 200_000 * done["majors"]).all() and done["majors"].max() == 2
    assert (done["held_ns"] == 100_000 * done["majors"]).all()
    frame = expertreuse.by_reuse(trace, selection).frame
    assert frame["passes"].sum() == len(done) == 2 * 59
    assert frame["group"].tolist()[-1] == "first use"
    assert frame["mean_ns"].iloc[0] < frame["mean_ns"].iloc[2]
    found = expertreuse.correlation(done)
    assert found is not None and found[0] > 0.5
    tokens = experts.by_token(trace, selection, None).frame
    assert tokens["majors"].sum() == done["majors"].sum() and len(tokens) == 59
    assert (tokens["experts"] == 4).all() and (tokens["fresh"] <= 4).all()
    assert (tokens["loaded"] == tokens["fresh"] * 2 * 1280).all()


def test_more_time_in_faults_than_in_the_call_is_explained(tmp_path: Path) -> None:
    made = MoeRun(layers=2, experts=8, used=2)
    for _ in range(3):
        made.decode([[[0, 1]], [[2, 3]]])
    calm = Trace.open(made.builder.write(tmp_path / "calm.pf"))
    op = made.graphs[1].ops[4]
    made.builder.fault(77, op.begin_ns + 10, made.address(0, 0, 0), ns=9_000_000, major=True)
    held = Trace.open(made.builder.write(tmp_path / "held.pf"))
    for trace, said in ((calm, False), (held, True)):
        told = [n.text for n in experts.by_token(trace, trace.select(), None).notes]
        assert any("summed over threads" in text for text in told) == said


def test_what_is_worth_a_line(tmp_path: Path) -> None:
    slow = skewed(tmp_path, slow_ns=400_000, calls=120)
    found = {f.name: f.text for f in expertfindings.findings(slow, slow.select())}
    assert set(found) == {"router_skew", "experts_reloaded"}
    assert "in 2 of 2 layers" in found["router_skew"]
    assert "major faults on their weights" in found["experts_reloaded"]
    assert "experts of each layer" in found["experts_reloaded"]
    fast = skewed(tmp_path, calls=120)
    assert [f.name for f in expertfindings.findings(fast, fast.select())] == ["router_skew"]
    fair = even(tmp_path)
    assert expertfindings.findings(fair, fair.select()) == []


@pytest.mark.parametrize(("times", "said"), [(1.5, False), (9, True)])
def test_reading_far_more_than_was_needed(tmp_path: Path, times: float, said: bool) -> None:
    made = MoeRun(layers=2, experts=32, used=2)
    needed = 2 * 2 * 2 * made.stride  # two experts of two tensors in two layers
    for number in range(8):
        made.decode([[[4 * number, 1]], [[2, 4 * number + 1]]], read=int(times * needed))
    trace = Trace.open(made.builder.write(tmp_path / "t.pf"))
    found = [f for f in expertfindings.findings(trace, trace.select())
             if f.name == "experts_overread"]  # fmt: skip
    assert bool(found) is said
    if said:
        assert "disks read 9.0 times the experts that were needed" in found[0].text


def test_one_layer_only(tmp_path: Path) -> None:
    trace = skewed(tmp_path)
    one = trace.select(phase="decode", layer=(1, 2))
    assert experts.by_layer(trace, one).frame["layer"].tolist() == [1]
    assert set(passes(trace, one)["layer"]) == {1}


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(skewed(tmp_path, slow_ns=100_000).path)
    for by in ("layer", "expert", "token", "reuse", "cache"):
        assert run(group, ["report", path, "--experts", "--by", by, "--phase", "decode"]) == 0
        said = capsys.readouterr()
        assert max(map(len, said.out.splitlines())) <= 80 and "decode: 59 tokens" in said.out
        args = ["report", path, "--experts", "--by", by, "--phase", "decode", "--format"]
        assert run(group, [*args, "csv"]) == 0
        rows = pd.read_csv(pd.io.common.StringIO(capsys.readouterr().out))
        assert run(group, [*args, "json"]) == 0
        (result,) = json.loads(capsys.readouterr().out)["results"]
        assert result["name"] == f"experts_by_{by}" and len(result["rows"]) == len(rows) > 0
    assert run(group, ["report", path, "--experts", "--format", "json"]) == 0
    names = [r["name"] for r in json.loads(capsys.readouterr().out)["results"]]
    assert names[:3] == ["experts", "experts_by_layer", "experts_by_reuse"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--experts", "--by", "role"], "knows no --by role"),
        (["--experts", "--faults"], "a view of its own"),
        (["--by", "cache", "--roofline"], "a view of its own"),
        (["--experts", "--op", "ADD"], "MUL_MAT_ID alone"),
    ],
)
def test_options_that_contradict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    path = str(even(tmp_path).path)
    assert run(group, ["report", path, *more]) == 2
    assert said in capsys.readouterr().err


def test_traces_without_ids_say_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dense = sample_run().builder.write(tmp_path / "dense.pf")
    assert run(group, ["report", str(dense), "--experts"]) == 2
    assert "a model without experts" in capsys.readouterr().err
    made = MoeRun(layers=1, experts=8, used=2, recorded=False)
    made.decode([[[1, 2]]], leave_out=[0])
    path = str(made.builder.write(tmp_path / "moe.pf"))
    assert run(group, ["report", path, "--experts"]) == 2
    said = capsys.readouterr().err
    assert "which experts were chosen: --no-experts" in said and "record --experts" in said
    assert run(group, ["report", path]) == 0
