"""Layer 6: which operator of one side is which of the other.

Must not import rich or anything above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.analysis.compare.slots import FACTS, KEY, Slots

I64 = npt.NDArray[np.int64]

# Tried in turn on what is left: the same name; the same weight; the same place in the layer.
_PASSES: tuple[tuple[str, list[str]], ...] = (
    ("name", KEY),
    ("weight", ["op", "layer", "weight"]),
    ("place", ["op", "layer", "role"]),
)


@dataclass(frozen=True)
class Alignment:
    """All operators of both sides, each once.

    Attributes:
        units: one row per operator: op, layer, role, label and name (of a, else of b), problem_a,
            problem_b, types_a, types_b ("" where a side lacks it), by (name, weight, place, or ""
            where only one side has it), in_a, in_b.
        of_node: of every run, a's first, the unit of each node_id; -1 for what did not run.
    """

    units: pd.DataFrame
    of_node: list[I64]


def _union(runs: list[Slots]) -> tuple[pd.DataFrame, list[I64]]:
    """Slots of all runs of a side, each once, and where each run's slots are among them."""
    parts = pd.concat([s.table for s in runs], ignore_index=True)
    code = parts.groupby(KEY, sort=False).ngroup().to_numpy()
    table = parts.iloc[np.unique(code, return_index=True)[1]].reset_index(drop=True)
    ends = np.cumsum([len(s.table) for s in runs])
    return table, [np.asarray(c, np.int64) for c in np.split(code, ends[:-1])]


def align(a: list[Slots], b: list[Slots]) -> Alignment:
    """Pair the operators of two sides.

    Args:
        a: of each run of the first side.
        b: of each run of the second.
    """
    (left, of_a), (right, of_b) = _union(a), _union(b)
    mate = np.full(len(left), -1, np.int64)
    how = np.full(len(left), "", object)
    free = np.ones(len(right), bool)
    for by, keys in _PASSES:
        one = left[mate < 0].reset_index(names="left")
        two = right[free].reset_index(names="right")
        if "weight" in keys and "name" not in keys:
            one, two = one[one["weight"] != ""], two[two["weight"] != ""]
        one = one.assign(k=one.groupby(keys, sort=False).cumcount())
        two = two.assign(k=two.groupby(keys, sort=False).cumcount())
        found = one[["left", "k", *keys]].merge(two[["right", "k", *keys]], on=["k", *keys])
        mate[found["left"].to_numpy()] = found["right"].to_numpy()
        how[found["left"].to_numpy()] = by
        free[found["right"].to_numpy()] = False
    alone = np.flatnonzero(free)
    unit_of_right = np.full(len(right), -1, np.int64)
    unit_of_right[alone] = len(left) + np.arange(len(alone))
    paired = mate >= 0
    unit_of_right[mate[paired]] = np.flatnonzero(paired)

    facts = ["op", "layer", "name", *FACTS]
    units = pd.concat([left[facts], right[facts].iloc[alone]], ignore_index=True)
    n = len(left)
    in_a = np.arange(len(units)) < n
    in_b = np.r_[paired, np.ones(len(alone), bool)]
    other: pd.DataFrame = right.iloc[np.r_[mate[paired], alone].tolist()]
    for column in ("problem", "types"):
        theirs = np.full(len(units), "", object)
        theirs[in_b] = other[column].to_numpy(object)
        units[f"{column}_a"] = units[column].where(in_a, "")
        units[f"{column}_b"] = theirs
    units["by"] = np.r_[how, np.full(len(alone), "", object)]
    units["in_a"], units["in_b"] = in_a, in_b
    of_node = [_through(s, c, None) for s, c in zip(a, of_a, strict=True)]
    of_node += [_through(s, c, unit_of_right) for s, c in zip(b, of_b, strict=True)]
    return Alignment(units.drop(columns=["problem", "types"]), of_node)


def _through(slots: Slots, of_slot: I64, unit: I64 | None) -> I64:
    """Unit of each node_id of a run."""
    of = of_slot if unit is None else unit[of_slot]
    return np.asarray(np.r_[of, -1][slots.of_node], np.int64)
