"""Layer 4: operators and threads that a recording is narrowed to.

Owns what ``bpf/filter.bpf.c`` is compiled with. ``model/wanted.py`` finds the same nodes again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from profinfer.errors import TargetError
from profinfer.probes.plan import ProbePlan

_WORDS = 128  # of 64 nodes each: what lies beyond is recorded
_MOST_OPS = 128
_DIGITS = 4  # of a layer's number


@dataclass(frozen=True)
class Only:
    """What operators are recorded of; without all three it is everything.

    Attributes:
        ops: types, as the engine names them.
        layers: [a, b).
        main: only the threads that begin graphs.
    """

    ops: tuple[str, ...] = ()
    layers: tuple[int, int] | None = None
    main: bool = False

    def __bool__(self) -> bool:
        return bool(self.ops or self.layers or self.main)

    def definitions(self, plan: ProbePlan) -> dict[str, int | str]:
        """``-D`` definitions for the engine of a plan.

        Raises:
            TargetError: the engine has no such operator, or cannot be narrowed in this way.
        """
        if not self or plan.ops.mode == "none" or plan.layout is None:
            return {}
        values: dict[str, int | str] = {"PF_COUNT_PASSED": 1}
        if self.main:
            values["PF_MAIN_ONLY"] = 1
        if not self.ops and self.layers is None:
            return values
        if plan.ops.mode != "site":
            raise TargetError(
                "of this engine operators are seen by their begins, and --ops and --layers need "
                "one probe for all",
                "leave them out here, and give --op and --layer to profinfer report",
            )
        values |= {"PF_FILTER": 1, "PF_FILTER_WORDS": _WORDS, "PF_LOOP_BIAS": plan.ops.bias}
        if self.ops:
            low, high = self._masks(plan)
            values |= {"PF_TENSOR_OP": plan.layout.tensor["op"]}
            values |= {"PF_OPS_LOW": f"{low:#x}ull", "PF_OPS_HIGH": f"{high:#x}ull"}
        if self.layers is not None:
            values |= {
                "PF_TENSOR_NAME": plan.layout.tensor["name"],
                "PF_NAME_BYTES": plan.layout.tensor.get("name_size", 64),
                "PF_LAYER_DIGITS": _DIGITS,
                "PF_LAYER_FIRST": self.layers[0],
                "PF_LAYER_END": self.layers[1],
            }
        return values

    def _masks(self, plan: ProbePlan) -> tuple[int, int]:
        names = plan.facts.ops[:_MOST_OPS]
        mask = 0
        for op in self.ops:
            if op not in names:
                known = ", ".join(n for n in names[1:] if n.startswith(op[:3])) or ", ".join(
                    n for n in names if n.startswith(("MUL", "ADD", "RMS"))
                )
                raise TargetError(f"this engine has no operator {op}", f"--ops with one of {known}")
            mask |= 1 << names.index(op)
        return mask & ((1 << 64) - 1), mask >> 64

    def to_json(self) -> dict[str, Any]:
        """For the trace's options; the model reads them."""
        out: dict[str, Any] = {}
        if self.ops:
            out["only_ops"] = list(self.ops)
        if self.layers is not None:
            out["only_layers"] = list(self.layers)
        if self.main:
            out["only_threads"] = "main"
        return out


EVERYTHING = Only()
