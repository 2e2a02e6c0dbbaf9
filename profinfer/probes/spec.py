"""Layer 2: what a wanted probe is, before any program was looked at.

Owns the vocabulary of roles and levels. Imports nothing of profinfer.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Level(IntEnum):
    """How deep to look; each level includes the ones before it."""

    token = 1
    graph = 2
    op = 3


@dataclass(frozen=True)
class ProbeSpec:
    """A function to probe.

    Attributes:
        role: what its events mean; the capture layer has one handler a role.
        names: symbols, in order of preference; ``*`` stands for anything, as in a file name.
        level: the least level that wants it.
        arguments: how many argument registers the handler reads.
        stack_arguments: the handler reads an argument from the stack.
        returns: the return is probed too.
        every: probe each of ``names`` that exists, not the first only.
        many: a name may stand for several functions, in several images: probe all of them.
        optional: engines without it are common; it is not noted as missing.
        apart: not wanted where all backends compute in the CPU's own memory.
        within: not wanted, and not missed, where no image plays this role.
    """

    role: str
    names: tuple[str, ...]
    level: Level
    images: tuple[str, ...] = ()
    arguments: int = 0
    stack_arguments: bool = False
    returns: bool = False
    every: bool = False
    many: bool = False
    optional: bool = False
    apart: bool = False
    within: str = ""
