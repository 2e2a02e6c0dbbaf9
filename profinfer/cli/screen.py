"""Layer 8: where ``profinfer top`` shows its lines: a screen of its own, or block after block.

Owns the terminal's state, and gives it back as it was.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import sys
import termios
import tty
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

_PLAIN_HEIGHT = 60


class Interrupt:
    """Ctrl-C as something to wait for.

    As an exception it could come in the middle of a drawing, and what gives the terminal back
    would not be written. The second one is an exception again, in case the first has no effect.
    """

    def __init__(self) -> None:
        self._ours, self._theirs = os.pipe()
        self._before = signal.signal(signal.SIGINT, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        os.write(self._theirs, b"c")
        signal.signal(number, signal.default_int_handler)

    def fileno(self) -> int:
        """Readable when it has come."""
        return self._ours

    def close(self) -> None:
        """Ctrl-C is again what it was before."""
        signal.signal(signal.SIGINT, self._before)
        os.close(self._ours)
        os.close(self._theirs)


class Screen:
    """Blocks of lines on stdout; nobody presses keys."""

    width = 80
    height = _PLAIN_HEIGHT

    def __init__(self, interrupt: Interrupt) -> None:
        self._interrupt = interrupt
        self.width = shutil.get_terminal_size((80, 24)).columns

    def wait(self, seconds: float, other: int) -> bool:
        """Sleep until a key or Ctrl-C asks for the end (True), or ``other`` says something."""
        return (
            self._interrupt.fileno()
            in select.select([other, self._interrupt.fileno()], [], [], seconds)[0]
        )

    def show(self, lines: list[Text]) -> None:
        """Print a block."""
        for line in lines:
            sys.stdout.write(line.plain.rstrip() + "\n")
        sys.stdout.write("\n")
        sys.stdout.flush()


class Terminal(Screen):
    """The terminal's other screen, redrawn."""

    def __init__(self, live: Live, keys: TextIO | None, interrupt: Interrupt) -> None:
        self._interrupt = interrupt
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
        ready = select.select([other, self._interrupt.fileno(), *keys], [], [], seconds)[0]
        if self._interrupt.fileno() in ready:
            return True
        return bool(keys) and keys[0] in ready and self._key() in ("q", "Q", "\x03", "")

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
    interrupt = Interrupt()
    try:
        if live:
            with _other_screen(keys, interrupt) as screen:
                yield screen
        else:
            yield Screen(interrupt)
    finally:
        interrupt.close()


@contextlib.contextmanager
def _other_screen(keys: TextIO, interrupt: Interrupt) -> Iterator[Screen]:
    from rich.console import Console
    from rich.live import Live

    console = Console(highlight=False, soft_wrap=False)
    pressed = keys if keys.isatty() else None
    before = termios.tcgetattr(pressed) if pressed is not None else None
    try:
        if pressed is not None:
            tty.setcbreak(pressed.fileno())
        with Live(console=console, screen=True, auto_refresh=False) as drawn:
            yield Terminal(drawn, pressed, interrupt)
    finally:
        if pressed is not None and before is not None:
            termios.tcsetattr(pressed, termios.TCSADRAIN, before)
