"""Layer 4: page faults and disk reads of one process: which layouts they need, attached, removed.

Faults are perf's software events on the process's own threads, which every kernel has; reads are a
raw tracepoint whose structs are found in the kernel's BTF. Neither needs tracefs. What the kernel
refuses is left out, and the trace says why.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import struct
from pathlib import Path
from typing import Any

from profinfer.capture.btf import Btf, BtfError, running_kernel
from profinfer.capture.host import sees_kernel_pids
from profinfer.capture.kernelcall import (
    PERF_ATTR_BYTES,
    PERF_ENABLE,
    PERF_FLAG_FD_CLOEXEC,
    PERF_SET_BPF,
    perf_event_open,
)
from profinfer.capture.program import Program
from profinfer.errors import ProfinferError
from profinfer.tracefile.schema import FAULT

# Function -> PERF_COUNT_SW_*: the end is opened last, so that it never lacks its begin.
_EVENTS = {"pf_fault_begin": 2, "pf_fault_minor": 5, "pf_fault_major": 6}
_SOFTWARE = 1  # PERF_TYPE_SOFTWARE
_SAMPLE_ADDR = 8
_DISABLED, _INHERIT, _ENABLE_ON_EXEC, _INHERIT_THREAD = 1 << 0, 1 << 1, 1 << 12, 1 << 35
# struct bpf_perf_event_data: the registers, a sample period, the address. Registers are struct
# pt_regs (21 words) and struct user_pt_regs (34).
_ADDRESS_AT = {"x86_64": 21 * 8 + 8, "aarch64": 34 * 8 + 8}
# Length and content of a run in bpf/memory.bpf.c: a FAULT record and 16 bytes more.
_RUN_COUNT_AT = 32


def read_layout(btf: Btf | None = None) -> dict[str, int]:
    """``-D`` definitions of ``bpf/memory.bpf.c`` for reads.

    Args:
        btf: a kernel's types; None for the running one's.

    Raises:
        BtfError: the kernel does not say, or says something unknown.
    """
    btf = btf or running_kernel()
    # The first argument is the tracepoint's own data, which a BPF program is not given.
    args = btf.arguments("btf_trace_block_bio_queue")[1:]
    if "bio *" not in args:
        raise BtfError(f"block_bio_queue has arguments that are not known here: {', '.join(args)}")
    bio, vec, page = btf.fields("bio"), btf.fields("bio_vec"), btf.fields("page")
    inode = btf.fields("inode")
    try:
        index = next(page[name] for name in ("index", "__folio_index") if name in page)
        return {
            "PF_BIO_ARG": args.index("bio *"),
            "PF_BIO_OPF": bio["bi_opf"],
            "PF_BIO_FLAGS": bio["bi_flags"],
            "PF_BIO_SIZE": bio["bi_iter"] + btf.fields("bvec_iter")["bi_size"],
            "PF_BIO_VEC": bio["bi_io_vec"],
            "PF_VEC_PAGE": vec["bv_page"],
            "PF_VEC_OFFSET": vec["bv_offset"],
            "PF_PAGE_MAPPING": page["mapping"],
            "PF_PAGE_INDEX": index,
            "PF_MAPPING_HOST": btf.fields("address_space")["host"],
            "PF_INODE_INO": inode["i_ino"],
            "PF_INODE_SB": inode["i_sb"],
            "PF_SB_DEV": btf.fields("super_block")["s_dev"],
            "PF_KERNEL_PAGE": os.sysconf("SC_PAGE_SIZE"),
        }
    except (KeyError, StopIteration) as missing:
        raise BtfError(f"the kernel's types have no field {missing}") from missing


class Memory:
    """Faults and reads of one process.

    Args:
        wanted: False for a recording without them.

    Attributes:
        definitions: for the source, None to leave the fragment out.
        why: why there are no faults, None if there are.
        why_no_reads: the same of reads.
    """

    def __init__(self, wanted: bool) -> None:
        self.definitions: dict[str, int] | None = None
        self.why: str | None = None if wanted else "--no-faults"
        self.why_no_reads = self.why
        self._fds: list[int] = []
        if not wanted:
            return
        at = _ADDRESS_AT.get(platform.machine())
        if at is None:
            self.why = self.why_no_reads = f"not known for {platform.machine()}"
            return
        self.definitions = {"PF_FAULT_ADDR": at}
        try:
            self.definitions |= read_layout()
        except BtfError as error:
            self.why_no_reads = str(error)

    def attach(self, program: Program, pid: int) -> None:
        """Record from now on, unless recording is paused."""
        if self.definitions is None:
            return
        if sees_kernel_pids():
            program.set_array("read_target", 0, pid)
        try:
            self._attach_faults(program, pid)
        except (ProfinferError, OSError) as error:
            self.detach()
            self.why = self.why_no_reads = f"the kernel refused page fault events: {error}"
            self.definitions = None
            return
        if self.why_no_reads is None:
            try:
                self._fds.append(program.open_raw_tracepoint("block_bio_queue", "pf_bio_queue"))
            except (ProfinferError, OSError) as error:
                self.why_no_reads = f"the kernel refused block_bio_queue: {error}"

    def _attach_faults(self, program: Program, pid: int) -> None:
        # Of a child that waits to become the target, only what comes after its exec.
        held = _command_line(pid) == _command_line(os.getpid())
        functions = {name: program.load_perf_event(name) for name in _EVENTS}
        seen: set[int] = set()
        # Threads made meanwhile by one that has its events inherit them; the others are seen here.
        while new := _threads(pid) - seen:
            for tid in sorted(new):
                for name, config in _EVENTS.items():
                    try:
                        fd = _software_event(config, tid, _ENABLE_ON_EXEC if held else 0)
                    except OSError as error:
                        if error.errno == errno.ESRCH:
                            break  # it has ended
                        raise
                    self._fds.append(fd)
                    fcntl.ioctl(fd, PERF_SET_BPF, functions[name])
                    if not held:
                        fcntl.ioctl(fd, PERF_ENABLE, 0)
            seen |= new

    def detach(self) -> None:
        """Remove what is attached."""
        while self._fds:
            os.close(self._fds.pop())

    def to_json(self) -> dict[str, Any]:
        """For the trace's metadata."""
        reads = {"recorded": self.why_no_reads is None, "why": self.why_no_reads}
        return {"recorded": self.why is None, "why": self.why, "reads": reads}


def open_runs(runs: list[bytes]) -> tuple[list[bytes], list[int]]:
    """Ring entries of runs of faults that no thread has handed over, and their places.

    Args:
        runs: values of the map ``fault_runs``.
    """
    entries, places = [], []
    for place, run in enumerate(runs):
        if struct.unpack_from("<I", run, _RUN_COUNT_AT)[0]:
            record = run[: FAULT.itemsize]
            entries.append(struct.pack("<II", len(record), 0) + record)
            places.append(place)
    return entries, places


def _threads(pid: int) -> set[int]:
    try:
        return {int(name) for name in os.listdir(Path(f"/proc/{pid}/task"))}
    except FileNotFoundError:
        return set()


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _software_event(config: int, tid: int, flags: int) -> int:
    """One event of one thread and of those that it makes, not enabled yet."""
    for inherit in (_INHERIT | _INHERIT_THREAD, _INHERIT):  # Linux 5.13; before, children come too
        fields = (
            _SOFTWARE,
            PERF_ATTR_BYTES,
            config,
            1,
            _SAMPLE_ADDR,
            0,
            _DISABLED | flags | inherit,
        )
        attr = struct.pack("=IIQQQQQ", *fields).ljust(PERF_ATTR_BYTES, b"\0")
        buffer = ctypes.create_string_buffer(attr, len(attr))
        try:
            return perf_event_open(buffer, tid, -1, PERF_FLAG_FD_CLOEXEC)
        except OSError as error:
            if error.errno != errno.EINVAL or not inherit & _INHERIT_THREAD:
                raise
    raise AssertionError
