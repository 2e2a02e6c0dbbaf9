"""``make bench``: what tracing costs, on real runs, with others' tracers beside it.

    python -m tools.bench [--quick] [--pairs N] [--json FILE] [--llama-bin DIR]

In every round llama-bench runs untraced, under profinfer at each level, and under the peers, one
after the other, each round beginning with another. Nothing passes or fails by time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from profinfer.model.trace import Trace
from tools.bench.analyses import analyses
from tools.bench.flood import flood
from tools.bench.model import models
from tools.bench.run import Run, measure
from tools.bench.stats import paired, summary
from tools.bench.written import written

LEVELS = ("token", "graph", "op")
PEERS = ("paper-style", "bpftrace")
FUNCTION = "ggml_cpu_extra_compute_forward"
TOKENS = {"SmolLM2-135M": (128, 96), "bench-1b": (32, 16)}  # prompt, generated
HERE = Path(__file__).parent


class Bench:
    """One model's runs.

    Args:
        binary: llama-bench.
        model: the GGUF file.
        tokens: prompt and generated tokens.
        threads: threads of the engine.
        folder: for traces.
    """

    def __init__(
        self, binary: Path, model: Path, tokens: tuple[int, int], threads: int, folder: Path
    ) -> None:
        self.binary, self.tokens, self.threads, self.folder = binary, tokens, threads, folder
        self.library = (binary.parent / "libggml-cpu.so").resolve()
        prompt, generated = tokens
        self.command = [str(binary), "-m", str(model), "-t", str(threads), "-r", "1"]
        self.command += ["-p", str(prompt), "-n", str(generated), "-o", "jsonl"]
        self.runs: dict[str, list[Run]] = {}
        self.skipped: dict[str, str] = {}

    def argv(self, way: str) -> list[str]:
        """The command of one way to run it."""
        if way in LEVELS:
            record = [sys.executable, "-m", "profinfer", "record", "-f", "--level", way]
            return [*record, "-o", str(self.trace(way)), "--", *self.command]
        if way == "paper-style":
            tracer = [sys.executable, str(HERE / "paper_tracer.py"), str(self.library), FUNCTION]
            return [*tracer, *self.command]
        if way == "bpftrace":
            probes = ", ".join(
                f"{kind}:{self.library}:{FUNCTION} {{ @[{n}] = count(); }}"
                for n, kind in enumerate(("uprobe", "uretprobe"))
            ).replace("}, ", "} ")
            return ["bpftrace", "-e", probes, "-c", " ".join(self.command)]
        return self.command

    def trace(self, level: str) -> Path:
        """Where a level's trace lies."""
        return self.folder / f"{level}.pf"

    def round(self, ways: Sequence[str]) -> None:
        """Run every way once."""
        for way in ways:
            if way in self.skipped:
                continue
            run = measure(self.argv(way), self.binary)
            if run.ok:
                self.runs.setdefault(way, []).append(run)
            elif way in PEERS:
                self.skipped[way] = run.stderr or "it printed no timing"
            else:
                raise SystemExit(f"{way} failed: {run.stderr}")

    def result(self) -> dict[str, Any]:
        """Everything measured, as JSON."""
        plain = self.runs["untraced"]
        ops = _ops_per_token(self.trace("op"), self.tokens[1], self.threads)
        out: dict[str, Any] = {
            "tokens": self.tokens, "threads": self.threads, "skipped": self.skipped,
            "decode_ops_per_token_and_thread": ops, "ways": {},
        }  # fmt: skip
        for way, runs in self.runs.items():
            entry: dict[str, Any] = {"runs": [asdict(run) for run in runs]}
            for phase in ("prefill_ns", "decode_ns"):
                entry[phase] = summary([getattr(run, phase) for run in runs])
                if way != "untraced":
                    entry[phase] |= paired(
                        [getattr(run, phase) for run in runs],
                        [getattr(run, phase) for run in plain[: len(runs)]],
                    )
            if way != "untraced":
                entry["us_per_op_and_thread"] = entry["decode_ns"]["delta"] / ops / 1e3
                entry["us_per_op_and_thread_best"] = entry["decode_ns"]["best_delta"] / ops / 1e3
            if way in LEVELS:
                entry["file"] = written(self.trace(way), runs[-1].seconds)
            out["ways"][way] = entry
        return out


def _ops_per_token(path: Path, tokens: int, threads: int) -> float:
    trace = Trace.open(path)
    decode = trace.graphs[trace.graphs["phase"] == "decode"]
    ops = trace.ops["graph_id"].isin(decode["graph_id"]).sum()
    counted = max(1, decode["call_id"].nunique())
    return float(ops) / counted / threads if ops else float("nan")


def show(name: str, result: dict[str, Any]) -> None:
    """Print one model's numbers."""
    ops, pairs = result["decode_ops_per_token_and_thread"], len(result["ways"]["untraced"]["runs"])
    print(f"\n{name}: {pairs} pairs, {result['threads']} threads, {ops:.0f} operators a token")
    print(f"{'':12} {'decode':>8} {'IQR':>5} {'prefill':>8}  {'decode cost, 95 % interval':>27}"
          f" {'best':>7} {'us/op':>6} {'best':>6} {'prefill':>8}")  # fmt: skip
    print(f"{'':12} {'tok/s':>8} {'%':>5} {'tok/s':>8}  {'% of the time a token':>27}"
          f" {'%':>7} {'':>6} {'':>6} {'%':>8}")  # fmt: skip
    for way, entry in result["ways"].items():
        decode, prefill = entry["decode_ns"], entry["prefill_ns"]
        line = (
            f"{way:12} {1e9 / decode['median']:8.1f} {100 * decode['iqr'] / decode['median']:5.1f}"
        )
        line += f" {1e9 / prefill['median']:8.1f}"
        if way != "untraced":
            cost, low, high = (100 * decode[key] for key in ("ratio", "low", "high"))
            span = f"{cost:7.2f} [{low:7.2f}, {high:7.2f}]"
            line += f"  {span:>27} {100 * decode['best']:7.2f} {entry['us_per_op_and_thread']:6.2f}"
            line += f" {entry['us_per_op_and_thread_best']:6.2f} {100 * prefill['ratio']:8.2f}"
        print(line)
    print(f"{'recorder':12} {'start s':>8} {'CPU %':>6} {'RSS MB':>7} {'MB/s':>6} {'B/op':>6}"
          f" {'op/s':>9} {'lost':>5}")  # fmt: skip
    for way, entry in result["ways"].items():
        if way == "untraced":
            continue
        runs = entry["runs"]
        start = summary([run["start_s"] for run in runs])["median"]
        cpu = summary([100 * run["recorder_cpu_s"] / run["seconds"] for run in runs])["median"]
        rss = max(run["recorder_rss"] for run in runs) / 1e6
        line = f"{way:12} {start:8.2f} {cpu:6.2f} {rss:7.1f}"
        if "file" in entry:
            file = entry["file"]
            line += f" {file['mb_per_s']:6.2f} {file['bytes_per_op_record']:6.2f}"
            line += f" {file['op_records_per_s']:9.0f} {file['lost']:5.0f}"
        print(line)
    for way, why in result["skipped"].items():
        print(f"{way}: skipped: {why}")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(prog="tools.bench", description="Measure what tracing costs.")
    cache = Path(os.environ.get("PROFINFER_CACHE", Path.home() / ".cache/profinfer"))
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--quick", action="store_true", help="3 pairs, SmolLM2 only")
    parser.add_argument("--json", type=Path, default=cache / "bench.json")
    parser.add_argument("--llama-bin", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", help="one model")
    args = parser.parse_args()
    # The same name in several folders: the file itself is what /proc shows.
    found = args.llama_bin or next(iter(cache.glob("llama.cpp-*/build/bin")), cache / "build/bin")
    binary = (found / "llama-bench").resolve()
    ways = ["untraced", *LEVELS, *PEERS]
    document: dict[str, Any] = {"load_before": os.getloadavg(), "models": {}}
    print(f"{binary}; load {os.getloadavg()[0]:.2f}", flush=True)
    for name, model in models(cache, quick=args.quick).items():
        if args.only not in (None, name):
            continue
        with tempfile.TemporaryDirectory() as folder:
            bench = Bench(binary, model, TOKENS[name], args.threads, Path(folder))
            if shutil.which("bpftrace") is None:
                bench.skipped["bpftrace"] = "not installed (apt install bpftrace)"
            for n in range(3 if args.quick else args.pairs):
                turn = n % len(ways)
                bench.round(ways[turn:] + ways[:turn])
                print(f"{name}: round {n + 1}", file=sys.stderr, flush=True)
            result = bench.result()
        show(name, result)
        document["models"][name] = result
    with tempfile.TemporaryDirectory() as folder:
        long = Path(folder, "flood.pf")
        flooded = [flood(30, contexts, long) for contexts in (1, 2)]
        document["flood"] = [asdict(one) for one in flooded]
        print("\n" + "\n".join(one.text for one in flooded), flush=True)
        read = analyses(long)
    document["analyses"] = [asdict(one) for one in read]
    print("\n".join(one.text for one in read))
    document["load_after"] = os.getloadavg()
    args.json.write_text(json.dumps(document, indent=1))
    print(f"\nload {os.getloadavg()[0]:.2f}; everything in {args.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
