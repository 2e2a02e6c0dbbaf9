"""record --ops, --layers, --threads: the kernel and the model choose the same nodes."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from profinfer.capture.only import Only
from profinfer.model.wanted import Narrowed, layer_of, layers, wanted_nodes

FILTER = Path(__file__).parents[2] / "bpf" / "filter.bpf.c"
NAME_BYTES = 64
NO_LAYER = 0xFFFFFFFF
NAMES = {
    "Qcur-3": 3,
    "Qcur-3 (view)": 3,
    "ffn_moe_topk-17": 17,
    "cache_k_l0 (view)": 0,
    "cache_v_l12 (view) (permuted)": 12,
    "cache_k_l3 (copy of Kcur-4)": 3,
    "l_out-29": 29,
    "norm": -1,
    "result_output": -1,
    "a-b-3": -1,
    "x-12345": -1,
    "x-3y": -1,
    "x-": -1,
    "cache_k_l": -1,
    "-7": 7,
}


@pytest.fixture(scope="module")
def kernel_layer(tmp_path_factory: pytest.TempPathFactory):
    """bpf/filter.bpf.c's own function, compiled for this machine: (name, layer before) -> layer."""
    if not shutil.which("cc"):
        pytest.skip("no C compiler (apt install gcc)")
    found = re.search(r"#define PF_NAME_CHAR.*?\n#endif", FILTER.read_text(), flags=re.S)
    assert found
    folder = tmp_path_factory.mktemp("filter")
    source = folder / "filter.c"
    source.write_text(
        "typedef unsigned int u32; typedef unsigned long long u64;\n"
        "#define __always_inline inline\n#define PF_NO_LAYER 0xffffffff\n"
        f"#define PF_NAME_BYTES {NAME_BYTES}\n#define PF_LAYER_DIGITS 4\n"
        + found[0].removesuffix("#endif")
        + "u32 layer_of(const unsigned char *name, u32 layer)\n"
        "{ u32 place; pf_layer_of(name, &layer, &place); return layer; }\n"
    )
    library = folder / "filter.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, source], check=True)
    call = ctypes.CDLL(str(library)).layer_of
    call.restype = ctypes.c_uint32

    def layer(name: str, before: int) -> int:
        got = call(name.encode().ljust(NAME_BYTES, b"\0"), ctypes.c_uint32(before & NO_LAYER))
        return -1 if got == NO_LAYER else got

    return layer


def table(names: list[str], ops: list[str] | None = None) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "name": pd.Categorical(names),
            "op": pd.Categorical(ops or ["ADD"] * len(names)),
            "idx": np.arange(len(names)),
            "unread": False,
        }
    )


def test_names_that_the_engine_gives(kernel_layer) -> None:
    for name, layer in NAMES.items():
        assert layer_of(name) == layer, name
        assert kernel_layer(name, 5) == layer, name


LETTERS = st.text(st.sampled_from("nodelafcheqk_-l0123456789 ()x"), max_size=NAME_BYTES - 1)
SHAPED = st.from_regex(r"\A(node_|leaf_|cache_k_l|cache_|Kcur-|a)[0-9]{0,6}( \(view\))?-?[0-9]?\Z")


@given(names=st.lists(LETTERS | SHAPED, min_size=1, max_size=12))
def test_the_model_follows_the_kernel(kernel_layer, names: list[str]) -> None:
    told, before = [], -1
    for name in names:
        before = kernel_layer(name, before)
        told.append(before)
    assert layers(table(names)).tolist() == told


def test_what_ggml_named_itself_belongs_to_the_node_before() -> None:
    names = ["embd", "node_1", "Qcur-0", "node_3", "", "node_5 (view)", "norm", "node_7"]
    assert layers(table(names)).tolist() == [-1, -1, 0, 0, 0, 0, -1, -1]


def test_operators_and_layers_together() -> None:
    nodes = table(["Q-0", "K-0", "Q-1", "Q-2"], ["MUL_MAT", "ROPE", "MUL_MAT", "MUL_MAT"])
    assert wanted_nodes(nodes, Narrowed(("MUL_MAT",), (0, 2))).tolist() == [1, 0, 1, 0]
    assert wanted_nodes(nodes, Narrowed(("MUL_MAT", "ROPE"))).all()
    nodes["unread"] = [True, False, False, False]
    assert wanted_nodes(nodes, Narrowed(("MUL_MAT",))).tolist() == [0, 0, 1, 1]


def test_what_lies_beyond_the_kernels_bits_is_recorded() -> None:
    nodes = table(["norm", "norm"])
    nodes["idx"] = [8191, 8192]
    assert wanted_nodes(nodes, Narrowed((), (0, 1))).tolist() == [0, 1]


def test_options_of_a_trace() -> None:
    only = Only(("MUL_MAT",), (3, 6), True)
    narrowed = Narrowed.of(only.to_json())
    assert narrowed == Narrowed(("MUL_MAT",), (3, 6), True)
    assert narrowed.text == "MUL_MAT of layers 3 to 5"
    assert not Narrowed.of({}) and not Only().to_json() and not Only()
    nonsense: dict[str, object] = {
        "only_ops": 3,
        "only_layers": ["a", None],
        "only_threads": ["main"],
    }
    assert Narrowed.of(nonsense) == Narrowed()
