"""Layer 4: a recording in a process of its own, which hands its last seconds out when asked.

The recorder must not wait for whoever looks: it is another process, and its answer is a copy. The
two speak over a socket, a JSON line each way; a snapshot lies in a memory file that both have open.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from profinfer.capture.readings import Reading
from profinfer.capture.rolling import RollingTrace
from profinfer.capture.signals import end_with
from profinfer.errors import ProfinferError, TargetError
from profinfer.tracefile.metadata import TraceMetadata


@dataclass
class LivePort:
    """The recorder's side: a window instead of a file, and answers between two looks at the ring.

    Attributes:
        window_s: what is kept.
        answer: the recorder's end of the socket.
        files: two memory files, used in turn.
        trace: the window, when the recording has begun.
    """

    window_s: float
    answer: socket.socket
    files: tuple[int, int]
    trace: RollingTrace | None = None
    _turn: int = field(default=0)

    def open(self, metadata: TraceMetadata) -> RollingTrace:
        """What the recording writes to."""
        self.trace = RollingTrace(metadata, self.window_s)
        return self.trace

    def serve(self, counters: Callable[[], list[int]] | None, facts: dict[str, Any]) -> None:
        """Answer if somebody has asked. To be called often.

        Args:
            counters: reads those of the BPF program; None without probes.
            facts: what else the recording knows.
        """
        try:
            if not self.answer.recv(64, socket.MSG_DONTWAIT):
                # Nobody looks any more: end as after a Ctrl-C, but not as a surprise to the target.
                os.kill(os.getpid(), signal.SIGTERM)
                return
        except BlockingIOError:
            return
        assert self.trace is not None
        told: dict[str, Any] = {"ts": time.clock_gettime_ns(time.CLOCK_MONOTONIC), **facts}
        if counters is not None:
            values = counters()
            data = self.trace.snapshot(values)
            self._turn ^= 1
            file = self.files[self._turn]
            os.ftruncate(file, 0)
            os.pwrite(file, data, 0)
            told |= {"counters": values, "file": self._turn, "size": len(data)}
            told["open_ns"] = min(self.trace.open_calls.values(), default=None)
        told["cpu_s"] = time.process_time()
        self._send(told)

    def _send(self, told: dict[str, Any]) -> None:
        with contextlib.suppress(OSError):
            self.answer.sendall(json.dumps(told).encode() + b"\n")

    def ended(self, told: dict[str, Any]) -> None:
        """The last line."""
        self._send({"end": told})


class LiveRecorder:
    """The looker's side: starts the recorder and asks it.

    Args:
        record: runs the recording with the port, and returns what there is to say at its end.
        window_s: what is kept.
        output: where a launched target's own output goes; None leaves it where it goes.
    """

    def __init__(
        self,
        record: Callable[[LivePort], dict[str, Any]],
        window_s: float,
        output: Path | None,
    ) -> None:
        ours, theirs = socket.socketpair()
        self._files = (os.memfd_create("profinfer-0"), os.memfd_create("profinfer-1"))
        self._buffer = b""
        self._socket = ours
        self.end: dict[str, Any] | None = None
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            _record(record, LivePort(window_s, theirs, self._files), output, parent)
        theirs.close()

    def fileno(self) -> int:
        """Readable when the recorder has said something."""
        return self._socket.fileno()

    def ask(self) -> None:
        """Ask for a snapshot; the answer comes with ``take``."""
        with contextlib.suppress(OSError):
            self._socket.sendall(b"?")

    def take(self, timeout_s: float) -> dict[str, Any] | None:
        """What the recorder said last, None if nothing until then; sets ``end`` at the end.

        Raises:
            ProfinferError: the recording could not be set up.
        """
        until = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            self._socket.settimeout(max(until - time.monotonic(), 0.001))
            try:
                more = self._socket.recv(1 << 16)
            except TimeoutError:
                return None
            if not more:
                self.end = self.end or {}
                return None
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        told: dict[str, Any] = json.loads(line)
        if "end" in told:
            self.end = told["end"]
            if failed := told["end"].get("error"):
                raise TargetError(failed["message"], failed["hint"], exit_code=failed["code"])
            return None
        return told

    def snapshot(self, told: dict[str, Any]) -> Path | None:
        """The trace that an answer speaks of; good until the answer after the next."""
        return Path(f"/proc/self/fd/{self._files[told['file']]}") if "file" in told else None

    def stop(self, number: int = signal.SIGINT) -> None:
        """Ask the recorder to end: a process that ran before goes on, one that it started ends."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self) -> None:
        """Until the recorder has ended."""
        while self.end is None:
            if self.take(1.0) is None and self.end is None:
                with contextlib.suppress(ChildProcessError):
                    if os.waitpid(self.pid, os.WNOHANG)[0]:
                        return
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _record(
    record: Callable[[LivePort], dict[str, Any]],
    port: LivePort,
    output: Path | None,
    parent: int,
) -> None:
    """Runs in the recorder only; never returns."""
    status = 0
    try:
        # The terminal's keys are for the one who looks, and so is the screen.
        os.setsid()
        end_with(parent, signal.SIGTERM)
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        kept = null
        if output is not None:
            kept = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        os.dup2(kept, 1)
        os.dup2(kept, 2)
        port.ended(record(port))
    except ProfinferError as error:
        failed = {"message": error.message, "hint": error.hint, "code": error.exit_code}
        port.ended({"error": failed})
    except BaseException as error:
        text = f"internal error of the recorder: {type(error).__name__}: {error}"
        port.ended({"error": {"message": text, "hint": None, "code": 70}})
        status = 70
    finally:
        os._exit(status)


def reading(told: dict[str, Any]) -> Reading:
    """The counters of an answer."""
    return Reading.of(told["counters"]) if "counters" in told else Reading()
