"""The tiny models: complete, the same bytes every time, readable by gguf's own reader."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize

TOOL = Path(__file__).resolve().parents[2] / "tools" / "make_models.py"


@pytest.fixture(scope="module")
def make_models() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_models", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_models"] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


def by_name(module: ModuleType, name: str) -> object:
    return next(spec for spec in module.SPECS if spec.name == name)


def test_same_bytes_twice_and_no_left_over(make_models: ModuleType, tmp_path: Path) -> None:
    for spec in make_models.SPECS:
        first, second = tmp_path / "a.gguf", tmp_path / "b.gguf"
        make_models.write_model(spec, first)
        make_models.write_model(spec, second)
        assert first.read_bytes() == second.read_bytes()
        assert first.stat().st_size < 3_000_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gguf", "b.gguf"]


def test_dense_model_reads_back(make_models: ModuleType, tmp_path: Path) -> None:
    make_models.write_model(by_name(make_models, "tiny-dense"), tmp_path / "m.gguf")
    reader = GGUFReader(tmp_path / "m.gguf")
    assert reader.fields["general.architecture"].contents() == "llama"
    assert reader.fields["llama.block_count"].contents() == 4
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 3 + 4 * 9
    assert list(tensors["blk.3.ffn_down.weight"].shape) == [256, 128]
    assert list(tensors["blk.0.attn_k.weight"].shape) == [128, 64]
    assert tensors["blk.0.attn_q.weight"].tensor_type == GGMLQuantizationType.F16
    assert tensors["blk.0.attn_norm.weight"].tensor_type == GGMLQuantizationType.F32
    # Nothing but plain text can win a greedy choice: the other rows of the head are zero.
    head = np.asarray(tensors["output.weight"].data)
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    printable = tokens.index("\u2581")
    assert not head[:printable].any() and head[printable:].any(axis=1).all()


def test_moe_model_has_experts_and_a_shared_one(make_models: ModuleType, tmp_path: Path) -> None:
    make_models.write_model(by_name(make_models, "tiny-moe-q4_0"), tmp_path / "m.gguf")
    reader = GGUFReader(tmp_path / "m.gguf")
    assert reader.fields["general.architecture"].contents() == "qwen2moe"
    assert reader.fields["qwen2moe.expert_count"].contents() == 8
    assert reader.fields["qwen2moe.expert_used_count"].contents() == 2
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    experts = tensors["blk.0.ffn_up_exps.weight"]
    assert list(experts.shape) == [128, 64, 8]
    assert experts.tensor_type == GGMLQuantizationType.Q4_0
    values = dequantize(np.asarray(experts.data), GGMLQuantizationType.Q4_0)
    assert 0.1 < np.abs(values).max() < 0.3  # sqrt(3 / 128) = 0.153
    assert "blk.2.ffn_gate_shexp.weight" in tensors
    assert list(tensors["blk.0.ffn_gate_inp_shexp.weight"].shape) == [128]
    assert tensors["blk.0.ffn_gate_inp.weight"].tensor_type == GGMLQuantizationType.F32


def test_every_byte_can_be_encoded(make_models: ModuleType) -> None:
    tokens, scores, types, printable = make_models.vocabulary()
    assert len(tokens) == len(scores) == len(types) == len(set(tokens))
    assert [f"<0x{byte:02X}>" for byte in range(256)] == tokens[3:printable]
