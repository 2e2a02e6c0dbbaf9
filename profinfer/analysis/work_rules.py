"""Layer 6: which formula holds for which ggml operator: one line an operator in ``RULES``.

An operator that has no line here has no numbers: it is counted and shown as unknown. The formulas
and their sources are in ``work_formulas.py``. Must not import the model or rich.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from profinfer.analysis import work_formulas as f
from profinfer.analysis.work_formulas import F64, A, B, C, Case, D, Flops, Reads


@dataclass(frozen=True)
class Rule:
    """The work of one operator.

    Attributes:
        flops: operations.
        reads: bytes read of each source.
        writes: bytes written.
        at_most: why the true work can be less, or "".
    """

    flops: Flops
    reads: Reads = f.every
    writes: Callable[[Case], F64] = f.whole
    at_most: str = ""


# ``ggml_vec_*_f32`` of ggml/src/ggml-cpu/vec.h and unary-ops.cpp, counted as written.
UNARY = {
    **dict.fromkeys("ABS SGN NEG STEP TANH RELU EXP FLOOR CEIL ROUND TRUNC".split(), 1.0),
    "EXPM1": 1.0, "ELU": 1.0, "SIGMOID": 3.0, "SILU": 4.0, "GELU": 8.0, "GELU_QUICK": 5.0,
    "GELU_ERF": 5.0, "HARDSWISH": 5.0, "HARDSIGMOID": 4.0, "SOFTPLUS": 3.0,
}  # fmt: skip
# The function of one half times the other; clamps count. SWIGLU_OAI: two clamps, alpha, g + 1.
GLU = {
    "REGLU": 2.0, "GEGLU": 9.0, "SWIGLU": 5.0, "SWIGLU_OAI": 10.0, "GEGLU_ERF": 6.0,
    "GEGLU_QUICK": 6.0, "SWIGLU_CLAMP": 8.0,
}  # fmt: skip

_EXPERTS = "which experts several tokens used is not recorded"
_MASKED = "masked cells of the KV cache count"
_MOVE = Rule(f.nothing)
_EMPTY = Rule(f.nothing, f.only(), f.nothing)

RULES: dict[str, Rule] = {
    # They compute nothing; engines of 2025 and before pass a barrier for them all the same.
    **dict.fromkeys(("NONE", "RESHAPE", "VIEW", "PERMUTE", "TRANSPOSE"), _EMPTY),
    "MUL_MAT": Rule(f.matmul),
    "MUL_MAT_ID": Rule(f.matmul, f.experts_used, at_most=_EXPERTS),
    "OUT_PROD": Rule(f.out_prod),
    # Of a KV cache's cells the CPU backend passes over the masked ones: see ``work_cells.py``.
    "FLASH_ATTN_EXT": Rule(f.attention, f.masked(D), at_most=_MASKED),
    "SOFT_MAX": Rule(f.soft_max, f.masked(B)),
    # Each pair: 4 products, 2 sums; sines and cosines are computed once for all heads.
    "ROPE": Rule(f.per_output(3)),
    "ROPE_BACK": Rule(f.per_output(3)),
    "RMS_NORM": Rule(f.per_output(3)),  # square, sum, scale
    "L2_NORM": Rule(f.per_output(3)),
    "NORM": Rule(f.per_output(5)),  # sum, subtract, square, sum, scale
    "GROUP_NORM": Rule(f.per_output(5)),
    **dict.fromkeys(
        ("ADD", "SUB", "MUL", "DIV", "ADD1", "SQR", "SQRT", "LOG"), Rule(f.per_output(1))
    ),
    **dict.fromkeys(("SIN", "COS"), Rule(f.per_output(1))),
    "ADD_ID": Rule(f.per_output(1), f.bias_rows),
    "ACC": Rule(lambda case: case.count(B)),
    "SCALE": Rule(f.per_output(1)),
    "CLAMP": Rule(f.per_output(2)),
    "LEAKY_RELU": Rule(f.per_output(2)),
    **dict.fromkeys(("SUM", "SUM_ROWS", "MEAN", "CUMSUM"), Rule(f.per_input(1))),
    **dict.fromkeys(("ARGMAX", "ARGSORT", "TOP_K", "COUNT_EQUAL"), _MOVE),
    "UNARY": Rule(f.by_function(UNARY)),
    "GLU": Rule(f.by_function(GLU)),
    **dict.fromkeys(("DUP", "CPY"), Rule(f.nothing, f.only(A))),  # b is the destination
    "CONT": _MOVE,
    "SET": _MOVE,
    **dict.fromkeys(("REPEAT", "CONCAT", "PAD", "PAD_REFLECT_1D", "ROLL", "TRI", "DIAG"), _MOVE),
    **dict.fromkeys(("DIAG_MASK_INF", "DIAG_MASK_ZERO", "WIN_PART", "WIN_UNPART"), _MOVE),
    **dict.fromkeys(("FILL", "ARANGE"), Rule(f.nothing, f.only())),
    "GET_ROWS": Rule(f.nothing, f.rows_of_a),
    "SET_ROWS": Rule(f.nothing, f.only(A, B), f.rows_of_out),  # rows a, numbers b, destination c
    **dict.fromkeys(
        ("IM2COL", "IM2COL_3D"), Rule(f.nothing, f.only(B))
    ),  # a gives the kernel's shape
    "CONV_2D": Rule(f.conv_2d),
    "CONV_2D_DW": Rule(f.conv_2d_dw),
    "CONV_3D": Rule(f.conv_3d),
    "CONV_TRANSPOSE_1D": Rule(f.conv_transpose_1d),
    "CONV_TRANSPOSE_2D": Rule(f.conv_transpose_2d),
    # How much windows overlap, how pixels are blended: in parameters that are not kept.
    **dict.fromkeys(("POOL_1D", "POOL_2D", "UPSCALE", "TIMESTEP_EMBEDDING"), Rule(f.unknown)),
    "SSM_CONV": Rule(f.ssm_conv),
    "SSM_SCAN": Rule(f.ssm_scan, f.states_used),
    "RWKV_WKV6": Rule(f.recurrent(7, B)),
    "RWKV_WKV7": Rule(f.recurrent(9, D)),
    "GATED_LINEAR_ATTN": Rule(f.recurrent(5, B)),
    "GATED_DELTA_NET": Rule(f.recurrent(7, C)),
    "SOLVE_TRI": Rule(f.solve_tri),
}
