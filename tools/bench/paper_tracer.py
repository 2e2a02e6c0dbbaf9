"""A tracer in the manner of the ProfInfer paper, to be measured beside profinfer.

    python tools/bench/paper_tracer.py LIBRARY FUNCTION COMMAND...

A uprobe and a uretprobe at the operator function's entry; each sends an event with time, thread
and tensor to a ring buffer; a Python callback takes every one. It keeps them in a list and prints
their number on stderr.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from profinfer.capture.source import headers_folder
from profinfer.elf.symbols import ElfImage

os.environ["BCC_KERNEL_SOURCE"] = str(headers_folder())

import bcc

TEXT = """
#include <linux/ptrace.h>
struct event { u64 ts, tensor; u32 tid, kind; };
BPF_RINGBUF_OUTPUT(ring, 4096);
static inline int send(u32 kind, u64 tensor)
{
    struct event e = {};
    e.ts = bpf_ktime_get_ns();
    e.tensor = tensor;
    e.tid = bpf_get_current_pid_tgid();
    e.kind = kind;
    ring.ringbuf_output(&e, sizeof(e), 0);
    return 0;
}
int on_entry(struct pt_regs *ctx) { return send(0, PT_REGS_PARM2(ctx)); }
int on_return(struct pt_regs *ctx) { return send(1, 0); }
"""


def main() -> int:
    """Command line."""
    library, function, *command = sys.argv[1:]
    image = ElfImage(library)
    found = image.function(function)
    if found is None:
        print(f"{function} is not in {library}", file=sys.stderr)
        return 3
    gate, opener = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(opener)
        os.read(gate, 1)
        os.execvp(command[0], command)
    bpf = bcc.BPF(text=TEXT)
    offset = image.file_offset(found.address)
    path = str(Path(library).resolve())
    for is_return, handler in enumerate((b"on_entry", b"on_return")):
        loaded = bpf.load_func(handler, bcc.BPF.KPROBE)
        # bcc's own attach_uprobe wants tracefs, and forgets the last argument.
        where = (b"paper", os.fsencode(path), offset, child, ctypes.c_uint(0))
        if bcc.lib.bpf_attach_uprobe(loaded.fd, is_return, *where) < 0:
            print("the kernel refused a uprobe", file=sys.stderr)
            return 3
    events: list[tuple[int, int, int, int]] = []

    def take(_context: object, data: object, _size: int) -> None:
        event = bpf["ring"].event(data)
        events.append((event.ts, event.tensor, event.tid, event.kind))

    bpf["ring"].open_ring_buffer(take)
    os.write(opener, b"x")
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        bpf.ring_buffer_poll(10)
    bpf.ring_buffer_consume()
    print(f"events {len(events)}", file=sys.stderr)
    sys.stdout.flush()
    os._exit(0)  # bcc's own clean-up wants tracefs


if __name__ == "__main__":
    sys.exit(main())
