"""Layer 4: whether a target is for this machine. Programs of another can only be looked at."""

from __future__ import annotations

import platform

from profinfer.elf.symbols import ElfImage
from profinfer.errors import TargetError


def require_native(image: ElfImage) -> None:
    """Refuse a program of another architecture.

    Raises:
        TargetError: it is one.
    """
    here = platform.machine()
    if image.machine != here:
        raise TargetError(
            f"{image.path}: built for {image.machine}, and this machine is {here}",
            "record it on such a machine; profinfer probes can look at it here",
        )
