"""Layer 8: where ``profinfer top`` shows its lines: a screen of its own, or block after block.

Owns the terminal's state, and gives it back as it was.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import termios
import tty
from collections.abc import Iterator
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

_PLAIN_HEIGHT = 60


class Screen:
    """Blocks of lines on stdout; nobody presses keys."""

    width = 80
    height = _PLAIN_HEIGHT

    def __init__(self) -> None:
        self.width = shutil.get_terminal_size((80, 24)).columns

    def wait(self, seconds: float, other: int) -> bool:
        """Sleep until a key or Ctrl-C asks for the end (True), or ``other`` says something."""
        try:
            select.select([other], [], [], seconds)
        except KeyboardInterrupt:
            return True
        return False

    def show(self, lines: list[Text]) -> None:
        """Print a block."""
        for line in lines:
            sys.stdout.write(line.plain.rstrip() + "\n")
        sys.stdout.write("\n")
        sys.stdout.flush()


class Terminal(Screen):
    """The terminal's other screen, redrawn."""

    def __init__(self, live: Live, keys: TextIO | None) -> None:
        self._live = live
        self._keys = keys

    @property
    def width(self) -> int:  # type: ignore[override]
        """Of the terminal now."""
        return self._live.console.width

    @property
    def height(self) -> int:  # type: ignore[override]
        """Of the terminal now."""
        return self._live.console.height

    def wait(self, seconds: float, other: int) -> bool:
        """As ``Screen.wait``."""
        keys = [] if self._keys is None else [self._keys.fileno()]
        try:
            ready = select.select([other, *keys], [], [], seconds)[0]
            return bool(keys) and keys[0] in ready and self._key() in ("q", "Q", "\x03", "")
        except KeyboardInterrupt:
            return True

    def _key(self) -> str:
        assert self._keys is not None
        return os.read(self._keys.fileno(), 1).decode("latin-1")

    def show(self, lines: list[Text]) -> None:
        """Draw them."""
        from rich.text import Text

        self._live.update(Text("\n").join(lines), refresh=True)


@contextlib.contextmanager
def open_screen(live: bool, keys: TextIO) -> Iterator[Screen]:
    """The screen; the terminal is as it was afterwards.

    Args:
        live: draw on the terminal's other screen.
        keys: where keys come from, if it is a terminal.
    """
    if not live:
        yield Screen()
        return
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False, soft_wrap=False)
    pressed = keys if keys.isatty() else None
    before = termios.tcgetattr(pressed) if pressed is not None else None
    try:
        if pressed is not None:
            tty.setcbreak(pressed.fileno())
        with Live(console=console, screen=True, auto_refresh=False) as drawn:
            yield Terminal(drawn, pressed)
    finally:
        if pressed is not None and before is not None:
            termios.tcsetattr(pressed, termios.TCSADRAIN, before)
