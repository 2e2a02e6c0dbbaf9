"""bpf/events.h, compiled by cc, against profinfer/tracefile/schema.py."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from profinfer.tracefile import frames, schema

ROOT = Path(__file__).parents[2]
HEADER = ROOT / "bpf" / "events.h"

TENSOR, BUFFER = 336, 128
# struct -> its dtype. Fields of the C struct that numpy flattens: h.
STRUCTS: dict[str, np.dtype[np.void]] = {
    "pf_hdr": schema.HDR,
    "pf_call": schema.CALL,
    "pf_run": schema.RUN,
    "pf_seqs": schema.SEQS,
    "pf_end": schema.END,
    "pf_mark": schema.MARK,
    "pf_split": schema.SPLIT,
    "pf_graph": schema.GRAPH,
    "pf_op": schema.OP,
    "pf_ops": schema.OPS,
    "pf_ptrs": schema.PTRS,
    "pf_tensor": schema.tensor_dtype(TENSOR),
    "pf_buffer": schema.tensor_dtype(BUFFER),
    "pf_thread": schema.THREAD,
    "pf_sched": schema.SCHED,
    "pf_fault": schema.FAULT,
    "pf_read": schema.READ,
    "pf_counts": schema.COUNTS,
    "pf_copy": schema.copy_dtype(TENSOR),
    "pf_sync": schema.SYNC,
    "pf_work": schema.WORK,
    "pf_experts": schema.EXPERTS,
}
# Arrays of any length at the end of a struct.
FLEXIBLE = {("pf_ops", "op"), ("pf_counts", "value"), ("pf_experts", "id")}


def compiled(lines: list[str], tmp_path: Path) -> dict[str, int]:
    """Values of C expressions, as the compiler sees them."""
    source = tmp_path / "abi.c"
    body = "".join(f'  printf("%s %lld\\n", "{e}", (long long)({e}));\n' for e in lines)
    source.write_text(
        f"#include <stddef.h>\n#include <stdio.h>\n#include <string.h>\n"
        f'#include "{HEADER}"\nint main(void) {{\n{body}  return 0;\n}}\n'
    )
    binary = tmp_path / "abi"
    build = ["cc", "-std=c99", "-Wall", "-Wextra", "-Werror", "-o", str(binary), str(source)]
    subprocess.run(build, check=True, capture_output=True, text=True)
    said = subprocess.run([binary], check=True, capture_output=True, text=True).stdout
    pairs = (line.rsplit(" ", 1) for line in said.splitlines())
    return {expression: int(value) for expression, value in pairs}


@pytest.fixture
def cc() -> None:
    if not shutil.which("cc"):
        pytest.skip("no C compiler (apt install gcc)")


def declared_structs() -> dict[str, list[str]]:
    """Struct -> field names, from the text of the header."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.S)
    found = {}
    for name, body in re.findall(r"struct (pf_\w+) \{(.*?)\};", text, flags=re.S):
        found[name] = re.findall(r"(\w+)(?:\[\w*\])?;", body)
    return found


def test_every_struct_of_the_header_is_compared() -> None:
    assert set(declared_structs()) == set(STRUCTS)


@pytest.mark.usefixtures("cc")
def test_sizes_and_offsets(tmp_path: Path) -> None:
    wanted: dict[str, int] = {}
    for struct, names in declared_structs().items():
        dtype = STRUCTS[struct]
        wanted[f"sizeof(struct {struct})"] = dtype.itemsize
        flat: list[str] = []
        for name in names:
            if (struct, name) in FLEXIBLE:
                wanted[f"offsetof(struct {struct}, {name})"] = dtype.itemsize
            elif name == "h":
                flat += ["kind", "flags", "tid", "ts"]
                wanted[f"offsetof(struct {struct}, h)"] = 0
            else:
                flat.append(name)
                at = dtype.fields[name]  # type: ignore[index]
                wanted[f"offsetof(struct {struct}, {name})"] = at[1]
                wanted[f"sizeof(((struct {struct} *)0)->{name})"] = at[0].itemsize
        # No field on either side that the other lacks, and no hidden hole.
        assert list(dtype.names or ()) == flat, struct
        assert sum(dtype.fields[name][0].itemsize for name in flat) == dtype.itemsize, struct  # type: ignore[index]
    assert compiled(list(wanted), tmp_path) == wanted


@pytest.mark.usefixtures("cc")
def test_constants(tmp_path: Path) -> None:
    wanted: dict[str, int] = {}
    wanted |= {f"PF_{kind.name}": kind.value for kind in schema.Kind}
    wanted |= {f"PF_OP_{kind.name}": kind.value for kind in schema.OpKind}
    header = HEADER.read_text()
    names = re.findall(
        r"\bPF_((?:CNT|WARMUP|GRAPH|OPS|PTRS|CALL|SEQS|SCHED|FAULT|READ|SPLIT|COPY|SYNC|REQUEST)_[A-Z_]+)\b",
        header,
    )
    for name in set(names) - {k.name for k in schema.Kind}:
        wanted[f"PF_{name}"] = getattr(schema, name)
    assert wanted["PF_COPY_WHOLE"] == schema.COPY_WHOLE
    wanted["PF_COPY_WHOLE"] = -1  # as printed
    wanted |= {"PF_NUMBER_SHIFT": schema.NUMBER_SHIFT, "PF_NUMBERS": schema.NUMBERS}
    wanted["PF_COMM_LEN"] = schema.COMM_LEN
    wanted["PF_OPS_PER_BATCH"] = schema.OPS_PER_BATCH
    wanted["PF_MAX_COUNTERS"] = schema.MAX_COUNTERS
    wanted["PF_MAX_EXPERTS_USED"] = schema.MAX_EXPERTS_USED
    assert f"PF_NOT_COUNTED {schema.NOT_COUNTED:#x}" in header
    wanted["PF_RUNS_PER_RECORD"] = schema.RUNS_PER_RECORD
    assert compiled(list(wanted), tmp_path) == wanted
    assert {"PF_CNT_OP_LOST", "PF_GRAPH_PARTIAL", "PF_OPS_MAX_STEP"} <= set(wanted)


def test_every_kind_has_a_dtype_or_a_size_of_its_own() -> None:
    special = {schema.Kind.OPS, schema.Kind.COUNTS, schema.Kind.TENSOR, schema.Kind.BUFFER}
    special.add(schema.Kind.COPY_BEGIN)
    special |= {schema.Kind.EXPERTS}
    assert set(schema.FIXED) | special == set(schema.Kind)
    assert max(schema.Kind) < schema.CNT_LOST - schema.CNT_SENT


def test_records_are_whole_words() -> None:
    for struct, dtype in STRUCTS.items():
        assert dtype.itemsize % 8 == 0, struct


def test_frame_structs_match_their_dtypes() -> None:
    assert frames.FILE_HEADER.size == schema.FILE_HEADER.itemsize == 40
    assert frames.CHUNK_HEADER.size == schema.CHUNK_HEADER.itemsize == 32
    row = np.frombuffer(frames.pack_file_header(b"{}"), schema.FILE_HEADER, count=1)[0]
    assert (row["major"], row["minor"]) == (schema.MAJOR, schema.MINOR)
    assert (row["header_size"], row["meta_len"]) == (48, 2)
    row = np.frombuffer(frames.pack_chunk_header(3, 5, 7, 9), schema.CHUNK_HEADER)[0]
    assert tuple(row)[:6] == (schema.CHUNK_MAGIC, 3, 0, 5, 7, 9)


def test_the_documentation_has_the_same_offsets() -> None:
    text = (ROOT / "docs" / "file-format.md").read_text()
    tables = re.findall(r"<!-- (\w+) -->\n((?:\|.*\n)+)", text)
    assert len(tables) == 23
    sizes = dict(re.findall(r"^### (\w+): (\d+) bytes$", text, flags=re.M))
    for name, table in tables:
        raw = {"RAW": schema.tensor_dtype(TENSOR), "COPY": schema.copy_dtype(TENSOR)}
        dtype = raw[name] if name in raw else getattr(schema, name)
        told = re.findall(r"^\| (\d+) \| ([\w\[\]]+) \| `(\w+)` \| \S", table, flags=re.M)
        common = (
            set() if name in ("HDR", "FILE_HEADER", "CHUNK_HEADER", "RUN") else {*schema.HDR.names}
        )
        wanted = [(str(dtype.fields[f][1]), f) for f in dtype.names if f not in common]
        assert [(offset, field) for offset, _, field in told] == wanted, name
        for _, kind, field in told:
            width, _, repeat = kind.partition("[")
            size = int(width[1:]) // 8 * int(repeat.rstrip("]") or 1)
            assert size == dtype.fields[field][0].itemsize, (name, field)
        if name in sizes:
            assert int(sizes[name]) == dtype.itemsize, name
    for kind in schema.Kind:
        assert re.search(rf"^\| {kind.value} \| {kind.name} \|", text, flags=re.M)
    for chunk in schema.ChunkKind:
        assert re.search(rf"^\| {chunk.value} \| {chunk.name} \|", text, flags=re.M)
