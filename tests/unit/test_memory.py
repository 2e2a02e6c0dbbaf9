"""Faults, reads and memory sizes: from records to tensors, operators, views and findings."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import Graph, GraphTruth, TraceBuilder, llama_graph

from profinfer.analysis import memory
from profinfer.analysis.memoryfindings import findings
from profinfer.capture.btf import BtfError
from profinfer.capture.memory import Memory, open_runs, read_layout
from profinfer.capture.residence import Residence
from profinfer.model.residents import NOWHERE, Ranges
from profinfer.model.trace import Trace
from profinfer.tracefile.schema import FAULT, READ_WRITE

BASE, OFFSET, SIZE = 0x7E00_0000_0000, 4096, 1 << 20
MODEL = "/models/model.gguf"
STEP = 1 << 16  # from one weight to the next
GRAPHS = 3


def place(graph: Graph) -> dict[str, int]:
    """Give every weight its address in the mapping; returns them."""
    weights = [leaf for leaf in graph.leafs if leaf.name.endswith(".weight")]
    for number, leaf in enumerate(weights):
        leaf.data = BASE + number * STEP
    return {leaf.name: leaf.data for leaf in weights if leaf.data is not None}


class Run:
    """Three decoded tokens; ``at`` has the weights' addresses, ``graphs`` the times."""

    def __init__(self, **memory_facts: Any) -> None:
        self.graph = llama_graph(layers=1)
        self.at = place(self.graph)
        facts = {
            "recorded": True,
            "reads": {"recorded": True},
            "mappings": [[BASE, BASE + (4 << 20), OFFSET, MODEL]],
            "files": [{"path": MODEL, "dev": [254, 0], "ino": 99, "size": SIZE}],
            **memory_facts,
        }
        self.builder = TraceBuilder(memory=facts)
        self.builder.thread(77, 1, "llama")
        self.graphs: list[GraphTruth] = []

    def decode(self) -> GraphTruth:
        begin = 1_000_000 * (len(self.graphs) + 1)
        self.builder.call_begin(77, begin - 100, n_tokens=1)
        truth = self.builder.run_graph(self.graph, begin=begin)
        self.builder.call_end(77, truth.end_ns + 100)
        self.graphs.append(truth)
        return truth

    def note(self, ts: int, **sizes: int) -> None:
        self.builder.json_chunk(4, {"ts": ts, "what": "memory", **sizes})

    def trace(self, tmp_path: Path) -> Trace:
        return Trace.open(self.builder.write(tmp_path / "t.pf"))

    def op_of(self, weight: str, truth: GraphTruth, tid: int = 78) -> Any:
        """The operator that has the weight as its source."""
        index = next(
            i
            for i, n in enumerate(self.graph.nodes)
            if any(s is not None and s.name == weight for s in n.src)
        )
        return next(op for op in truth.ops if op.node == index and op.tid == tid)


# --- ranges ---------------------------------------------------------------------------------


def arrays(*values: list[int]) -> list[np.ndarray]:
    return [np.array(v, np.int64) for v in values]


def test_ranges_find_what_holds_a_place() -> None:
    ranges = Ranges.of(*arrays([100, 10], [200, 20], [7, 3]))
    assert ranges.find(np.array([9, 10, 19, 20, 100, 199, 200])).tolist() == [
        NOWHERE, 3, 3, NOWHERE, 7, 7, NOWHERE,
    ]  # fmt: skip
    assert Ranges.of(*arrays([], [], [])).find(np.array([5])).tolist() == [NOWHERE]


def test_ranges_that_begin_inside_another_are_cut() -> None:
    ranges = Ranges.of(*arrays([0, 10, 50], [100, 20, 150], [0, 1, 2]))
    assert (ranges.begin.tolist(), ranges.end.tolist(), ranges.row.tolist()) == (
        [0, 100], [100, 150], [0, 2],
    )  # fmt: skip


def test_overlaps_of_intervals_and_ranges() -> None:
    ranges = Ranges.of(*arrays([0, 100, 300], [100, 200, 400], [0, 1, 2]))
    which, row, size = ranges.overlap(*arrays([50, 210, 90], [350, 290, 110]))
    got = list(zip(which.tolist(), row.tolist(), size.tolist(), strict=True))
    assert got == [(0, 0, 50), (0, 1, 100), (0, 2, 50), (2, 0, 10), (2, 1, 10)]


# --- the tables -----------------------------------------------------------------------------


def test_a_fault_has_the_tensor_that_it_hit_and_the_operator_it_held_up(tmp_path: Path) -> None:
    run = Run()
    truth = run.decode()
    name = "blk.0.ffn_up.weight"
    op = run.op_of(name, truth)
    run.builder.fault(78, op.begin_ns + 5, run.at[name] + 100, ns=300, major=True)
    run.builder.fault(78, op.release_ns + 10**6, 0x1234000, n=5, last=0x1238000)
    trace = run.trace(tmp_path)
    hit, other = trace.faults.iloc[0], trace.faults.iloc[1]
    assert (hit["tensor"], hit["kind"], hit["file"]) == (name, "weight", MODEL)
    assert hit["file_offset"] == run.at[name] + 100 - BASE + OFFSET
    assert (hit["graph_id"], hit["node_id"]) == (0, op.node)
    assert (hit["major"], hit["faults"], hit["held_ns"]) == (True, 1, 300)
    assert (other["tensor"], other["file"], other["file_offset"]) == ("", "", NOWHERE)
    assert (other["graph_id"], other["node_id"], other["faults"]) == (-1, -1, 5)
    assert len(trace.threads) == 2 and trace.problems == []


def test_a_fault_of_a_thread_without_operators_is_in_a_graph_but_in_no_node(
    tmp_path: Path,
) -> None:
    run = Run()
    truth = run.decode()
    run.builder.fault(99, (truth.begin_ns + truth.end_ns) // 2, 0x5000)
    trace = run.trace(tmp_path)
    assert (trace.faults["graph_id"][0], trace.faults["node_id"][0]) == (0, -1)
    assert 99 not in set(trace.threads["tid"])  # it did no work of the engine's


def test_a_read_is_split_among_the_tensors_that_it_covers(tmp_path: Path) -> None:
    run = Run()
    run.decode()
    names = sorted(run.at, key=lambda n: run.at[n])
    first = run.at[names[0]] - BASE + OFFSET
    run.builder.read(77, 500, first, 2 * STEP)
    run.builder.read(77, 501, first, 4096, flags=READ_WRITE)
    run.builder.read(77, 502, 0, 4096, ino=5)
    trace = run.trace(tmp_path)
    assert trace.reads["bytes"].tolist() == [2 * STEP, 4096]  # a write is none
    assert trace.reads["file"].tolist() == [MODEL, ""]
    assert trace.reads["tensor"].tolist() == [names[0], ""]
    told = memory.events(trace)
    sizes = trace.residents.tensors.set_index("name")["size"]
    got = dict(zip(told.parts["tensor"], told.parts["bytes"], strict=True))
    assert got == {name: sizes[name] for name in names[:2]}


def test_the_inode_decides_where_the_file_system_has_other_device_numbers(tmp_path: Path) -> None:
    run = Run()
    run.decode()
    run.builder.read(77, 500, OFFSET, 4096, dev=7)
    assert run.trace(tmp_path).reads["file"].tolist() == [MODEL]


def test_sizes_over_time(tmp_path: Path) -> None:
    run = Run()
    run.note(10, rss=300, file=100, minor=4, major=1, read=50)
    run.note(20, rss=400, file=100, minor=5, major=1)
    run.decode()
    run.builder.json_chunk(4, {"ts": 30, "what": "memory", "rss": "much"})
    table = run.trace(tmp_path).residence
    assert table["anon"].tolist() == [200, 300]
    assert table["read"].tolist() == [50, -1]


def test_a_trace_without_faults_has_empty_tables(tmp_path: Path) -> None:
    builder = TraceBuilder()
    builder.thread(77, 1, "x")
    trace = Trace.open(builder.write(tmp_path / "t.pf"))
    assert not trace.has_faults and findings(trace) == []
    assert not len(trace.faults) and not len(trace.reads) and not len(trace.residence)


# --- views ----------------------------------------------------------------------------------


def test_by_tensor_counts_each_fault_and_each_byte_once(tmp_path: Path) -> None:
    run = Run()
    truth = run.decode()
    name = "blk.0.ffn_up.weight"
    op = run.op_of(name, truth)
    run.builder.fault(78, op.begin_ns + 5, run.at[name], ns=300, major=True)
    run.builder.fault(78, op.begin_ns + 6, run.at[name] + 4096, ns=20, n=3)
    run.builder.read(78, op.begin_ns + 5, run.at[name] - BASE + OFFSET, 4096)
    run.builder.read(78, op.begin_ns + 6, 0, 512)  # the file's header
    run.builder.read(78, op.begin_ns + 6, 0, 512, ino=4)
    trace = run.trace(tmp_path)
    for key in memory.KEYS:
        frame = memory.by(trace, key, None, None).frame
        assert frame["faults"].sum() == 4 and frame["majors"].sum() == 1, key
        assert frame["held_ns"].sum() == 320 and frame["read"].sum() == 4096 + 1024, key
    row = memory.by(trace, "tensor", None, None).frame.set_index("tensor").loc[name]
    assert row["of_size"] == pytest.approx(4096 / row["size"])
    assert memory.by(trace, "role", None, None).frame["role"].tolist() == [
        "ffn", "(model.gguf)", "(other files)",
    ]  # fmt: skip
    assert memory.by(trace, "layer", None, None).frame["layer"].tolist()[0] == "0"
    assert memory.by(trace, "op", None, None).frame["op"].tolist() == ["MUL_MAT"]
    assert memory.by(trace, "tensor", "loading", None).frame.empty


def test_phases_are_told_apart(tmp_path: Path) -> None:
    run = Run()
    run.builder.fault(77, 500, 0x1000)
    truth = run.decode()
    run.builder.fault(77, truth.begin_ns + 5, 0x2000)
    run.builder.fault(77, truth.end_ns + 1000, 0x3000)
    frame = memory.by_when(run.trace(tmp_path)).frame
    told = dict(zip(frame["when"], frame["faults"], strict=True))
    phase = next(k for k in told if k not in ("loading", "between calls"))
    assert list(told) == ["loading", phase, "between calls"]
    assert set(told.values()) == {1}


# --- findings -------------------------------------------------------------------------------


def names_of(trace: Trace) -> list[str]:
    return [f.name for f in findings(trace)]


def test_nothing_is_found_in_a_warm_run(tmp_path: Path) -> None:
    run = Run()
    run.builder.read(77, 500, 0, 4096)  # a header that was not in memory
    for _ in range(GRAPHS):
        truth = run.decode()
        run.builder.fault(77, truth.begin_ns + 50, run.at["output.weight"], n=8)
    assert names_of(run.trace(tmp_path)) == []


def test_a_cold_start_is_found(tmp_path: Path) -> None:
    run = Run()
    for number in range(10):
        run.builder.read(77, 500 + 1000 * number, number * (SIZE // 10), SIZE // 10)
    run.decode()
    trace = run.trace(tmp_path)
    assert names_of(trace) == ["cold_start"]
    text = findings(trace)[0].text
    assert "1.00 MiB of model.gguf (100.0 %)" in text and "9.00 µs" in text


def test_cold_weights_are_found_in_the_first_graph(tmp_path: Path) -> None:
    run = Run()
    truth = run.decode()
    name = "blk.0.ffn_up.weight"
    op = run.op_of(name, truth)
    for page in range(2):
        run.builder.fault(78, op.begin_ns + page, run.at[name] + 4096 * page, ns=400, major=True)
    run.decode()
    run.decode()
    trace = run.trace(tmp_path)
    assert names_of(trace) == ["cold_weights"]
    assert findings(trace)[0].text == (
        "cold weights: 2 major faults in graph 0 held threads up for 800 ns; the 2 graphs after "
        f"them had none; most on {name}"
    )


def test_weights_that_are_read_in_every_graph_do_not_fit(tmp_path: Path) -> None:
    run = Run(limit_bytes=1000, limit_from="/sys/fs/cgroup/x/memory.max")
    for _ in range(GRAPHS):
        truth = run.decode()
        for name, at in run.at.items():
            size = next(n for n in run.graph.leafs if n.name == name).strides()[3]
            run.builder.read(77, truth.begin_ns + 5, at - BASE + OFFSET, size)
            run.builder.fault(77, truth.begin_ns + 5, at, ns=70, major=True)
    trace = run.trace(tmp_path)
    assert names_of(trace) == ["evicted"]
    text = findings(trace)[0].text
    assert "3.0 times the weights'" in text and "/sys/fs/cgroup/x/memory.max" in text


def test_the_prize_of_evicted_weights_leaves_the_warm_up_out(tmp_path: Path) -> None:
    """A warm-up waits as long as three tokens: no token gets faster by that."""
    run = Run(limit_bytes=1000)
    run.builder.warmup(77, 900_000, 1)
    for number in range(1 + GRAPHS):
        truth = run.decode()
        if number == 0:
            run.builder.warmup(77, truth.end_ns + 200, 0)
        ns = 70 if number else 5_000
        for name, at in run.at.items():
            size = next(n for n in run.graph.leafs if n.name == name).strides()[3]
            run.builder.read(77, truth.begin_ns + 5, at - BASE + OFFSET, size)
            run.builder.fault(77, truth.begin_ns + 5, at, ns=ns, major=True)
    (said,) = findings(run.trace(tmp_path))
    weights = len(run.at)
    assert said.prize is not None and said.prize.ns == GRAPHS * weights * 70
    assert said.evidence["held_ns"].value == GRAPHS * weights * 70
    assert f" in {GRAPHS} graphs, 4.0 times the weights'" in said.text
    assert said.evidence["later_bytes"].value == GRAPHS * said.evidence["weight_bytes"].value


def test_faults_on_tied_embeddings_have_the_role_of_their_operator(tmp_path: Path) -> None:
    run = Run()
    embedding, head = (
        next(n for n in run.graph.nodes if any(s and s.name == name for s in n.src))
        for name in ("token_embd.weight", "output.weight")
    )
    tied = next(s for s in embedding.src if s and s.name == "token_embd.weight")
    head.src = tuple(tied if s and s.name == "output.weight" else s for s in head.src)
    truth = run.decode()
    at = run.at["token_embd.weight"]
    for node, times in ((embedding, 1), (head, 2)):
        index = run.graph.nodes.index(node)
        op = next(op for op in truth.ops if op.node == index and op.tid == 77)
        for number in range(times):
            run.builder.fault(77, op.begin_ns + number, at, n=1)
            run.builder.read(77, op.begin_ns + number, at - BASE + OFFSET, 512)
    run.builder.fault(77, truth.end_ns + 50, at, n=3)
    told = memory.by(run.trace(tmp_path), "role", None, None).frame.set_index("role")
    assert dict(told["faults"]) == {
        "embedding": 1, "output head": 2, "embedding / output head": 3,
    }  # fmt: skip
    assert dict(told["read"]) == {"embedding": 512, "output head": 1024,
                                  "embedding / output head": 0}  # fmt: skip
    assert len(set(told["size"])) == 1


# --- the recorder's side --------------------------------------------------------------------


class FakeBtf:
    """A kernel's types as far as reads need them."""

    def __init__(self, index: str = "index", args: tuple[str, ...] = ("*", "bio *")) -> None:
        self._args = args
        self._fields = {
            "bio": {"bi_opf": 16, "bi_flags": 20, "bi_iter": 32, "bi_io_vec": 104},
            "bvec_iter": {"bi_sector": 0, "bi_size": 8},
            "bio_vec": {"bv_page": 0, "bv_len": 8, "bv_offset": 12},
            "page": {"mapping": 24, index: 32},
            "address_space": {"host": 0},
            "inode": {"i_ino": 64, "i_sb": 40},
            "super_block": {"s_dev": 16},
        }

    def arguments(self, _typedef: str) -> list[str]:
        return list(self._args)

    def fields(self, name: str) -> dict[str, int]:
        return self._fields[name]


@pytest.mark.parametrize("index", ["index", "__folio_index"])
def test_layout_of_reads(index: str) -> None:
    layout = read_layout(FakeBtf(index))  # type: ignore[arg-type]
    assert (layout["PF_BIO_ARG"], layout["PF_BIO_SIZE"], layout["PF_PAGE_INDEX"]) == (0, 40, 32)


def test_older_kernels_hand_the_queue_over_first() -> None:
    fake = FakeBtf(args=("*", "request_queue *", "bio *"))
    assert read_layout(fake)["PF_BIO_ARG"] == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fake", [FakeBtf(index="something"), FakeBtf(args=("*", "request *"))], ids=["field", "args"]
)
def test_unknown_layouts_are_refused(fake: FakeBtf) -> None:
    with pytest.raises(BtfError):
        read_layout(fake)  # type: ignore[arg-type]


def test_open_runs_become_ring_entries() -> None:
    run = np.zeros(1, FAULT)
    run["kind"], run["tid"], run["n"] = 18, 5, 3
    empty = bytes(FAULT.itemsize + 16)
    entries, places = open_runs([empty, run.tobytes() + bytes(16)])
    assert places == [1]
    assert entries == [struct.pack("<II", FAULT.itemsize, 0) + run.tobytes()]


def test_not_wanted_is_said() -> None:
    off = Memory(False)
    assert off.definitions is None
    assert off.to_json()["why"] == "--no-faults"


def test_residence_of_a_process_that_is_us() -> None:
    import os

    mine = Residence(os.getpid(), ["python", __file__])
    first = mine.sample()
    assert first is not None and first["rss"] >= first["file"] > 0
    assert mine.sample() is None and mine.sample(now=True) is not None
    seen = mine.look()
    assert all(start < end for start, end, _, _ in seen["mappings"])
    assert {m[3] for m in seen["mappings"]} <= {f["path"] for f in seen["files"]}


def test_residence_of_a_process_that_is_gone() -> None:
    gone = Residence(1 << 22, ["x"])
    assert gone.sample() is None
    assert gone.look()["mappings"] == []


def test_a_mapping_whose_place_was_given_away_is_forgotten(tmp_path: Path) -> None:
    import mmap
    import os

    path = tmp_path / "data"
    path.write_bytes(bytes(2 << 20))
    mine = Residence(os.getpid(), ["python"])
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ):
        (seen,) = [m for m in mine.look()["mappings"] if m[3] == str(path)]
    assert seen[1] - seen[0] == 2 << 20
    heap = next(
        tuple(int(x, 16) for x in line.split()[0].split("-"))
        for line in Path("/proc/self/maps").read_text().splitlines()
        if "[heap]" in line
    )
    mine._mappings.add((heap[0], heap[0] + 4096, 0, str(path)))
    assert heap[0] not in {m[0] for m in mine.look()["mappings"] if m[3] == str(path)}


def test_a_kv_cache_is_of_no_file(tmp_path: Path) -> None:
    run = Run()
    cache = next(leaf for leaf in run.graph.leafs if leaf.name.startswith("cache_k"))
    cache.data = BASE + (2 << 20)
    run.decode()
    table = run.trace(tmp_path).residents.tensors.set_index("name")
    assert (table["file"][cache.name], table["file_offset"][cache.name]) == ("", NOWHERE)
