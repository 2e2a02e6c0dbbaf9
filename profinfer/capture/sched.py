"""Layer 4: the scheduler's events of one process: which layouts they need, attached, removed.

Raw tracepoints, which need neither tracefs nor kernel headers. Offsets come from the kernel's BTF;
without it, or where the kernel refuses, a recording goes on without thread states and says why.
"""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from typing import Any

from profinfer.capture.btf import Btf, BtfError, running_kernel
from profinfer.capture.host import sees_kernel_pids
from profinfer.capture.program import Program
from profinfer.capture.taskstates import state_rules
from profinfer.errors import ProfinferError

_TRACEPOINTS = ("sched_switch", "sched_wakeup", "sched_wakeup_new")


@dataclass(frozen=True)
class SchedLayout:
    """What the BPF program must know of this kernel.

    Attributes:
        definitions: ``-D`` names and numbers of ``bpf/sched.bpf.c``.
        state_from: where a thread's state is read.
        evidence: where the layout is from.
    """

    definitions: dict[str, int]
    state_from: str
    evidence: str


def sched_layout(btf: Btf | None = None) -> SchedLayout:
    """Find out where this kernel keeps what the scheduler's events need.

    Args:
        btf: a kernel's types; None for the running one's.

    Raises:
        BtfError: the kernel does not say, or says something unknown.
    """
    btf = btf or running_kernel()
    task = btf.fields("task_struct")
    missing = [name for name in ("pid", "tgid", "prio", "comm") if name not in task]
    if missing:
        raise BtfError(f"the kernel's task_struct has no {missing[0]}")
    values = {f"PF_TASK_{name.upper()}": task[name] for name in ("pid", "tgid", "prio", "comm")}
    if "flags" in task:  # tells the kernel's own threads
        values["PF_TASK_FLAGS"] = task["flags"]
    # The first argument is the tracepoint's own data, which a BPF program is not given.
    args = btf.arguments("btf_trace_sched_switch")[1:]
    tasks = [i for i, kind in enumerate(args) if kind == "task_struct *"]
    numbers = [i for i, kind in enumerate(args) if kind == "unsigned int"]
    if len(tasks) != 2 or args[:1] != ["bool"] or len(numbers) > 1:
        raise BtfError(f"sched_switch has arguments that are not known here: {', '.join(args)}")
    values |= {"PF_SCHED_PREV_ARG": tasks[0], "PF_SCHED_NEXT_ARG": tasks[1]}
    if numbers:  # Linux 5.18: read before the tracepoint, and so not changed by a wake-up since
        values["PF_SCHED_STATE_ARG"] = numbers[0]
        state_from = f"argument {numbers[0]} of sched_switch"
    else:
        field = next((name for name in ("__state", "state") if name in task), None)
        if field is None:
            raise BtfError("the kernel's task_struct has no state")
        values["PF_TASK_STATE"] = task[field]
        state_from = f"task_struct.{field} at {task[field]}"
    return SchedLayout(values, state_from, "BTF of the running kernel")


class Scheduler:
    """The scheduler's events of one process.

    Args:
        layout: of this kernel, None when thread states are not recorded.
        why: why not.
    """

    def __init__(self, layout: SchedLayout | None, why: str | None) -> None:
        self.layout = layout
        self.why = why
        self._fds: list[int] = []

    @classmethod
    def wanted(cls, wanted: bool) -> Scheduler:
        """Look at the kernel; ``wanted`` is False for a recording without thread states."""
        if not wanted:
            return cls(None, "--no-sched")
        try:
            return cls(sched_layout(), None)
        except BtfError as error:
            return cls(None, str(error))

    @property
    def definitions(self) -> dict[str, int] | None:
        """``-D`` definitions for the source, None to leave the fragment out."""
        return self.layout.definitions if self.layout else None

    def attach(self, program: Program, pid: int) -> None:
        """Record the threads of a process from now on, unless recording is paused."""
        if self.layout is None:
            return
        if sees_kernel_pids():
            program.set_array("sched_target", 0, pid)
        # Elsewhere pids have other numbers for the kernel: a probe of the target tells it.
        try:
            for name in _TRACEPOINTS:
                self._fds.append(program.open_raw_tracepoint(name, f"pf_{name}"))
        except (ProfinferError, OSError) as error:
            self.detach()
            self.layout = None
            self.why = f"the kernel refused the scheduler's events: {error}"

    def detach(self) -> None:
        """Remove what is attached; takes no time to speak of."""
        while self._fds:
            os.close(self._fds.pop())

    def to_json(self) -> dict[str, Any]:
        """For the trace's metadata."""
        if self.layout is None:
            return {"recorded": False, "why": self.why}
        return {
            "recorded": True,
            "evidence": self.layout.evidence,
            "state_from": self.layout.state_from,
            "states": state_rules(platform.release()),
            "recorder": os.getpid(),
        }
