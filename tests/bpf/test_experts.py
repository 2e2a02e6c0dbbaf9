"""The router's choices, which the target makes by a rule, late, and writes over at once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import REPO

from profinfer.model.trace import Trace
from profinfer.tracefile.schema import CNT_EXPERTS_UNREAD, CNT_LOST, CNT_SENT, Kind

pytestmark = pytest.mark.bpf

EXPERTS, USED, LAYERS, PROMPT = 24, 6, 3, 300
MOE = ["--experts", f"{EXPERTS}:{USED}", "--layers", str(LAYERS), "--base-us", "2"]
SHORT = [*MOE, "--prompt", "9", "--tokens", "6"]

BUILDS = {
    "shared": {},
    "old-loop": {"defs": "-DFAKE_OLD_LOOP"},
    "empties": {"defs": "-DFAKE_EMPTIES"},
    "shifted-ops": {"defs": "-DFAKE_SHIFT_OPS"},
}
RUNS = {
    "plain": SHORT,
    "one-thread": [*SHORT, "--threads", "1"],
    "three-threads": [*SHORT, "--threads", "3"],
    "no-uid": [*SHORT, "--no-uid"],
    "vary": [*SHORT, "--vary", "--generations", "2"],
    "two-contexts": [*SHORT, "--contexts", "2"],
    "slots": [*SHORT, "--slots", "3"],
    "long-prompt": [*MOE, "--prompt", str(PROMPT), "--tokens", "2"],
    # Rows that lie one behind the other, and the most that is read, as in a warm-up.
    "all-used": [*MOE[2:], "--experts", "64:64", "--prompt", "50", "--tokens", "2"],
    "all-of-many": [*MOE[2:], "--experts", "1024:1024", "--prompt", "5", "--tokens", "2"],
    "most-of-many": [*MOE[2:], "--experts", "1024:700", "--prompt", "5", "--tokens", "2"],
    "one-used": [*MOE[2:], "--experts", "5:1", "--prompt", "50", "--tokens", "2"],
}
CASES = [(b, "plain") for b in BUILDS] + [("shared", r) for r in RUNS if r != "plain"]


def record(run_profinfer, folder: Path, *more: str | Path) -> Trace:
    path = folder / "t.pf"
    result = run_profinfer("record", "-o", path, *more)
    assert result.returncode == 0, result.stderr
    return Trace.open(path)


def with_calls(trace: Trace) -> pd.DataFrame:
    """The table experts, with the number of the call in its context."""
    calls = trace.calls
    number = calls.groupby("ctx").cumcount().to_numpy()
    call = trace.graphs["call_id"].to_numpy()[trace.experts["graph_id"].to_numpy()]
    return trace.experts.assign(call_id=call, call=number[call])


def chosen(table: pd.DataFrame, experts: int) -> np.ndarray:
    """The target's rule: fake_choice of fake_ggml.h."""
    call, layer, row, slot = (table[c].to_numpy() for c in ("call", "layer", "row", "slot"))
    return (call * 7 + layer * 3 + row * 5 + slot) % experts


@pytest.mark.parametrize(("build", "how"), CASES)
def test_every_choice_is_the_targets(
    tmp_path: Path, build_fake_ggml: Callable[..., Path], run_profinfer, build: str, how: str
) -> None:
    program = build_fake_ggml(**BUILDS[build])
    trace = record(run_profinfer, tmp_path, "--", program, *RUNS[how])
    assert {k: v for k, v in trace.losses.items() if v} == {}
    assert trace.problems == [] and trace.graphs["complete"].all()
    at = RUNS[how].index("--experts") + 1
    experts, used = map(int, RUNS[how][at].split(":"))
    table = with_calls(trace)
    assert (table["expert"].to_numpy() == chosen(table, experts)).all()
    # Every layer of every call has its rows: all tokens, and of a prompt's last layer one.
    nodes = trace.nodes[(trace.nodes["op"] == "MUL_MAT_ID")]
    per_def = nodes.groupby("def_id")["ne2"].sum() // 3
    assert len(table) == used * int(trace.graphs["def_id"].map(per_def).sum())
    assert not table.duplicated(["graph_id", "layer", "row", "slot"]).any()
    assert (table.groupby(["graph_id", "layer", "row"])["slot"].max() == used - 1).all()


def test_tokens_and_sequences_are_named(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    trace = record(run_profinfer, tmp_path, "--", fake_ggml, *SHORT)
    table = with_calls(trace)
    first = table[table["layer"] < LAYERS - 1]
    assert (first["token"] == first["row"]).all() and (first["token"] >= 0).all()
    last = table[(table["layer"] == LAYERS - 1) & (table["call"] == 1)]
    assert (last["token"] == -1).all() and set(last["row"]) == {0}


def test_a_server_names_the_sequence_of_each_decoded_token(
    tmp_path: Path, fake_ggml: Path, run_profinfer
) -> None:
    trace = record(run_profinfer, tmp_path, "--", fake_ggml, *SHORT, "--slots", "3")
    table = with_calls(trace)
    decoding = trace.calls[(trace.calls["phase"] == "decode") & (trace.calls["n_seqs"] == 3)]
    assert len(decoding) > 2
    mine = table[table["call_id"].isin(decoding["call_id"]) & (table["layer"] == 0)]
    assert (mine["seq"] == mine["row"]).all()
    mixed = trace.calls[trace.calls["phase"] == "mixed"]["call_id"]
    assert len(mixed) and (table[table["call_id"].isin(mixed)]["seq"] == -1).all()


def test_a_long_prompt_is_read_in_pieces(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    trace = record(run_profinfer, tmp_path, "--", fake_ggml, *RUNS["long-prompt"])
    heads = trace.reader.experts().heads
    assert heads["n"].max() == 128 and trace.reader.counters[CNT_EXPERTS_UNREAD] == 0
    whole = heads[heads["n_tokens"] == PROMPT]
    assert sorted(whole["first"].tolist()) == sorted([0, 128, 256] * (LAYERS - 1))


def test_not_wanted_and_not_there(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    trace = record(run_profinfer, tmp_path, "--no-experts", "--", fake_ggml, *SHORT)
    assert Kind.EXPERTS not in trace.reader.count_by_kind()
    assert trace.meta.experts == {"recorded": False, "why": "--no-experts"}
    assert trace.losses["lost_expert_rows"] == 0
    trace = record(run_profinfer, tmp_path, "-f", "--level", "graph", "--", fake_ggml, *SHORT)
    assert trace.meta.experts["recorded"] is False
    assert "operators" in trace.meta.experts["why"]
    dense = record(run_profinfer, tmp_path, "-f", "--", fake_ggml, "--tokens", "2")
    assert dense.has_experts and not len(dense.experts) and dense.losses["lost_expert_rows"] == 0


@pytest.mark.parametrize("how", [["--tokens", "2:5"], ["--every", "3"], ["--max-overhead", "0.1%"]])
def test_ids_where_operators_are_wanted(
    tmp_path: Path, fake_ggml: Path, run_profinfer, how: list[str]
) -> None:
    """What is not recorded by intention is no loss; what is, is right."""
    command = [*MOE[:4], "--prompt", "9", "--tokens", "400", "--base-us", "2"]
    trace = record(run_profinfer, tmp_path, *how, "--", fake_ggml, *command)
    assert trace.losses["lost_expert_rows"] == 0
    table = with_calls(trace)
    assert len(table) and (table["expert"].to_numpy() == chosen(table, EXPERTS)).all()
    assert set(table["graph_id"]) <= set(trace.graphs.index[trace.graphs["wanted"]])
    assert table["graph_id"].nunique() < len(trace.graphs)


@pytest.mark.parametrize(
    ("how", "layers"),
    [(["--layers", "1"], {1}), (["--ops", "MUL_MAT_ID"], {0, 1, 2}), (["--ops", "MUL_MAT"], set()),
     (["--threads", "main"], {0, 1, 2}), (["--ops", "MUL_MAT_ID", "--layers", "0:2"], {0, 1})],
)  # fmt: skip
def test_ids_of_operators_that_are_wanted(
    tmp_path: Path, fake_ggml: Path, run_profinfer, how: list[str], layers: set[int]
) -> None:
    trace = record(run_profinfer, tmp_path, *how, "--", fake_ggml, *SHORT)
    assert trace.losses["lost_expert_rows"] == 0
    table = with_calls(trace)
    assert (table["expert"].to_numpy() == chosen(table, EXPERTS)).all()
    assert set(table["layer"]) == layers
    assert table.groupby("layer")["graph_id"].nunique().eq(len(trace.graphs)).all()


def test_ids_of_a_process_that_runs_already(tmp_path: Path, fake_ggml: Path, run_profinfer) -> None:
    command = [*MOE[:4], "--prompt", "9", "--tokens", "100000", "--base-us", "2", "--seconds", "20"]
    target = subprocess.Popen([fake_ggml, *command, "--no-ops"], stdout=subprocess.DEVNULL)
    try:
        trace = record(
            run_profinfer, tmp_path, "--pid", str(target.pid), "--duration", "1s"
        )  # fmt: skip
    finally:
        target.kill()
        target.wait()
    assert trace.excerpt and trace.losses["lost_expert_rows"] == 0
    table = trace.experts
    rest = table["expert"] - table["layer"] * 3 - table["row"] * 5 - table["slot"]
    assert (rest % EXPERTS).groupby(table["graph_id"]).nunique().max() == 1
    assert table["graph_id"].nunique() > 0.9 * len(trace.graphs) > 20


def test_a_full_ring_loses_no_choice_in_silence(
    tmp_path: Path, fake_ggml: Path, run_profinfer
) -> None:
    """What the ring refused is counted, and the reader knows how many tokens it were."""
    big = [*MOE[:2], "--layers", "40", "--base-us", "0", "--prompt", "500", "--tokens", "15"]
    trace = record(run_profinfer, tmp_path, "--ring-size", "32K", "--", fake_ggml, *big)
    counters, heads = trace.reader.counters, trace.reader.experts().heads
    lost = counters[CNT_LOST + Kind.EXPERTS]
    assert lost > 0 and trace.losses["lost_experts"] == lost
    assert counters[CNT_SENT + Kind.EXPERTS] == len(heads) > 0
    # 500 rows are 4 records in each layer but the last one, any other call 1 in each layer.
    calls = counters[CNT_SENT + Kind.CALL_BEGIN] + counters[CNT_LOST + Kind.CALL_BEGIN]
    assert lost + len(heads) == 39 * 4 + 1 + (calls - 1) * 40
    # What is there is right, whatever else is lost: one number explains each record.
    left = trace.reader.experts().ids
    for head in heads:
        mine, left = np.split(left, [head["n"] * USED])
        row, slot = np.divmod(np.arange(len(mine)), USED)
        assert len(np.unique((mine - (head["first"] + row) * 5 - slot) % EXPERTS)) == 1


WITHOUT_SITE = """
import sys
from profinfer.cli import group, run
from profinfer.probes import draft
draft.loop_sites = lambda *args, **more: ([], "not looked for")
sys.exit(run(group, sys.argv[1:]))
"""


def test_where_operators_are_told_by_begins(tmp_path: Path, fake_ggml: Path) -> None:
    """No loop index there: the node is known by its address."""
    script, path = tmp_path / "run.py", tmp_path / "t.pf"
    script.write_text(WITHOUT_SITE)
    command = [sys.executable, script, "record", "-o", path, "--", fake_ggml, *SHORT, "--no-ops"]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(REPO)}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    trace = Trace.open(path)
    assert trace.meta.plan.ops.mode == "pair"
    table = with_calls(trace)
    assert (table["expert"].to_numpy() == chosen(table, EXPERTS)).all()
    assert trace.losses["lost_expert_rows"] == 0
    per_layer = USED * trace.calls["n_tokens"].sum()
    assert (table[table["layer"] < LAYERS - 1].groupby("layer").size() == per_layer).all()
