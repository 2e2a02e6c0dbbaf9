"""Layer 7: the form of a drawn operator: what kind of work it is, whatever its colour says.

Must not import the command line.
"""

from __future__ import annotations

from collections.abc import Iterable

from profinfer.analysis.work import MATMUL

PRODUCT, ATTENTION, MOVE, OTHER = "matrix product", "attention", "copy or view", "norm, elementwise"
_ATTENTION = ("FLASH_ATTN_EXT",)
_SCORES = ("SOFT_MAX", "DIAG_MASK_INF")
# ggml's operators that only put values elsewhere, or look at them in another way.
_MOVES = (
    "CONCAT", "CONT", "CPY", "DUP", "GET_ROWS", "PAD", "PERMUTE", "REPEAT", "RESHAPE", "SET",
    "SET_ROWS", "TRANSPOSE", "VIEW",
)  # fmt: skip
# In Graphviz' language; all hold a label without growing much. Weights are notes, caches drums,
# inputs ellipses.
_FORMS = {
    PRODUCT: "shape=box, style=filled",
    ATTENTION: 'shape=octagon, style=filled, margin="0.01,0.01"',
    MOVE: 'shape=cds, style=filled, margin="0.12,0.1"',
    OTHER: 'shape=box, style="filled,rounded"',
}
_SAID = {
    PRODUCT: "sharp corners", OTHER: "rounded", ATTENTION: "octagon", MOVE: "arrow",
}  # fmt: skip


def kind(op: str, role: str) -> str:
    """Kind of an operator of ggml; a softmax is attention or not by the role that it plays."""
    if op in MATMUL:
        return PRODUCT
    if op in _ATTENTION or (op in _SCORES and role.startswith("attention")):
        return ATTENTION
    return MOVE if op in _MOVES else OTHER


def form(op: str, role: str) -> str:
    """Attributes of its node."""
    return _FORMS[kind(op, role)]


def legend_of(nodes: Iterable[tuple[str, str]]) -> str:
    """What the forms of these operators, by operator and role, mean."""
    here = {kind(op, role) for op, role in nodes}
    return "; ".join(f"{said}: {name}" for name, said in _SAID.items() if name in here)
