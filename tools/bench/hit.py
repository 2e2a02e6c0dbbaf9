"""What one operator hit costs, part by part: the micro benchmark behind docs/overhead.md.

    python -m tools.bench.hit [--repeats 5] [--json FILE]

Every variant is the project's own program with one thing changed, attached to the loop of
``probe_loop.c``. Variants run in turn, several times; a variant's cost is its best round, which
met nobody else on the CPU. Needs root.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from profinfer.capture.drain import RingReader
from profinfer.capture.program import Program
from profinfer.capture.source import bpf_folder, headers_folder
from profinfer.capture.uprobes import AttachPoint, Method
from profinfer.elf.symbols import ElfImage

HERE = Path(__file__).parent
OPS = 430  # operators of a SmolLM2-135M token
ROUNDS = 300
RING = 16 << 20
_STATS = Path("/proc/sys/kernel/bpf_stats_enabled")

_OPS_HANDLERS = """
int h_end(struct pt_regs *ctx)
{ return pf_loop_barrier(ctx, (u32)ctx->r12, (u64)ctx->bp); }
int h_enter(struct pt_regs *ctx) { return pf_loop_enter(ctx); }
int h_leave(struct pt_regs *ctx) { return pf_loop_leave(ctx); }
"""
_KEEP = 'asm volatile("" : : "r"(v)); return 0; }'


def _only(body: str) -> str:
    return f"int h_end(struct pt_regs *ctx) {{ {body} {_KEEP}\n"


@dataclass(frozen=True)
class Variant:
    """One thing to measure.

    Attributes:
        what: printed.
        handlers: C text of the handlers; ``h_end`` is at the loop's call.
        changes: (old, new) in the project's C.
        multi: attached by one uprobe-multi link instead of one perf event a probe.
        place: symbol of the probed instruction.
        defines: further definitions.
    """

    what: str
    handlers: str = _OPS_HANDLERS
    changes: tuple[tuple[str, str], ...] = ()
    multi: bool = False
    place: str = "bench_call"
    defines: tuple[str, ...] = ()


_STORE = "BPF_ARRAY(slots, struct pf_slot, PF_MAX_THREADS);"
_FIND = "    struct pf_slot *s = pf_slot_at(tid, 0);\n    if (s && s->head.h.tid == tid)\n"
_MAKE = "    s->head.h.tid = tid; /* from now on it is found */\n"


def _hash(declaration: str) -> tuple[tuple[str, str], ...]:
    """Slots in a hash by tid; the array stays for the zeros a new slot begins with."""
    return (
        (_STORE, f"{_STORE}\n{declaration}"),
        (_FIND, "    struct pf_slot *s = by_tid.lookup(&tid);\n    if (s)\n"),
        (
            _MAKE,
            _MAKE + "    by_tid.update(&tid, s);\n    s = by_tid.lookup(&tid);\n"
            "    if (!s)\n        return 0;\n",
        ),
    )


_HASH = _hash("BPF_HASH(by_tid, u32, struct pf_slot, PF_MAX_THREADS);")
_GRAPH = (
    "    if (s->head.cgraph != cgraph) {\n"
    "        if (s->head.cgraph)\n            pf_flush(s, 0);\n"
    "        s->head.cgraph = cgraph;\n    }\n"
)

VARIANTS = {
    "trap": Variant("empty handler: the trap alone", _only("u64 v = 0;")),
    "trap-multi": Variant("empty handler, uprobe-multi link", _only("u64 v = 0;"), multi=True),
    "nop5": Variant("empty handler on a 5-byte nop", _only("u64 v = 0;"), place="bench_nop5"),
    "nop5-multi": Variant(
        "empty handler on a 5-byte nop, multi", _only("u64 v = 0;"), multi=True, place="bench_nop5"
    ),
    "ktime": Variant("+ bpf_ktime_get_ns", _only("u64 v = bpf_ktime_get_ns();")),
    "coarse": Variant(
        "+ bpf_ktime_get_boot_ns (instead)", _only("u64 v = bpf_ktime_get_boot_ns();")
    ),
    "tid": Variant("+ current pid_tgid", _only("u64 v = bpf_get_current_pid_tgid();")),
    "slot": Variant("+ tid and its slot", _only("u64 v = (u64)pf_slot_get();")),
    "slot-hash": Variant(
        "+ tid and its slot in a hash", _only("u64 v = (u64)pf_slot_get();"), _HASH
    ),
    "full": Variant("the project's handler"),
    "wide": Variant("records of 8 bytes instead of 4", defines=("-DPF_OPS_WIDE",)),
    "full-multi": Variant("the project's handler, uprobe-multi link", multi=True),
    "batch256": Variant(
        "batches of 256",
        changes=(("PF_OPS_PER_BATCH 512", "PF_OPS_PER_BATCH 256"),),
    ),
    "batch2048": Variant(
        "batches of 2048",
        changes=(("PF_OPS_PER_BATCH 512", "PF_OPS_PER_BATCH 2048"),),
    ),
    "hash": Variant("slots in a hash by tid", changes=_HASH),
    "lru": Variant(
        "slots in an LRU hash",
        changes=_hash('BPF_TABLE("lru_hash", u32, struct pf_slot, by_tid, 1024);'),
    ),
    "no-prealloc": Variant(
        "slots in a hash without preallocation",
        changes=_hash('BPF_F_TABLE("hash", u32, struct pf_slot, by_tid, 1024, 1);'),
    ),
    "no-graph": Variant("no compare of cgraph", changes=((_GRAPH, ""),)),
    "per-event": Variant(
        "one ring entry an operator, no batch",
        "int h_end(struct pt_regs *ctx) { pf_end(PF_SAMPLE_BEGIN, (u32)ctx->r12, 0); return 0; }\n",
    ),
}


def program_text(variant: Variant) -> str:
    """The project's C with the variant's changes.

    Raises:
        ValueError: a text to be changed is not there any more.
    """
    folder = bpf_folder()
    text = "".join(
        (folder / name).read_text()
        for name in ("events.h", "prelude.bpf.c", "gate.bpf.c", "filter.bpf.c", "ops.bpf.c")
    )
    for old, new in variant.changes:
        if old not in text:
            raise ValueError(f"the BPF program has changed; not found: {old}")
        text = text.replace(old, new)
    return "#include <linux/ptrace.h>\n" + text + variant.handlers


class Loop:
    """The running ``probe_loop``."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "probe_loop"
        subprocess.run(
            ["cc", "-O2", "-pthread", "-o", self.path, HERE / "probe_loop.c"], check=True
        )
        self._process = subprocess.Popen(
            [self.path, str(OPS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.pid = self._process.pid
        image = ElfImage(self.path)
        self.offsets = {
            name: image.file_offset(image.functions[name].address)
            for name in ("bench_call", "bench_nop5", "bench_enter", "bench_leave")
        }

    def run(self, threads: int) -> tuple[float, float]:
        """Best and median ns a call."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{ROUNDS} {threads}\n")
        self._process.stdin.flush()
        best, median = self._process.stdout.readline().split()
        return float(best), float(median)

    def close(self) -> None:
        """End it."""
        self._process.communicate()


@contextmanager
def attached(variant: Variant, loop: Loop) -> Iterator[Program]:
    """The variant in force."""
    program = Program(
        program_text(variant),
        [f"-DPF_RING_PAGES={RING // 4096}", "-DPF_MAX_THREADS=1024", *variant.defines],
        headers=headers_folder(),
        pid=loop.pid,
        method=Method.MULTI if variant.multi else Method.PERF,
    )
    points = {"h_end": variant.place}
    if "h_enter" in variant.handlers:
        points |= {"h_enter": "bench_enter", "h_leave": "bench_leave"}
    group = program.group(
        AttachPoint(handler, str(loop.path), loop.offsets[place], False)
        for handler, place in points.items()
    )
    try:
        group.attach()
        yield program
        group.detach()
    finally:
        program.release()


def _run_stats(program: Program) -> tuple[int, int]:
    fd = program.load("h_end")
    fields = dict(
        line.split(":\t", 1)
        for line in Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
        if ":\t" in line
    )
    return int(fields["run_time_ns"]), int(fields["run_cnt"])


def measure(variant: Variant, loop: Loop, threads: int) -> dict[str, float]:
    """Cost of one hit in ns: best and median round, and the BPF program's own share."""
    with attached(variant, loop) as program:
        ring = RingReader(program.ring_fd("ring"), RING)
        loop.run(threads)
        ring.drain(lambda data, tensors: None)
        best, median = loop.run(threads)
        ring.drain(lambda data, tensors: None)
        before = _STATS.read_text()
        _STATS.write_text("1")
        try:
            t0, n0 = _run_stats(program)
            loop.run(threads)
            t1, n1 = _run_stats(program)
        finally:
            _STATS.write_text(before)
        ring.close()
    return {"best": best, "median": median, "bpf": (t1 - t0) / max(1, n1 - n0)}


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", default="", help="variants, separated by commas")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    names = args.only.split(",") if args.only else list(VARIANTS)
    results: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        loop = Loop(Path(folder))
        untouched = loop.run(args.threads)[0]
        for _ in range(args.repeats):
            for name in names:
                try:
                    results[name].append(measure(VARIANTS[name], loop, args.threads))
                except Exception as error:
                    print(f"{name}: {error}", file=sys.stderr)
        loop.close()
    print(f"load {os.getloadavg()[0]:.2f}, {args.threads} threads; without a probe {untouched:.1f}")
    print(f"{'ns a hit':12} {'best':>6} {'median':>7} {'in BPF':>7}")
    for name, rows in results.items():
        if rows:
            best, median, bpf = (min(row[key] for row in rows) for key in ("best", "median", "bpf"))
            print(f"{name:12} {best:6.0f} {median:7.0f} {bpf:7.0f}  {VARIANTS[name].what}")
    if args.json:
        args.json.write_text(json.dumps({"load": os.getloadavg(), "hits": results}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
