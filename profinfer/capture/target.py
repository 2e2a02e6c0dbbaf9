"""Layer 4: starts the program to record, held at a gate until the probes are in place.

Owns fork, gate, privileges and exit status. Knows nothing of BPF.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import select
import signal
from dataclasses import dataclass
from types import TracebackType

from profinfer.capture.signals import unblock_for_child
from profinfer.errors import TargetError

_ERRNO_BYTES = 4


@dataclass(frozen=True)
class ExitStatus:
    """How a process ended: exactly one of the two is set."""

    code: int | None
    signal: int | None

    @property
    def as_exit_code(self) -> int:
        """The shell's convention: 128 + signal for a killed process."""
        return self.code if self.code is not None else 128 + (self.signal or 0)

    @property
    def text(self) -> str:
        """``exited with 0`` or ``was killed by SIGSEGV``."""
        if self.signal is None:
            return f"exited with {self.code}"
        try:
            name = signal.Signals(self.signal).name
        except ValueError:
            name = f"signal {self.signal}"
        return f"was killed by {name}"


@dataclass(frozen=True)
class Caller:
    """The user the target runs as: the one who called sudo, else ourselves."""

    uid: int
    gid: int
    name: str | None

    @classmethod
    def current(cls) -> Caller | None:
        """The caller behind sudo, or None when there is nobody to step down to."""
        uid = os.environ.get("SUDO_UID")
        if os.geteuid() != 0 or uid is None or not uid.isdigit() or int(uid) == 0:
            return None
        gid = os.environ.get("SUDO_GID", uid)
        try:
            name = pwd.getpwuid(int(uid)).pw_name
        except KeyError:
            name = None
        return cls(int(uid), int(gid) if gid.isdigit() else int(uid), name)

    def become(self) -> None:
        """Drop root for good, supplementary groups included."""
        if self.name is not None:
            os.initgroups(self.name, self.gid)
        else:
            os.setgroups([])
        os.setgid(self.gid)
        os.setuid(self.uid)


class LaunchedTarget:
    """A forked child that waits at a gate before it calls exec.

    The child exists (and has its pid) before the probes do, so that probes can be attached to
    that pid, and no instruction of the target runs unobserved. If we die, the gate's pipe closes
    and the child ends without exec.
    """

    def __init__(self, argv: list[str], *, caller: Caller | None = None) -> None:
        self.argv = argv
        gate_read, self._gate = os.pipe()
        self._errno_read, errno_write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._gate)
            os.close(self._errno_read)
            _child(argv, gate_read, errno_write, caller)
        os.close(gate_read)
        os.close(errno_write)
        self._pidfd = os.pidfd_open(self.pid)
        self._status: ExitStatus | None = None
        self._released = False

    def release(self) -> None:
        """Open the gate; returns when exec has happened.

        Raises:
            TargetError: exec failed; the message names the reason.
        """
        self._released = True
        os.write(self._gate, b"g")
        os.close(self._gate)
        failure = os.read(self._errno_read, _ERRNO_BYTES)
        os.close(self._errno_read)
        if failure:
            self.wait()
            number = int.from_bytes(failure, "little")
            raise TargetError(
                f"cannot run {self.argv[0]}: {os.strerror(number)}",
                hint="check the path and that it is executable",
                exit_code=126 if number == 13 else 127,
            )

    def poll(self, timeout_s: float) -> ExitStatus | None:
        """Wait up to ``timeout_s`` for the end; None while the target runs."""
        if self._status is None:
            with contextlib.suppress(InterruptedError):
                select.select([self._pidfd], [], [], timeout_s)
            pid, raw = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self._status = _status(raw)
        return self._status

    def wait(self) -> ExitStatus:
        """Block until the target has ended."""
        while self._status is None:
            self.poll(1.0)
        return self._status

    def kill(self) -> None:
        """End a target that is still held or running."""
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def __enter__(self) -> LaunchedTarget:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        # A target that was never let go must not linger; one that runs is left to its user.
        if not self._released:
            self.kill()
        os.close(self._pidfd)


def _status(raw: int) -> ExitStatus:
    if os.WIFSIGNALED(raw):
        return ExitStatus(None, os.WTERMSIG(raw))
    return ExitStatus(os.WEXITSTATUS(raw), None)


def _child(argv: list[str], gate_read: int, errno_write: int, caller: Caller | None) -> None:
    """Runs in the child only; never returns."""
    try:
        # The terminal's Ctrl-C must reach the target as if we were not there.
        unblock_for_child()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        if os.read(gate_read, 1) != b"g":
            os._exit(125)  # the recorder died before the gate opened
        os.close(gate_read)
        if caller is not None:
            caller.become()
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(errno_write, (error.errno or 1).to_bytes(_ERRNO_BYTES, "little"))
    finally:
        os._exit(127)
