"""Layer 1: the role and the layer of a node, from names, by the rules of ``roles.toml``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from typing import Any

from profinfer.engine.catalog import load_from


@dataclass(frozen=True)
class _Rule:
    role: str
    patterns: tuple[tuple[int, re.Pattern[str]], ...]  # (position in (op, weight, name), pattern)


class RoleRules:
    """The rules, compiled. ``role`` and ``layer`` are pure functions of names."""

    def __init__(self, data: dict[str, Any]) -> None:
        keys = ("op", "weight", "name")
        self.order: tuple[str, ...] = tuple(data["order"])
        self._rules = [
            _Rule(
                rule["role"],
                tuple((i, re.compile(rule[k])) for i, k in enumerate(keys) if k in rule),
            )
            for rule in data["rule"]
        ]
        # Whoever looks every second, or at several traces, asks for the same nodes again.
        self._known: dict[tuple[str, str, str], str] = {}
        self._layer_weight = re.compile(data["layer"]["weight"])
        self._layer_node = [re.compile(p) for p in data["layer"]["node"]]
        reader = data["layer"]["reader"]
        self._reader = re.compile(reader["op"]), re.compile(reader["source"])

    def role(self, op: str, name: str, weight: str = "") -> str:
        """What a node does in the model.

        Args:
            op: operator name as in the engine's table (``MUL_MAT``).
            name: the node's name (``Qcur-0``).
            weight: name of the first source that is a weight, or "".

        Returns:
            One of ``order``; "other" if no rule fits.
        """
        texts = (op, weight, name)
        known = self._known.get(texts)
        if known is None:
            known = self._known[texts] = self._role(texts)
        return known

    def _role(self, texts: tuple[str, str, str]) -> str:
        for rule in self._rules:
            if all(p.search(texts[i]) for i, p in rule.patterns):
                return rule.role
        return "other"

    def layer(self, name: str, weight: str = "", *sources: str) -> int | None:
        """The layer's number, or None.

        The weight's name is asked first, then the node's, then those of its sources: an
        unnamed attention node reads ``cache_k_l3``.
        """
        match = self._layer_weight.search(weight)
        if match:
            return int(match[1])
        for text in (name, *sources):
            for pattern in self._layer_node:
                match = pattern.search(text)
                if match:
                    return int(match[1])
        return None

    def of_its_reader(self, op: str, *sources: str) -> bool:
        """Whether a node without a name of its own belongs to the layer that reads it."""
        by_op, by_source = self._reader
        return bool(by_op.search(op)) and any(by_source.search(s) for s in sources[1:])


@cache
def role_rules() -> RoleRules:
    """The rules that ship with profinfer."""
    return RoleRules(load_from("profinfer.engine", "roles.toml"))
