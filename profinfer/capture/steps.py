"""Layer 4: which decode steps of each generation operators are recorded in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Steps:
    """Decode steps, counted in each context from 0 since its last prompt.

    Attributes:
        first: the first one.
        end: the one after the last.
        every: of these, each how-manieth.
    """

    first: int = 0
    end: int = 1 << 31
    every: int = 1

    @property
    def definitions(self) -> dict[str, int]:
        """``-D`` definitions of ``bpf/gate.bpf.c``."""
        return {"PF_GATE_FIRST": self.first, "PF_GATE_END": self.end, "PF_GATE_EVERY": self.every}

    def to_json(self) -> dict[str, list[int]]:
        """For the trace's options."""
        return {"steps": [self.first, self.end, self.every]}
