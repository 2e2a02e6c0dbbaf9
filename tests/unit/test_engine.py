"""What is known of engines: data files, and what a binary's own code tells."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import LLAMA_BIN

from profinfer.elf.modules import EngineImage, open_program, roles_of
from profinfer.elf.symbols import ElfImage
from profinfer.engine.catalog import backends, layouts, operators
from profinfer.engine.roles import role_rules
from profinfer.probes.engine_facts import EngineFacts, read_facts
from profinfer.probes.layout import choose_layout

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")

CASES = [  # operator, node, weight -> role, layer; from dumps of a dense and of a MoE model
    ("GET_ROWS", "embd", "token_embd.weight", "embedding", None),
    ("RMS_NORM", "norm-3", "", "norm", 3),
    ("MUL", "attn_norm-3", "blk.3.attn_norm.weight", "norm", 3),
    ("MUL_MAT", "Qcur-12", "blk.12.attn_q.weight", "attention qkv", 12),
    ("ADD", "Qcur-12", "blk.12.attn_q.bias", "attention qkv", 12),
    ("MUL", "Qcur_normed-2", "blk.2.attn_q_norm.weight", "norm", 2),
    ("ROPE", "Kcur-0", "", "rope", 0),
    ("SET_ROWS", "cache_k_l7 (view)", "", "kv write", 7),
    ("CPY", "cache_v_l7 (view) (copy of Vcur-7)", "", "kv write", 7),
    ("FLASH_ATTN_EXT", "node_21", "", "attention", None),
    ("MUL_MAT", "kq-1", "", "attention", 1),
    ("SOFT_MAX", "kq_soft_max-1", "", "attention", 1),
    ("MUL_MAT", "kqv-1", "", "attention", 1),
    ("MUL_MAT", "attn_out-1", "blk.1.attn_output.weight", "attention output", 1),
    ("ADD", "ffn_inp-1", "", "residual", 1),
    ("MUL_MAT", "ffn_gate-1", "blk.1.ffn_gate.weight", "ffn", 1),
    ("GLU", "ffn_swiglu-1", "", "ffn", 1),
    ("MUL_MAT", "ffn_out-1", "blk.1.ffn_down.weight", "ffn", 1),
    ("ADD", "l_out-1", "", "residual", 1),
    ("MUL_MAT", "ffn_moe_logits-2", "blk.2.ffn_gate_inp.weight", "moe router", 2),
    ("SOFT_MAX", "ffn_moe_probs-2", "", "moe router", 2),
    ("ARGSORT", "ffn_moe_argsort-2", "", "moe router", 2),
    ("MUL_MAT_ID", "ffn_moe_gate-2", "blk.2.ffn_gate_exps.weight", "moe experts", 2),
    ("GLU", "ffn_moe_swiglu-2", "", "moe experts", 2),
    ("ADD", "ffn_moe_out-2", "", "moe experts", 2),
    ("MUL_MAT", "ffn_up-2", "blk.2.ffn_up_shexp.weight", "shared expert", 2),
    ("MUL_MAT", "ffn_gate-2", "blk.2.ffn_gate_inp_shexp.weight", "shared expert", 2),
    ("MUL", "result_norm", "output_norm.weight", "norm", None),
    ("MUL_MAT", "result_output", "output.weight", "output head", None),
    ("MUL_MAT", "result_output", "token_embd.weight", "output head", None),
    ("SSM_SCAN", "node_9", "", "recurrent", None),
    ("ADD", "something", "", "other", None),
]


@pytest.mark.parametrize(("op", "name", "weight", "role", "layer"), CASES)
def test_roles_and_layers(op: str, name: str, weight: str, role: str, layer: int | None) -> None:
    rules = role_rules()
    assert rules.role(op, name, weight) == role
    assert rules.layer(name, weight) == layer
    assert role in rules.order


def test_an_unnamed_node_has_the_layer_of_its_sources() -> None:
    sources = ("Qcur (view)", "cache_k_l5 (view) (permuted)", "cache_v_l5 (view)")
    assert role_rules().layer("node_21", "", *sources) == 5


def test_catalogue_is_sane() -> None:
    assert {len(g) for g in backends()} == {32}
    assert backends()["aa67c74396e6a38ae3afea9236bcfc89"] == "CPU"
    assert operators().empty == {"NONE", "RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE"}
    assert len({layout.id for layout in layouts()}) == len(layouts())
    for layout in layouts():
        t = layout.tensor
        assert t["src"] + 8 * t["max_src"] <= t["view_src"] < t["view_offs"] < t["data"]
        assert t["op_params"] + t["op_params_size"] == t["flags"]
        assert t["name"] + t["name_size"] <= layout.tensor_size
        assert layout.buffer["usage"] < layout.buffer_size and layout.buffer_size % 8 == 0
        assert layout.tensor_size % 8 == 0 and layout.evidence


def told(layout_id: str, **changes: int) -> EngineFacts:
    """Facts as an engine of this layout would tell them."""
    layout = next(each for each in layouts() if each.id == layout_id)
    values = {
        "tensor.name": layout.tensor["name"],
        "tensor.data": layout.tensor["data"],
        "tensor_size": layout.tensor_size,
        "buffer.usage": layout.buffer["usage"],
        "cgraph.nodes": layout.cgraph["nodes"],
    }
    values |= {k.replace("__", "."): v for k, v in changes.items()}
    return EngineFacts(offsets={k: (v, "accessor") for k, v in values.items()})


@pytest.mark.parametrize("layout_id", [layout.id for layout in layouts()])
def test_each_layout_is_chosen_by_its_facts(layout_id: str) -> None:
    layout, _why = choose_layout(told(layout_id), ())
    assert layout is not None and layout.id == layout_id
    assert "tensor.name=" in layout.evidence


def test_contradictions_and_silence_choose_nothing() -> None:
    layout, why = choose_layout(told("ggml-0.25", tensor__name=248), ())
    assert layout is None and "tensor.name is 248, not 256" in why
    few = EngineFacts(offsets={"tensor.name": (256, "ggml_get_name")})
    layout, why = choose_layout(few, ())
    assert layout is None and "too little" in why


def test_an_optional_field_needs_its_marker() -> None:
    facts = told("ggml-0.25")
    without, _ = choose_layout(facts, ())
    having, _ = choose_layout(facts, {"ggml_graph_next_uid"})
    assert without is not None and "uid" not in without.cgraph
    assert having is not None and having.cgraph["uid"] == 88


ACCESSORS = """
#include <stdlib.h>
#include <stdbool.h>
#include <stdint.h>
#include <stddef.h>
struct tensor { int type; char pad[76]; int op; int op_params[16]; int flags; void *src[10];
    void *view; size_t offs; void *data; char name[64]; void *extra; char tail[8]; };
struct traits { const char *name; int64_t block, interleave; size_t size; bool quantized;
    void *a, *b; };
static const char *const OPS[] = {"NONE", "ADD", "MUL_MAT", "UNARY"};
static const char *const UNARY[] = {"ABS", "SILU"};
static const struct traits TRAITS[] = {
    {"f32", 1, 0, 4}, {"q4_0", 32, 0, 18}, {"DEPRECATED", 0, 0, 0}, {"bf16", 1, 0, 2}};
const char *ggml_op_name(unsigned i) { return OPS[i]; }
const char *ggml_unary_op_name(unsigned i) { return UNARY[i]; }
const char *ggml_type_name(unsigned t) { return t < 4 ? TRAITS[t].name : "NONE"; }
int64_t ggml_blck_size(unsigned t) { return TRAITS[t].block; }
size_t ggml_type_size(unsigned t) { if (t >= 4) abort(); return TRAITS[t].size; }
const char *ggml_get_name(const struct tensor *t) { return t->name; }
void *ggml_get_data(const struct tensor *t) { return t->data; }
void ggml_set_output(struct tensor *t) { t->flags |= 2; }
int ggml_get_unary_op(const struct tensor *t) { if (t->op != 3) abort(); return t->op_params[0]; }
size_t ggml_tensor_overhead(void) { return 32 + sizeof(struct tensor); }
const char *ggml_version(void) { return "9.8.7"; }
"""


@needs_cc
@pytest.mark.parametrize("flags", ["-O0", "-O1", "-O2", "-O3", "-Os", "-O2 -fcf-protection=full"])
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_facts_from_code_of_any_compiler(tmp_path: Path, compiler: str, flags: str) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    source, out = tmp_path / "e.c", tmp_path / "libggml-base.so"
    source.write_text(ACCESSORS)
    subprocess.run(
        [compiler, *flags.split(), "-shared", "-fPIC", "-s", "-o", out, source], check=True
    )
    elf = ElfImage(out)
    facts = read_facts([EngineImage(elf, roles_of(elf))])
    assert facts.version == "9.8.7"
    assert facts.ops == ("NONE", "ADD", "MUL_MAT", "UNARY")
    assert facts.unary_ops == ("ABS", "SILU")
    assert [t and (t["name"], t["block"], t["size"]) for t in facts.types] == [
        ("f32", 1, 4), ("q4_0", 32, 18), None, ("bf16", 1, 2)]  # fmt: skip
    assert {k: v for k, (v, _f) in facts.offsets.items()} == {
        "tensor.name": 256, "tensor.data": 248, "tensor.flags": 148, "tensor.op": 80,
        "tensor.op_params": 84, "tensor_size": 336}  # fmt: skip


@pytest.mark.skipif(not LLAMA_BIN.is_dir(), reason="no llama.cpp build (run: make setup)")
def test_facts_of_the_real_engine() -> None:
    gguf = pytest.importorskip("gguf")
    facts = read_facts(open_program(LLAMA_BIN / "llama-completion").images)
    assert facts.ops[:3] == ("NONE", "DUP", "ADD") and facts.ops[-1] == "GLU"
    assert len(facts.offsets) >= 10
    for number, (block, size) in gguf.GGML_QUANT_SIZES.items():
        if number.name == "Q8_1":  # gguf has the size of older engines
            continue
        if number.value < len(facts.types) and (known := facts.types[number.value]):
            assert (known["block"], known["size"]) == (block, size), number
    layout, why = choose_layout(facts, {"ggml_graph_next_uid"})
    assert layout is not None, why
