"""``make diff-trial``: does ``profinfer diff`` cry wolf, and does it find what is there?

    python -m tools.difftrial same [--runs 20]
    python -m tools.difftrial planted [--runs 8] [--percent 5] [--node ffn_out]

same: the real engine is recorded many times, and every pair of runs is compared as if something
had been changed. planted: the engine's loop is built with a delay after one type of operator,
and runs with and without the delay are recorded in turns, by the same binary; then the delayed
operator, and no other, has to be named. Needs what ``make setup`` leaves in the cache folder.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from profinfer.analysis.compare.changes import Changes
from profinfer.analysis.compare.runs import compare
from profinfer.analysis.compare.verdict import gate, verdict
from profinfer.analysis.compare.whole import measure
from profinfer.model.trace import Trace

CACHE = Path(os.environ.get("PROFINFER_CACHE") or Path.home() / ".cache" / "profinfer")
LLAMA = CACHE / "llama.cpp-0.3.36"
MODEL = CACHE / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
LIMIT = 0.03  # what --fail-over is given
LOOP = "            ggml_compute_forward(&params, node);\n"
PLANT = """
#include <time.h>
static int64_t planted_now(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return ts.tv_sec * 1000000000LL + ts.tv_nsec;
}
static void planted_forward(struct ggml_compute_params * params, struct ggml_tensor * tensor) {
    static const char * name = NULL;
    static int percent = 0;
    if (name == NULL) {
        percent = getenv("PLANT_PERCENT") ? atoi(getenv("PLANT_PERCENT")) : 0;
        name = getenv("PLANT_NODE") ? getenv("PLANT_NODE") : "?";
    }
    if (strncmp(tensor->name, name, strlen(name)) != 0) {
        ggml_compute_forward(params, tensor);
        return;
    }
    int64_t begin = planted_now();
    ggml_compute_forward(params, tensor);
    int64_t end = planted_now();
    for (int64_t until = end + (end - begin) * percent / 100; planted_now() < until;) {}
}
"""


def record(program: Path, out: Path, tokens: int, model: Path, env: dict[str, str]) -> Trace:
    """One run of a model, recorded."""
    target = [program, "-m", model, "-t", "2", "-n", tokens, "-p", "The three laws of robotics are",
              "-no-cnv", "--temp", "0", "--ignore-eos", "-lv", "0"]  # fmt: skip
    command = [sys.executable, "-m", "profinfer", "record", "--force", "-o", out, "--", *target]
    subprocess.run(
        list(map(str, command)), check=True, stdin=subprocess.DEVNULL, capture_output=True,
        env=os.environ | env,
    )  # fmt: skip
    return Trace.open(out)


def alarms(a: list[Trace], b: list[Trace], phase: str = "decode") -> tuple[list[str], list[str]]:
    """What is said to have changed, and why --fail-over 3% would fail."""
    changes = Changes(compare(a, b, phase))
    found = verdict(changes, measure(changes.of, None))
    said = [f"{r['label']} {r['op']} {100 * r['own']:+.1f} %" for _, r in found.culprits.iterrows()]
    if found.whole.sure:
        said.append(found.sentence)
    for key in ("role", "op", "layer", "node", "shape"):
        rows = changes.by(key)
        said += [f"{key}: {row.tolist()[0]}" for _, row in rows[rows["verdict"] != ""].iterrows()]
    return said, gate(changes, found, LIMIT, None)


def same(folder: Path, runs: int, tokens: int) -> int:
    """Every pair of runs of one program; returns how many raised an alarm."""
    program = LLAMA / "build" / "bin" / "llama-completion"
    traces = [record(program, folder / f"{i}.pf", tokens, MODEL, {}) for i in range(runs)]
    pairs = list(itertools.combinations(traces, 2))
    bad = 0
    for a, b in pairs:
        said, failed = alarms([a], [b])
        if said or failed:
            bad += 1
            print(f"{a.path.name} {b.path.name}: {'; '.join([*said, *failed])}")
    print(f"{len(pairs)} pairs of {runs} runs of the same program: {bad} raised an alarm")
    half = runs // 2
    said, failed = alarms(traces[::2][:half], traces[1::2][:half])
    print(f"{half} against {half} runs, recorded in turns: {'; '.join([*said, *failed]) or 'none'}")
    return bad


def plant(folder: Path) -> Path:
    """Build the engine's loop with a delay in it; returns llama-completion beside it."""
    build, out = LLAMA / "build", folder / "bin"
    commands = json.loads((build / "compile_commands.json").read_text())
    mine = next(c for c in commands if c["file"].endswith("ggml-cpu/ggml-cpu.c"))
    built_in = str(Path(mine["directory"]).parent)  # the cache may have been moved since
    source = LLAMA / "src" / "ggml" / "src" / "ggml-cpu" / "ggml-cpu.c"
    head, call, tail = source.read_text().partition(LOOP)
    assert call, "the engine's loop does not look as expected"
    at = head.rindex("\nstatic thread_ret_t ggml_graph_compute_thread(")
    text = head[:at] + PLANT + head[at:] + call.replace("ggml_compute", "planted") + tail
    patched = folder / "ggml-cpu.c"
    patched.write_text(text)
    words = shlex.split(mine["command"].replace(built_in, str(LLAMA)))
    words[words.index("-o") + 1] = str(folder / "ggml-cpu.c.o")
    words[words.index("-c") + 1] = str(patched)
    subprocess.run([*words, f"-I{source.parent}"], cwd=build, check=True)
    objects = [o for o in (build / "ggml/src/CMakeFiles/ggml-cpu.dir").rglob("*.o")
               if o.name != "ggml-cpu.c.o"]  # fmt: skip
    out.mkdir()
    for file in (build / "bin").glob("lib*.so.0"):
        shutil.copy(file, out)
    for file in (build / "bin").glob("lib*-impl.so"):
        shutil.copy(file, out)
    shutil.copy(build / "bin" / "llama-completion", out)
    library = out / "libggml-cpu.so.0"
    library.unlink()
    subprocess.run(
        ["c++", "-shared", "-fopenmp", "-Wl,-soname,libggml-cpu.so.0", "-Wl,-rpath,$ORIGIN",
         "-o", library, folder / "ggml-cpu.c.o", *objects, out / "libggml-base.so.0"],
        check=True,
    )  # fmt: skip
    return out / "llama-completion"


def planted(folder: Path, runs: int, tokens: int, percent: int, node: str) -> int:
    """A delay after one type of operator, found or not; returns 0 if it alone was named."""
    program = plant(folder)
    a, b = [], []
    for i in range(runs):
        for side, much in ((a, 0), (b, percent)):
            name = folder / f"{'ab'[side is b]}{i}.pf"
            env = {"PLANT_NODE": node, "PLANT_PERCENT": str(much)}
            side.append(record(program, name, tokens, MODEL, env))
    changes = Changes(compare(a, b, "decode"))
    found = verdict(changes, measure(changes.of, None))
    print(f"{percent} % planted into {node}, {runs} runs a side: {found.sentence}")
    rows = changes.by("kind").head(8)[
        ["label", "op", "change", "own", "low", "high", "p", "verdict"]
    ]
    print(rows.round(3).to_string(index=False))
    units = changes.of.units
    mine = units["name"].str.startswith(node)
    right = set(zip(units["label"][mine], units["op"][mine], strict=True))
    named = {(r["label"], r["op"]) for _, r in found.culprits.iterrows()}
    print("named alone" if named and named <= right else f"named: {sorted(named) or 'nothing'}")
    return 0 if named and named <= right else 1


def main() -> int:
    """Run one of the two; keeps the traces with --keep."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("what", choices=("same", "planted"))
    parser.add_argument("--runs", type=int)
    parser.add_argument("--tokens", type=int, default=80)
    parser.add_argument("--percent", type=int, default=5)
    parser.add_argument("--node", default="ffn_out")
    parser.add_argument("--keep", type=Path, help="folder for the traces")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="difftrial-") as temporary:
        folder = asked.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if asked.what == "same":
            return same(folder, asked.runs or 20, asked.tokens)
        return planted(folder, asked.runs or 8, asked.tokens, asked.percent, asked.node)


if __name__ == "__main__":
    sys.exit(main())
