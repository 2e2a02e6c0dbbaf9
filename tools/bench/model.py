"""Writes the benchmark's model of about 1.1 billion parameters: llama shapes, random weights.

Blocks of Q4_0 and Q8_0 are written directly: a scale and random bits. So nothing is quantised and
little memory is used; an operator's time does not depend on the weights' values.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType

from tools import make_models

NAME = "bench-1b.Q4_0.gguf"
LAYERS, EMBD, HEADS, KV_HEADS, FF, CONTEXT = 22, 2048, 32, 4, 5632, 2048
VOCAB = 32000
_BLOCK = 32
_BYTES = {GGMLQuantizationType.Q4_0: 16, GGMLQuantizationType.Q8_0: 32}


def _blocks(rng: np.random.Generator, rows: int, columns: int, kind: GGMLQuantizationType):  # type: ignore[no-untyped-def]
    """Random quantised rows: uint8 [rows, bytes a row]."""
    count = rows * columns // _BLOCK
    body = _BYTES[kind]
    out = np.empty((count, 2 + body), dtype=np.uint8)
    peak = 8 if kind == GGMLQuantizationType.Q4_0 else 127
    scale = np.float16(np.sqrt(3 / columns) / peak)
    out[:, :2] = np.frombuffer(scale.tobytes(), dtype=np.uint8)
    out[:, 2:] = rng.integers(0, 256, size=(count, body), dtype=np.uint8)
    return out.reshape(rows, -1)


def _shapes() -> Iterator[tuple[str, int, int]]:
    """Name, rows and columns of every matrix."""
    kv = EMBD // HEADS * KV_HEADS
    yield "token_embd", VOCAB, EMBD
    for layer in range(LAYERS):
        for name, rows, columns in (
            ("attn_q", EMBD, EMBD),
            ("attn_k", kv, EMBD),
            ("attn_v", kv, EMBD),
            ("attn_output", EMBD, EMBD),
            ("ffn_gate", FF, EMBD),
            ("ffn_up", FF, EMBD),
            ("ffn_down", EMBD, FF),
        ):
            yield f"blk.{layer}.{name}", rows, columns
    yield "output", VOCAB, EMBD


def write(path: Path) -> None:
    """Write the model, about 0.63 GB; it appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    writer = GGUFWriter(str(part), "llama", use_temp_file=True)
    spec = make_models.Spec(
        "bench-1b", "llama", GGMLQuantizationType.Q4_0, LlamaFileType.MOSTLY_Q4_0,
        layers=LAYERS, seed=1, embd=EMBD, heads=HEADS, kv_heads=KV_HEADS, ff=FF,
    )  # fmt: skip
    plain = make_models.vocabulary
    make_models.vocabulary = _vocabulary
    try:
        make_models._add_metadata(writer, spec)
    finally:
        make_models.vocabulary = plain
    rng = np.random.default_rng(1)
    for name, rows, columns in _shapes():
        kind = GGMLQuantizationType.Q8_0 if name == "output" else GGMLQuantizationType.Q4_0
        writer.add_tensor(f"{name}.weight", _blocks(rng, rows, columns, kind), raw_dtype=kind)
    ones = np.ones(EMBD, dtype=np.float32)
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", ones)
    writer.add_tensor("output_norm.weight", ones)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(part, path)


def _vocabulary() -> tuple[list[str], list[float], list[int], int]:
    tokens, scores, types, printable = _PLAIN()
    extra = [f"<filler{i}>" for i in range(VOCAB - len(tokens))]
    return (
        tokens + extra,
        scores + [-1e4] * len(extra),
        types + [types[printable]] * len(extra),
        printable,
    )


_PLAIN = make_models.vocabulary


def models(cache: Path, *, quick: bool) -> dict[str, Path]:
    """The models by name; the generated one is written when it is not there.

    Raises:
        FileNotFoundError: SmolLM2 is missing: ``make setup``.
    """
    folder = cache / "models"
    smol = folder / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not smol.is_file():
        raise FileNotFoundError(f"{smol}: run make setup")
    found = {"SmolLM2-135M": smol}
    if not quick:
        big = folder / NAME
        if not big.is_file():
            write(big)
        found["bench-1b"] = big
    return found
