"""Layer 5: what part a node plays in a transformer: attention, FFN, norm, KV write, ...

The patterns are data (``profinfer/engine/roles.toml``); this file only applies them: by the
name of the node's weight first, by its own name second. Must not import anything above.
"""

from __future__ import annotations

from typing import Self


class Roles:
    """Role of a node by its weight's name, its own name and its operator."""

    @classmethod
    def load(cls) -> Self:
        """Read the rules that ship with profinfer."""
        return cls()

    def of(self, op: str, name: str, weight: str) -> str:
        """The role."""
        return "other"
