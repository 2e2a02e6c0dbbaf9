"""Layer 4: signals that reach the recorder while a target runs.

They are blocked and collected, so that no signal can interrupt the writing of a chunk, and so
that a Ctrl-C of the terminal (which the target gets as well) is told from a signal sent to the
recorder alone (which must be passed on). And what our forked children are sent when we end.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from types import TracebackType

_PR_SET_PDEATHSIG = 1
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A child that stops or ends wakes the recorder at once.
_WATCHED = (*_ENDING, signal.SIGCHLD)


class SignalWatch:
    """Context manager that blocks the watched signals and hands them out one by one."""

    def __enter__(self) -> SignalWatch:
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        # What is still pending has had its effect: the recording is over.
        while signal.sigtimedwait(_WATCHED, 0) is not None:
            pass
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)

    def wait(self, timeout_s: float) -> signal.struct_siginfo | None:
        """Sleep until a child changes, a signal asks for the end, or the time is over.

        Returns:
            The signal if it asks for the end, else None.
        """
        info = signal.sigtimedwait(_WATCHED, timeout_s)
        return info if info is not None and info.si_signo in _ENDING else None


def pass_on(info: signal.struct_siginfo, pid: int) -> None:
    """Give a signal to the target unless the terminal has done so already."""
    from_terminal = info.si_pid == 0 and info.si_signo in (signal.SIGINT, signal.SIGHUP)
    if not from_terminal:
        with contextlib.suppress(ProcessLookupError):  # it ended by itself meanwhile
            os.kill(pid, info.si_signo)


def unblock_for_child() -> None:
    """Undo the blocking in a forked child: a blocked mask would survive exec."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _WATCHED)


def at_parents_end(number: signal.Signals) -> None:
    """In a forked child: the kernel sends this signal when the thread that forked has ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def end_with(parent: int, number: signal.Signals) -> None:
    """In a forked child: ``at_parents_end``; ends at once if the parent is gone already."""
    at_parents_end(number)
    if os.getppid() != parent:
        os._exit(1)
