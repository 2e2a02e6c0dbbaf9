from __future__ import annotations

import json
from pathlib import Path

import pytest
from builders import Node, TraceBuilder, sample_run
from click.testing import CliRunner

from profinfer.cli import group
from profinfer.tracefile.schema import GRAPH_CHANGED, GRAPH_PARTIAL, OpKind


def dump(path: Path, *args: str) -> list[str]:
    ran = CliRunner().invoke(group, ["dump", str(path), *args], standalone_mode=False)
    assert ran.exception is None, ran.exception
    return ran.stdout.splitlines()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """One record of every kind."""
    b = TraceBuilder()
    weight = Node("blk.0.ffn_up.weight", "NONE", "q4_1", (64, 128), addr=0x100, flags=0)
    out = Node('odd "name"\n', "MUL_MAT", "f32", (128, 2), (weight,), addr=0x200, params=b"\5")
    b.thread(77, 5, "main")
    b.warmup(77, 6, 1)
    b.call_begin(77, 1_234_567_890_123_456, n_tokens=4, pos_last=3, flags=1)
    b.split_begin(77, 11, cgraph=0xABC0, n_nodes=3)
    b.flush()
    b.note(12, "between")
    b.ptrs(77, 12, cgraph=0xABC0, gen=12, ptr=[0x200, 0x300])
    b.tensor(77, 12, gen=12, node=out)
    b.buffer(77, 12, gen=12, addr=0x5000, usage=1)
    flags = GRAPH_CHANGED | GRAPH_PARTIAL | 8
    b.graph_begin(77, 13, cgraph=0xABC0, gen=12, n_nodes=3, walk_ns=99, flags=flags)
    b.ops(78, [(1000, OpKind.ENTER, 0), (1500, OpKind.END, 3), (2000, OpKind.LEAVE, 0)])
    b.graph_end(77, 20, value=-1)
    b.split_end(77, 21)
    b.call_end(77, 22)
    b.sample_begin(77, 23)
    b.sample_end(77, 24)
    b.sched(78, 25, "preempt", cpu=1, state=2, other=(900, 899, "stress"), prio=110)
    return b.write(tmp_path / "t.pf")


EXPECTED = """\
      0 0.000000005 tid=77 THREAD comm="main"
      1 0.000000006 tid=77 WARMUP ctx=0xc0 probe=7 value=1
      2 1234567.890123456 tid=77 CALL_BEGIN ctx=0xc0 probe=0 n_tokens=4 pos_first=-1 pos_last=3 \
n_seqs=-1 seq=-1 [ENCODE #1]
      3 0.000000011 tid=77 SPLIT_BEGIN backend=0xb0 cgraph=0xabc0 uid=0 get_name=0x4000 \
guid=000102030405060708090a0b0c0d0e0f n_nodes=3 probe=2 [#1]
      - NOTE {"ts": 12, "text": "between"}
      4 0.000000012 tid=77 PTRS cgraph=0xabc0 gen=12 first=0 n=2 ptr=0x200,0x300
      5 0.000000012 tid=77 TENSOR addr=0x200 gen=12 name="odd \\"name\\"\\n" op=MUL_MAT type=f32 \
ne=128x2x1x1 nb=4x512x1024x1024 op_params=5 src=0x100 tensor_flags=16 buffer=0x5000 data=0x2000 \
view_src=0x0 view_offs=0
      6 0.000000012 tid=77 BUFFER addr=0x5000 gen=12 usage=1
      7 0.000000013 tid=77 GRAPH_BEGIN cgraph=0xabc0 uid=0 gen=12 n_nodes=3 n_threads=2 \
walk_ns=99 probe=3 [CHANGED PARTIAL #1 flags=0xb]
      8 0.000001000 tid=78 OPS cgraph=0x0 seq=0 n=3 [LAST COMPACT]
      9 0.000000020 tid=77 GRAPH_END probe=3 value=-1 [#2]
     10 0.000000021 tid=77 SPLIT_END probe=2 value=0 [#2]
     11 0.000000022 tid=77 CALL_END probe=0 value=0 [#2]
     12 0.000000023 tid=77 SAMPLE_BEGIN probe=1 value=0 [#1]
     13 0.000000024 tid=77 SAMPLE_END probe=1 value=0 [#2]
     14 0.000000025 tid=78 SCHED cpu=1 state=2 other=900 other_tgid=899 prio=110 comm="stress" \
[OUT PREEMPT]
"""


def test_the_text_form(path: Path) -> None:
    lines = dump(path)
    assert lines[:-1] == EXPECTED.splitlines()
    assert lines[-1].startswith('      - TRAILER {"ended_ns": ')


def test_operator_records(path: Path) -> None:
    lines = dump(path, "--ops", "--kind", "OPS")
    assert lines == [
        "      8 0.000001000 tid=78 OPS cgraph=0x0 seq=0 n=3 [LAST COMPACT]",
        "        0.000001000 tid=78   ENTER arg=0",
        "        0.000001500 tid=78   END arg=3",
        "        0.000002000 tid=78   LEAVE arg=0",
    ]


def test_filters_keep_the_numbers(path: Path) -> None:
    lines = dump(path, "--kind", "graph_begin", "--kind", "GRAPH_END", "--kind", "NOTE")
    assert [line.split()[0] for line in lines] == ["-", "7", "9"]
    assert dump(path, "--kind", "CALL_END", "--limit", "0") == []


@pytest.mark.parametrize("limit", [0, 1, 4, 5, 6, 14, 15, 16, 17, 99])
def test_limit_is_a_prefix(path: Path, limit: int) -> None:
    assert dump(path, "--limit", str(limit)) == dump(path)[:limit]


def test_json_lines_say_the_same(path: Path) -> None:
    rows = [json.loads(line) for line in dump(path, "--format", "json", "--ops")]
    assert len(rows) == 17
    assert [row.get("order") for row in rows if "order" in row] == list(range(15))
    tensor = next(row for row in rows if row["kind"] == "TENSOR")
    assert tensor["name"] == 'odd "name"\n' and tensor["ne"] == [128, 2, 1, 1]
    assert next(row for row in rows if row["kind"] == "OPS")["ops"][1] == {
        "dt": 500, "kind": "END", "arg": 3
    }  # fmt: skip
    assert rows[-1]["value"]["reason"] == "target exited"


def test_tables_that_know_less_than_the_records(tmp_path: Path) -> None:
    b = TraceBuilder(engine={"ops": ["NONE"], "types": []})
    b.tensor(1, 1, gen=1, node=Node("x"))
    b.meta["engine"]["layout"]["tensor"] = {"op": 80, "type": 0, "name": 256, "ne": 400}
    text = dump(b.write(tmp_path / "t.pf"))[0]
    assert "raw=" in text  # a layout that points outside the struct decodes nothing
    b.meta["engine"]["layout"]["tensor"].pop("ne")
    text = dump(b.write(tmp_path / "t.pf"))[0]
    assert 'name="x" op=?29 type=?0' in text


def test_a_whole_run_has_a_line_for_every_record(tmp_path: Path) -> None:
    run = sample_run()
    lines = dump(run.builder.write(tmp_path / "t.pf"), "--ops")
    assert len(lines) == run.builder.records + 330 + 1


def test_problems_go_to_stderr(tmp_path: Path) -> None:
    path = sample_run().builder.write(tmp_path / "t.pf", trailer=False)
    ran = CliRunner().invoke(group, ["dump", str(path), "--limit", "1"], standalone_mode=False)
    assert len(ran.stdout.splitlines()) == 1
    assert "profinfer: the trailer is missing" in ran.stderr
