#!/usr/bin/env python3
"""Write the tiny GGUF models of the tests: real architectures, random weights, about 1 MB each.

    python tools/make_models.py DIR           # writes DIR/tiny-*.gguf, the same bytes every time
    python tools/make_models.py DIR --large   # writes DIR/moe-64.gguf, 200 MB, for an example

Dense models are of the llama architecture, MoE models of qwen2moe (8 experts, 2 used, and a
shared expert). The tokenizer is a working SentencePiece-style one with byte fall-back, so any
prompt can be encoded; the output rows of special and byte tokens are zero, so greedy decoding
prints plain letters and never ends early.
"""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType
from gguf.quants import quantize

CONTEXT = 2048
WORDS = ["the", "and", "he", "ll", "lo", "in", "er", "on", "an", "re", "th", "st", "en", "or"]


@dataclass(frozen=True)
class Spec:
    """What a tiny model looks like; sizes are elements, not bytes."""

    name: str
    arch: str
    quant: GGMLQuantizationType
    file_type: LlamaFileType
    layers: int
    seed: int
    embd: int = 128
    heads: int = 4
    kv_heads: int = 2
    ff: int = 256
    experts: int = 0
    experts_used: int = 0
    expert_ff: int = 0
    shared_ff: int = 0
    liking: float = (
        0.0  # how much longer the router's vector of the first expert is than the last's
    )


_F16 = (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16)
_Q4_0 = (GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0)
_Q8_0 = (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0)


def _dense(name: str, kind: tuple[GGMLQuantizationType, LlamaFileType]) -> Spec:
    return Spec(name, "llama", *kind, layers=4, seed=1)


def _moe(name: str, kind: tuple[GGMLQuantizationType, LlamaFileType]) -> Spec:
    return Spec(
        name, "qwen2moe", *kind, layers=3, seed=2, experts=8, experts_used=2,
        expert_ff=64, shared_ff=128,
    )  # fmt: skip


SPECS: tuple[Spec, ...] = (
    _dense("tiny-dense", _F16),
    _dense("tiny-dense-q4_0", _Q4_0),  # the CPU backend repacks Q4_0: another code path
    _dense("tiny-dense-q8_0", _Q8_0),
    _moe("tiny-moe", _F16),
    _moe("tiny-moe-q4_0", _Q4_0),
)

# Its router likes some experts more than others, as those of trained models do.
LARGE: tuple[Spec, ...] = (
    Spec(
        "moe-64", "qwen2moe", *_F16, layers=4, seed=4, embd=256, ff=512, experts=64,
        experts_used=4, expert_ff=512, shared_ff=256, liking=3.0,
    ),
)  # fmt: skip


def vocabulary() -> tuple[list[str], list[float], list[int], int]:
    """Tokens, scores and types, and the index of the first printable token."""
    tokens = ["<unk>", "<s>", "</s>"]
    types = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
    tokens += [f"<0x{byte:02X}>" for byte in range(256)]
    types += [TokenType.BYTE] * 256
    printable = len(tokens)
    letters = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    tokens += ["\u2581", *letters, *WORDS]  # U+2581 is the space of SentencePiece
    types += [TokenType.NORMAL] * (len(tokens) - printable)
    # Longer pieces have better scores, so that merging is what a trained model would do.
    scores = [float(len(token)) if i >= printable else 0.0 for i, token in enumerate(tokens)]
    return tokens, scores, [int(kind) for kind in types], printable


class _Weights:
    """Random tensors that do not depend on the numpy release: raw PCG64 words only."""

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def matrix(self, *shape: int) -> np.ndarray:
        """Uniform in [-s, s) with s = sqrt(3 / columns), float32, numpy order (rows first)."""
        raw = self._bits.random_raw(int(np.prod(shape)))
        unit = (raw >> np.uint64(40)).astype(np.float32) / np.float32(1 << 23) - np.float32(1)
        return (unit * np.float32(np.sqrt(3 / shape[-1]))).reshape(shape)


def _add_metadata(writer: GGUFWriter, spec: Spec) -> int:
    tokens, scores, types, printable = vocabulary()
    writer.add_name(spec.name)
    writer.add_file_type(spec.file_type)
    writer.add_quantization_version(2)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(spec.embd)
    writer.add_block_count(spec.layers)
    writer.add_feed_forward_length(spec.ff)
    writer.add_head_count(spec.heads)
    writer.add_head_count_kv(spec.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    if spec.arch == "llama":
        writer.add_rope_dimension_count(spec.embd // spec.heads)
    if spec.experts:
        writer.add_expert_count(spec.experts)
        writer.add_expert_used_count(spec.experts_used)
        writer.add_expert_feed_forward_length(spec.expert_ff)
        writer.add_expert_shared_feed_forward_length(spec.shared_ff)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_space_prefix(True)
    return printable


def _tensors(spec: Spec, vocab: int, printable: int) -> dict[str, np.ndarray]:
    """All tensors by GGUF name; 1-D ones stay F32, the others are quantised by the writer."""
    weights = _Weights(spec.seed)
    embd, kv = spec.embd, spec.embd // spec.heads * spec.kv_heads
    ones = np.ones(embd, dtype=np.float32)
    head = weights.matrix(vocab, embd)
    head[:printable] = 0
    out = {
        "token_embd.weight": weights.matrix(vocab, embd),
        "output_norm.weight": ones,
        "output.weight": head,
    }
    for layer in range(spec.layers):
        block = {
            "attn_norm": ones,
            "attn_q": weights.matrix(embd, embd),
            "attn_k": weights.matrix(kv, embd),
            "attn_v": weights.matrix(kv, embd),
            "attn_output": weights.matrix(embd, embd),
            "ffn_norm": ones,
        }
        if spec.experts:
            n, ff, shared = spec.experts, spec.expert_ff, spec.shared_ff
            router = weights.matrix(n, embd)
            if spec.liking:
                length = np.float32(1) + np.float32(spec.liking) / np.arange(1, n + 1, dtype="f4")
                router *= length[:, None]
            block |= {
                "ffn_gate_inp": router,
                "ffn_gate_exps": weights.matrix(n, ff, embd),
                "ffn_up_exps": weights.matrix(n, ff, embd),
                "ffn_down_exps": weights.matrix(n, embd, ff),
                "ffn_gate_inp_shexp": weights.matrix(embd),
                "ffn_gate_shexp": weights.matrix(shared, embd),
                "ffn_up_shexp": weights.matrix(shared, embd),
                "ffn_down_shexp": weights.matrix(embd, shared),
            }
        else:
            block |= {
                "ffn_gate": weights.matrix(spec.ff, embd),
                "ffn_up": weights.matrix(spec.ff, embd),
                "ffn_down": weights.matrix(embd, spec.ff),
            }
        out |= {f"blk.{layer}.{name}.weight": data for name, data in block.items()}
    return out


def write_model(spec: Spec, path: Path) -> None:
    """Write one model; the file appears whole or not at all."""
    part = path.with_suffix(".part")
    writer = GGUFWriter(str(part), spec.arch)
    printable = _add_metadata(writer, spec)
    for name, data in _tensors(spec, len(vocabulary()[0]), printable).items():
        # Norms and the router stay F32, as in converted models.
        if data.ndim == 1 or "ffn_gate_inp." in name:
            writer.add_tensor(name, data)
        else:
            writer.add_tensor(name, quantize(data, spec.quant), raw_dtype=spec.quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(part, path)


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description="Write the tiny GGUF models of the tests.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--large", action="store_true", help="the model of an example instead")
    asked = parser.parse_args()
    folder = asked.folder
    folder.mkdir(parents=True, exist_ok=True)
    for spec in LARGE if asked.large else SPECS:
        path = folder / f"{spec.name}.gguf"
        write_model(spec, path)
        print(f"  {path} ({path.stat().st_size / 1e6:.1f} MB)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
