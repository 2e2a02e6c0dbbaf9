"""Layer 6: under which conditions the runs were made, and how fast they were.

What differs in the set-up is said before anything else. Must not import rich or anything above.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from profinfer.analysis import latency
from profinfer.analysis.overhead import estimated_share
from profinfer.analysis.overview import overview
from profinfer.analysis.result import Column, Note, Result
from profinfer.model.trace import Trace

_SEVERAL = " | "
_MANY, _FEW = 6, 4  # runs of both sides that are not all listed; of one that always are


def _facts(trace: Trace) -> dict[str, str]:
    """What should be the same if only one thing was changed."""
    meta, row = trace.meta, overview(trace).frame.iloc[0]
    host = meta.host
    builds = [i.build_id[:12] for i in meta.engine.images if i.build_id]
    memory = f"{host.memory_bytes / 2**30:.0f} GiB" if host.memory_bytes else ""
    mode = meta.plan.ops.mode if meta.plan.level == "op" else ""
    facts = {
        "model": row["model"],
        "engine": row["engine"],
        "build": " ".join(builds),
        "program": row["program"],
        "arguments": " ".join(_arguments(meta.target.argv)),
        "threads": row["threads"],
        "CPU": row["cpu"],
        "machine": " ".join(filter(None, [host.hostname, memory])),
        "kernel": host.kernel,
        "level": " ".join(filter(None, [meta.plan.level, mode])),
        "profinfer": meta.profinfer,
    }
    return {k: str(v) if v else "" for k, v in facts.items()}


def _arguments(argv: Sequence[str]) -> list[str]:
    """The command line without the program; files by their names."""
    return [Path(w).name if w.startswith(("/", "./", "../")) else w for w in argv[1:]]


def _words_apart(a: str, b: str) -> tuple[str, str]:
    """Two command lines without the words at both ends that they share, "..." for those."""
    one, two = a.split(" "), b.split(" ")
    start = 0
    while start < min(len(one), len(two)) and one[start] == two[start]:
        start += 1
    end = 0
    while end < min(len(one), len(two)) - start and one[-1 - end] == two[-1 - end]:
        end += 1
    start = max(start - 1, 0)  # an option's name says what its value is

    def short(words: list[str]) -> str:
        middle = words[start : len(words) - end]
        return " ".join(["..."] * (start > 0) + middle + ["..."] * (end > 0))

    return short(one), short(two)


def setup(a: Sequence[Trace], b: Sequence[Trace]) -> Result:
    """What differs between the two sides, and what is the same."""
    sides = [[_facts(t) for t in side] for side in (a, b)]
    rows, same = [], []
    for name in sides[0][0]:
        texts = [_SEVERAL.join(sorted({f[name] for f in side})) for side in sides]
        if texts[0] != texts[1]:
            if name == "arguments":
                texts = list(_words_apart(*texts))
            rows.append((name, *(t or "not known" for t in texts)))
        elif texts[0] and name not in ("arguments", "machine", "kernel", "build", "profinfer"):
            same.append(f"{name} {texts[0]}")
    columns = (
        Column("what", "what", "text", "What differs."),
        Column("a", "a", "text", "In the runs of side a."),
        Column("b", "b", "text", "In the runs of side b."),
    )
    title = "Set-up" if rows else "Set-up: no difference"
    notes = [Note("info", f"the same: {', '.join(same)}")] if same else []
    notes += _oddities(a, b)
    frame = pd.DataFrame(rows, columns=[c.name for c in columns])
    return Result("setup", title, "what differs between the sides", columns, frame, tuple(notes))


def _oddities(a: Sequence[Trace], b: Sequence[Trace]) -> list[Note]:
    """Comparisons that cannot mean what they seem to."""
    out = []
    marks = [f"{t.meta.clock} {t.meta.target} {t.reader.trailer}" for t in (*a, *b)]
    if len(set(marks)) < len(marks):
        out.append(
            Note("warning", "the same recording is given twice: it does not differ from itself")
        )
    if len(a) > 1 and len(b) > 1:
        times = [[t.meta.clock.realtime_ns for t in side] for side in (a, b)]
        if max(times[0]) < min(times[1]) or max(times[1]) < min(times[0]):
            text = (
                "one side was recorded after the other: what the machine did meanwhile looks "
                "like a difference; record in turns"
            )
            out.append(Note("warning", text))
    return out


def speeds(
    a: Sequence[Trace], b: Sequence[Trace], held_up: dict[Path, float], *, brief: bool = False
) -> Result:
    """One row per run: how fast it was.

    Args:
        a: runs of the first side.
        b: of the second.
        held_up: for how much of the time other processes had the CPUs of a run, where known.
        brief: of many runs the fastest, the medians and the slowest.
    """
    rows: list[dict[str, Any]] = []
    for side, traces in (("a", a), ("b", b)):
        for trace in traces:
            by_phase = {s.phase: s.per_s for s in latency.speeds(trace)}
            step = latency.time_per_output_token(trace)
            rows.append({
                "side": side,
                "trace": trace.path.name,
                "ttft_ns": latency.quantile(latency.time_to_first_token(trace), 0.5),
                "tpot_p50_ns": latency.quantile(step, 0.5),
                "prefill_per_s": by_phase.get("prefill"),
                "decode_per_s": by_phase.get("decode"),
                "probe_cost": estimated_share(trace),
                "held_up": held_up.get(trace.path),
            })  # fmt: skip
    columns = (
        Column("side", "side", "id", "a or b."),
        Column("trace", "trace", "text", "File."),
        Column("ttft_ns", "TTFT", "ns", "Begin of the prompt to the end of the first sample."),
        Column("tpot_p50_ns", "TPOT p50", "ns", "Time per output token, median."),
        Column("prefill_per_s", "prefill/s", "per_s", "Prompt tokens per second of call time."),
        Column("decode_per_s", "decode/s", "per_s", "Decoded tokens per second of call time."),
        Column(
            "probe_cost", "probes", "ratio", "Estimated cost of the probes, of the calls' time."
        ),
        Column("held_up", "held up", "ratio", "Of its threads' time other processes had the CPU."),
    )
    frame = pd.DataFrame(rows, columns=[c.name for c in columns])
    if brief and len(frame) > _MANY:
        frame = pd.concat([_brief(frame[frame["side"] == side]) for side in ("a", "b")])
    return Result("runs", "Runs", "the whole recordings", columns, frame)


def _brief(runs: pd.DataFrame) -> pd.DataFrame:
    """The fastest, the median of every column, the slowest."""
    if len(runs) < _FEW:
        return runs
    order = runs.sort_values("tpot_p50_ns", kind="stable")
    numbers = [c for c in runs.columns if c not in ("side", "trace")]
    middle = order.iloc[[0]].assign(trace=f"(median of {len(runs)})", **runs[numbers].median())
    return pd.concat([
        order.iloc[[0]].assign(trace=f"fastest: {order['trace'].iloc[0]}"),
        middle,
        order.iloc[[-1]].assign(trace=f"slowest: {order['trace'].iloc[-1]}"),
    ])  # fmt: skip
