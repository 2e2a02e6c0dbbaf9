"""Layer 4: how the running kernel spells what a thread that left its CPU is doing.

The numbers are those of include/linux/sched.h and __task_state_index() there, which profinfer
copies into the trace, so that no reader has to know kernels.
"""

from __future__ import annotations

import re

# Masks in the order in which they are tried; all bits of one must be set. Since Linux 4.14.
_IDLE = (0x402, "I")  # uninterruptible, but not counted as load: kernel threads
_REPORT = (
    (0x80, "X"),  # do_task_dead(): the last time it leaves
    (0x40, "P"),
    (0x20, "Z"),
    (0x10, "X"),
    (0x08, "t"),
    (0x04, "T"),
    (0x02, "D"),
    (0x01, "S"),
)
# What a newer kernel says for a lock of a real-time kernel and for a frozen task; both are shown
# as uninterruptible, by the kernel as well.
_RTLOCK_WAIT, _FROZEN = (0x1000, "D"), (0x8000, "D")


def state_rules(release: str) -> tuple[tuple[int, str], ...]:
    """Rules (mask, letter) of a kernel, to be tried in order; 0 is runnable.

    Args:
        release: as in ``uname -r``; what cannot be read as a version counts as new.
    """
    found = re.match(r"(\d+)\.(\d+)", release)
    version = (int(found[1]), int(found[2])) if found else (99, 0)
    later = [_RTLOCK_WAIT] * (version >= (5, 15)) + [_FROZEN] * (version >= (6, 1))
    return (_IDLE, *later, *_REPORT)
