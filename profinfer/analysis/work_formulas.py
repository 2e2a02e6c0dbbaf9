"""Layer 6: formulas of the work of ggml operators: operations, bytes read, bytes written.

Each function has its formula and the definition in
``ggml/src/ggml.c`` (shapes, order of sources) or ``ggml/src/ggml-cpu/ops.cpp`` (arithmetic) of
ggml 0.25.3 that it follows. Conventions: every +, -, *, /, max, sqrt, exp, tanh counts as one
operation, and a fused multiply-add as two; unpacking quantised numbers, comparing and converting
count as none. Bytes are the least that must move: every byte addressed once, scratch memory
never. Vectorised over the problems of one operator. Must not import the model or rich.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

F64 = npt.NDArray[np.float64]

OUT, A, B, C, D = range(5)  # the output and the first sources, as ggml's constructors name them


@dataclass(frozen=True)
class Case:
    """Problems of one operator.

    Attributes:
        dims: elements per dimension, output first, shape (n, 1 + S, 4); zeros where there is none.
        size: bytes addressed, shape (n, 1 + S).
        element: bytes of an element, shape (n, 1 + S).
        function: what UNARY or GLU computes, shape (n,).
    """

    dims: F64
    size: F64
    element: F64
    function: npt.NDArray[np.object_]

    def ne(self, slot: int, dim: int) -> F64:
        """Elements of one dimension, shape (n,)."""
        return self.dims[:, slot, dim] if slot < self.dims.shape[1] else np.zeros(len(self.dims))

    def count(self, slot: int, first: int = 0) -> F64:
        """Elements over the dimensions from ``first``, shape (n,)."""
        if slot >= self.dims.shape[1]:
            return np.zeros(len(self.dims))
        out: F64 = self.dims[:, slot, first:].prod(axis=1)
        return out

    def rows(self, slot: int, touched: F64) -> F64:
        """Bytes of so many rows of a tensor, at most of all of it; shape (n,)."""
        return np.minimum(touched * self.ne(slot, 0) * self.element[:, slot], self.size[:, slot])


Flops = Callable[[Case], F64]
Reads = Callable[[Case], F64]  # (n, S)


# -- operations --------------------------------------------------------------------------------


def nothing(case: Case) -> F64:
    """0: data is moved, compared or converted."""
    return np.zeros(len(case.dims))


def unknown(case: Case) -> F64:
    """Not known from the shapes."""
    return np.full(len(case.dims), np.nan)


def per_output(n: float) -> Flops:
    """N x elements of the output."""
    return lambda case: n * case.count(OUT)


def per_input(n: float) -> Flops:
    """N x elements of the first source."""
    return lambda case: n * case.count(A)


def by_function(table: dict[str, float]) -> Flops:
    """Operations of the function x elements of the output; NaN for one that is not listed."""

    def flops(case: Case) -> F64:
        each = np.array([table.get(name, np.nan) for name in case.function.tolist()], np.float64)
        return each * case.count(OUT)

    return flops


def matmul(case: Case) -> F64:
    """2 K x elements of the output; K = a.ne[0] = b.ne[0].

    ``ggml_mul_mat``: output {a.ne[1], b.ne[1], b.ne[2], b.ne[3]}; ``ggml_mul_mat_id``: a is
    {K, M, experts}, output {M, used, tokens}: only the experts used are in the output.
    """
    return 2 * case.ne(A, 0) * case.count(OUT)


def out_prod(case: Case) -> F64:
    """2 K x elements of the output; K = a.ne[1] = b.ne[1] (``ggml_out_prod``)."""
    return 2 * case.ne(A, 1) * case.count(OUT)


def attention(case: Case) -> F64:
    """n_kv x tokens x heads x (2 D_k + 2 D_v + 6).

    ``ggml_flash_attn_ext``: q {D_k, tokens, heads, seqs}, k {D_k, n_kv, kv heads}, v {D_v, n_kv,
    kv heads}. Q K^T, V and, for each score: scale, mask, max, subtract, exp, sum. Fewer kv heads
    than heads (GQA) save bytes, not operations. n_kv is padded: ``work_cells`` knows the part seen.
    """
    scores = case.ne(B, 1) * case.ne(A, 1) * case.ne(A, 2) * case.ne(A, 3)
    return scores * (2 * case.ne(A, 0) + 2 * case.ne(C, 0) + 6)


def soft_max(case: Case) -> F64:
    """6 x elements (scale, max, subtract, exp, sum, divide), 7 with a mask.

    ``ggml_compute_forward_soft_max_f32``.
    """
    return (6 + (case.count(B) > 0)) * case.count(OUT)


def conv_2d(case: Case) -> F64:
    """2 KW KH IC x elements of the output; kernel a {KW, KH, IC, OC} (``ggml_conv_2d_direct``)."""
    return 2 * case.ne(A, 0) * case.ne(A, 1) * case.ne(A, 2) * case.count(OUT)


def conv_2d_dw(case: Case) -> F64:
    """2 KW KH x elements of the output: one kernel a channel (``ggml_conv_2d_dw_direct``)."""
    return 2 * case.ne(A, 0) * case.ne(A, 1) * case.count(OUT)


def conv_3d(case: Case) -> F64:
    """2 KW KH KD IC x elements of the output (``ggml_conv_3d_direct``).

    a.ne[3] = IC OC, b.ne[3] = IC N and out.ne[3] = OC N give IC.
    """
    channels = np.sqrt(case.ne(A, 3) * case.ne(B, 3) / np.maximum(case.ne(OUT, 3), 1))
    return 2 * case.ne(A, 0) * case.ne(A, 1) * case.ne(A, 2) * channels * case.count(OUT)


def conv_transpose_1d(case: Case) -> F64:
    """2 K OC x elements of b; kernel a {K, OC, IC}, b {L, IC} (``ggml_conv_transpose_1d``)."""
    return 2 * case.ne(A, 0) * case.ne(A, 1) * case.count(B)


def conv_transpose_2d(case: Case) -> F64:
    """2 KW KH OC x elements of b; kernel {KW, KH, OC, IC} (``ggml_conv_transpose_2d_p0``)."""
    return 2 * case.ne(A, 0) * case.ne(A, 1) * case.ne(A, 2) * case.count(B)


def ssm_conv(case: Case) -> F64:
    """2 d_conv x elements of the output; kernel b {d_conv, d_inner} (``ggml_ssm_conv``)."""
    return 2 * case.ne(B, 0) * case.count(OUT)


def ssm_scan(case: Case) -> F64:
    """5 d_state x elements of x (``ggml_ssm_scan``: s {d_state, ..} is a, x is b).

    For each number of the state and token: state x dA + B x_dt, and its product with C summed.
    """
    return 5 * case.ne(A, 0) * case.count(B)


def recurrent(each: float, slot: int) -> Flops:
    """N x S x elements of the values {S, heads, tokens}: n for each number of a S x S state.

    WKV6 7: k v, x tf + state, x r summed, state x td + kv. WKV7 9: state a summed, k v, state x w
    + kv + sa b, x r summed. Gated linear attention 5: k v, state x g + kv, x q summed. Gated
    delta net 7: decay, state k summed, state + k delta, state q summed.
    """
    return lambda case: each * case.ne(slot, 0) * case.count(slot)


def solve_tri(case: Case) -> F64:
    """N x elements of the output: forward substitution with a {n, n} (``ggml_solve_tri``)."""
    return case.ne(A, 0) * case.count(OUT)


# -- bytes read --------------------------------------------------------------------------------


def every(case: Case) -> F64:
    """All sources, each byte once: rows that are broadcast are read once."""
    return case.size[:, 1:]


def only(*slots: int) -> Reads:
    """These sources; the others give a shape or are the destination."""

    def reads(case: Case) -> F64:
        out = np.zeros_like(case.size[:, 1:])
        for slot in slots:
            out[:, slot - 1] = case.size[:, slot]
        return out

    return reads


def rows_of_a(case: Case) -> F64:
    """``ggml_get_rows``: as many rows of a as the output has, and the row numbers b."""
    out = case.size[:, 1:].copy()
    out[:, A - 1] = case.rows(A, case.count(OUT, 1))
    return out


def bias_rows(case: Case) -> F64:
    """``ggml_add_id``: a, one row of b for each number in c, and c."""
    out = case.size[:, 1:].copy()
    out[:, B - 1] = case.rows(B, case.count(C))
    return out


def experts_used(case: Case) -> F64:
    """``ggml_mul_mat_id``: of a {K, M, experts} at most used x tokens experts; b; ids c.

    Exact for one token, since its experts differ. For more tokens it is the most that can be
    touched; where the recording has the router's choices, ``work`` puts in what was.
    """
    out = case.size[:, 1:].copy()
    share = case.count(C) / np.maximum(case.ne(A, 2), 1)
    out[:, A - 1] *= np.minimum(share, 1)
    return out


def masked(mask: int) -> Reads:
    """All sources; of the mask {n_kv, tokens padded} the rows of tokens that exist (a.ne[1])."""

    def reads(case: Case) -> F64:
        out = case.size[:, 1:].copy()
        if mask < case.size.shape[1]:
            part = case.ne(A, 1) / np.maximum(case.ne(mask, 1), 1)
            out[:, mask - 1] *= np.minimum(part, 1)
        return out

    return reads


def states_used(case: Case) -> F64:
    """``ggml_ssm_scan``: of the states a {.., slots} one for each number in ids, src[6]."""
    out = case.size[:, 1:].copy()
    used = case.ne(7, 0) / np.maximum(case.ne(A, 3), 1)
    out[:, A - 1] *= np.minimum(used, 1)
    return out


# -- bytes written -----------------------------------------------------------------------------


def whole(case: Case) -> F64:
    """The output."""
    return case.size[:, OUT]


def rows_of_out(case: Case) -> F64:
    """``ggml_set_rows``: the output is the whole destination; as many rows as a has are written."""
    return case.rows(OUT, case.count(A, 1))
