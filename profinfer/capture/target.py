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

from profinfer.capture.signals import at_parents_end, unblock_for_child
from profinfer.errors import TargetError

_ERRNO_BYTES = 4


@dataclass(frozen=True)
class ExitStatus:
    """How a process ended; both are None for a process that is not our child."""

    code: int | None
    signal: int | None

    @property
    def as_exit_code(self) -> int:
        """The shell's convention: 128 + signal for a killed process."""
        if self.signal is not None:
            return 128 + self.signal
        return self.code or 0

    @property
    def text(self) -> str:
        """``exited with 0``, ``was killed by SIGSEGV``, ``ended``."""
        if self.signal is None:
            return "ended" if self.code is None else f"exited with {self.code}"
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
        self._stopped = False
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

    def check(self) -> ExitStatus | None:
        """How the target ended, None while it runs; notices stops on the way."""
        if self._status is None:
            pid, raw = os.waitpid(self.pid, os.WNOHANG | os.WUNTRACED)
            if pid and os.WIFSTOPPED(raw):
                self._stopped = True
            elif pid:
                self._status = _status(raw)
        return self._status

    def take_stop(self) -> bool:
        """True once for each time the target was seen to stop."""
        stopped, self._stopped = self._stopped, False
        return stopped

    def resume(self) -> None:
        """Let a stopped target go on."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)

    def wait(self) -> ExitStatus:
        """Block until the target has ended."""
        while self.check() is None:
            select.select([self._pidfd], [], [], 1.0)
        assert self._status is not None
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


class RunningTarget:
    """A process of somebody else's: looked at, never stopped or signalled.

    Raises:
        TargetError: there is no such process.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            self._pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            raise TargetError(f"there is no process {pid}", "ps -e | grep llama") from None
        except OSError as error:
            raise TargetError(f"process {pid} cannot be watched: {error.strerror}") from None

    def check(self) -> ExitStatus | None:
        """Its end, None while it runs. How it ended only its parent knows."""
        ended = select.select([self._pidfd], [], [], 0)[0]
        return ExitStatus(None, None) if ended else None

    def __enter__(self) -> RunningTarget:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
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
        # If the recorder dies while the target has stopped itself for it, somebody must wake it.
        at_parents_end(signal.SIGCONT)
        os.execvp(argv[0], argv)
    except OSError as error:
        os.write(errno_write, (error.errno or 1).to_bytes(_ERRNO_BYTES, "little"))
    finally:
        os._exit(127)
