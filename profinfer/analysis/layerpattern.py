"""Layer 6: the layers of a graph that are built alike, and how the others differ.

Two layers are alike if the same operators follow each other with the same shapes, and read the same
things: weights of the same names, but for the layer's number, and types, and each other in the same
way. What comes from other layers counts as the layer's inputs, wherever it was made. Must not
import rich or anything above.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from profinfer.analysis.opgraph import OpGraph

_NUMBER = re.compile(r"(?:(?<=[-.])|(?<=_l))\d+(?=$|[. )])")
OPERATORS = ("-", "input")  # begins of reads that stand for operators
_MADE_UP = re.compile(r"^(?:node|leaf)_\d+")


def general_name(name: str, layer: int) -> str:
    """A tensor's name without its layer's number: Qcur-3 and blk.3.attn_q.weight lose theirs.

    Names that the engine made up, node_21, say nothing: they become empty.
    """
    if _MADE_UP.match(name):
        return ""
    number = str(layer)
    return _NUMBER.sub(lambda m: "N" if m[0] == number else m[0], name)


def steps_back(read: str) -> int | None:
    """How many operators before its reader a source is; None if it is of no operator there."""
    number = read.removeprefix("-")
    return int(number) if number != read and number.isdigit() else None


@dataclass(frozen=True)
class Item:
    """One operator of a layer, as it is compared with others.

    Attributes:
        op: operator, with what its parameters say.
        name: of its tensor, without the layer's number.
        type: of its tensor.
        shape: of its tensor.
        reads: its sources in words: ``-3`` is the operator three before it in the layer,
            ``input`` what another layer made (``input 2`` the second such thing), others by name,
            weights with their type.
    """

    op: str
    name: str
    type: str
    shape: str
    reads: tuple[str, ...]

    @property
    def label(self) -> str:
        """Operator and tensor, for a reader."""
        return f"{self.op} {self.name}".rstrip()

    @property
    def key(self) -> str:
        """What it is known by in another graph: its operator, and its weight or its name."""
        weight = next((r.partition(" ")[0] for r in self.reads if ".weight" in r), self.name)
        return f"{self.op}\0{weight}"


@dataclass(frozen=True)
class Group:
    """Layers that are alike.

    Attributes:
        layers: their numbers, ascending.
        items: their operators in order.
        places: place in the graph of each operator of each layer, shape (layers, items).
    """

    layers: tuple[int, ...]
    items: tuple[Item, ...]
    places: np.ndarray

    @property
    def said(self) -> str:
        """``0-28`` or ``0-3, 7, 9-11``."""
        return ranges(self.layers)


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as ranges."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][1] + 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def items_of(graph: OpGraph, places: Sequence[int], layer: int) -> tuple[Item, ...]:
    """The operators at these places, which are those of ``layer``."""
    name, kind, shape = (graph.texts(c) for c in ("name", "type", "shape"))
    before = graph.dag.before
    at = {place: number for number, place in enumerate(places)}
    inputs: dict[int, str] = {}
    out = []
    for number, place in enumerate(places):
        reads = []
        for b in before[place]:
            if b not in at:
                known = f"input {len(inputs) + 1}" if inputs else "input"
                inputs.setdefault(b, known)
            reads.append(f"-{number - at[b]}" if b in at else inputs[b])
        reads += [
            " ".join(filter(None, (general_name(leaf, layer), of)))
            for leaf, of in graph.leaves.get(place, ())
        ]
        own = general_name(name[place], layer)
        out.append(Item(graph.titles[place], own, kind[place], shape[place], tuple(reads)))
    return tuple(out)


def layer_places(graph: OpGraph) -> dict[int, list[int]]:
    """Places of the operators of each layer; -1 for those of none."""
    layer = graph.nodes["layer"].to_numpy()
    out: dict[int, list[int]] = {}
    for place in np.flatnonzero(graph.works).tolist():
        out.setdefault(int(layer[place]), []).append(place)
    return out


def groups(graph: OpGraph) -> list[Group]:
    """Layers that are alike, the largest group first."""
    found: dict[tuple[Item, ...], list[tuple[int, list[int]]]] = {}
    for layer, places in sorted(layer_places(graph).items()):
        if layer >= 0:
            found.setdefault(items_of(graph, places, layer), []).append((layer, places))
    out = [
        Group(tuple(n for n, _ in members), items, np.array([p for _, p in members]))
        for items, members in found.items()
    ]
    return sorted(out, key=lambda g: (-len(g.layers), g.layers))


@dataclass(frozen=True)
class Pair:
    """Operators that stand at the same place of two sequences; one of them may be missing."""

    old: Item | None
    new: Item | None

    @property
    def change(self) -> str:
        """What differs, in words; empty if nothing does."""
        if self.old is None or self.new is None:
            return ""
        return _changed(self.old, self.new)

    @property
    def sign(self) -> str:
        """``+`` only in the new one, ``-`` only in the old one, ``~`` differs, or empty."""
        if self.old is None:
            return "+"
        if self.new is None:
            return "-"
        return "~" if self.change else ""

    @property
    def label(self) -> str:
        """Operator and tensor."""
        item = self.new or self.old
        return item.label if item else ""


def aligned(old: Sequence[Item], new: Sequence[Item]) -> list[Pair]:
    """Two sequences side by side: those of equal keys stand together, as far as order allows."""
    a, b = ([item.key for item in side] for side in (old, new))
    matcher = difflib.SequenceMatcher(a=a, b=b, autojunk=False)
    out = []
    for kind, a0, a1, b0, b1 in matcher.get_opcodes():
        if kind == "equal":
            out += [Pair(i, j) for i, j in zip(old[a0:a1], new[b0:b1], strict=True)]
        else:
            out += [Pair(i, None) for i in old[a0:a1]]
            out += [Pair(None, j) for j in new[b0:b1]]
    return out


def differences(old: Sequence[Item], new: Sequence[Item]) -> list[str]:
    """What ``new`` has more (+), less (-) and otherwise (~), a sentence each, in order."""
    return [
        f"{pair.sign} {pair.label}" + (f": {pair.change}" if pair.change else "")
        for pair in aligned(old, new)
        if pair.sign
    ]


def _changed(old: Item, new: Item) -> str:
    """What differs between two operators that stand at the same place."""
    parts = []
    if old.shape != new.shape:
        parts.append(f"shape {old.shape} -> {new.shape}")
    if old.type != new.type:
        parts.append(f"type {old.type} -> {new.type}")
    lost = [r for r in old.reads if r not in new.reads and not r.startswith(OPERATORS)]
    got = [r for r in new.reads if r not in old.reads and not r.startswith(OPERATORS)]
    if lost:
        parts.append(f"reads {', '.join(got) or 'nothing'} instead of {', '.join(lost)}")
    elif got:
        parts.append(f"reads {', '.join(got)} too")
    return "; ".join(parts)
