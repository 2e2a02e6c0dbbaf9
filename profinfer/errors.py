"""Layer 0: the errors a user may see. Imports nothing of profinfer."""

from __future__ import annotations


class ProfinferError(Exception):
    """Something the user can act on: one clear line, and what to type next.

    Raised anywhere, printed in one place (``profinfer.cli``), never as a traceback.

    Attributes:
        message: what is wrong, one line.
        hint: what to do or type next, or None.
        exit_code: exit status of the process, never 0.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None, exit_code: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code


class TraceError(ProfinferError):
    """A trace file that cannot be read or written."""


class TargetError(ProfinferError):
    """The program to record cannot be found, started or probed."""


class EnvironmentProblem(ProfinferError):
    """The machine lacks something: root, BCC, a kernel feature."""


class UsageProblem(ProfinferError):
    """The command line asks for something impossible."""

    exit_code = 2
