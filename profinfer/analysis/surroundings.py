"""Layer 6: what the machine did around the target: the system's counters, clocks, heat.

Must not import rich or anything above.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from profinfer.analysis.finding import Finding, Number
from profinfer.analysis.result import Column, Note, Result
from profinfer.model.trace import Trace

# A CPU below this part of its highest clock is slow; for less of the time it is not worth a line.
SLOW, SLOW_MIN = 0.8, 0.10
# A CPU on which the target ran less than this part of its time does not matter.
USED_MIN = 0.10


def system_counters(trace: Trace) -> Result:
    """What counters of the whole system counted during the recording."""
    rows = trace.system_counters
    last = rows.groupby("name", observed=True).last().reset_index()
    seconds = (int(rows["ts_ns"].max()) - int(rows["ts_ns"].min())) / 1e9 if len(rows) else 0.0
    tokens = int(trace.calls["n_tokens"].clip(lower=0).sum()) if len(trace.calls) else 0
    clock = (last["unit"] == "ns").to_numpy()
    total = last["value"].to_numpy() / np.where(clock, 1e6, 1.0)
    frame = pd.DataFrame(
        {
            "name": last["name"].astype(str),
            "total": total,
            "unit": np.where(clock, "ms", last["unit"]),
            "per_s": total / seconds if seconds else np.nan,
            "per_token": total / tokens if tokens else np.nan,
        }
    )
    columns = (
        Column("name", "counter", "text", "As it was asked for."),
        Column("total", "total", "count", "From the first reading to the last, scaled for turns."),
        Column("unit", "unit", "text", "What is counted; empty for events."),
        Column("per_s", "a second", "count", "Total / time."),
        Column("per_token", "a token", "count", "Total / tokens of all calls, warm-up too."),
    )
    found = [Note("info", "of the whole machine, whoever caused it: read ten times a second")]
    shared = [f"{name} {100 * part:.0f} %" for name, part in
              zip(last["name"], last["running"], strict=True) if part < 0.995]  # fmt: skip
    if shared:
        found.append(Note("info", f"counters took turns, counted during {', '.join(shared)} of "
                          "the time: scaled up"))  # fmt: skip
    return Result("system_counters", "Counters of the system", "the whole recording", columns,
                  frame, tuple(found))  # fmt: skip


def clocks(trace: Trace) -> pd.DataFrame:
    """Per CPU: mean, lowest and highest clock and the highest possible one, kHz, and two ratios.

    From the first call's begin to the last one's results, weighted by time. ``slow`` is the part of
    the time below ``SLOW`` of the highest possible clock, ``used`` the part of the target's own
    running time that was on that CPU (NaN without thread states).
    """
    rows = trace.frequency
    facts = trace.meta.extra.get("surroundings") or {}
    columns = ("cpu", "mean_khz", "min_khz", "max_khz", "top_khz", "slow", "used")
    if not len(rows) or not len(trace.calls):
        return pd.DataFrame(columns=list(columns))
    begin, end = int(trace.calls["begin_ns"].min()), int(trace.calls["done_ns"].max())
    used = _used(trace)
    out = []
    for cpu in np.unique(rows["cpu"].to_numpy()).tolist():
        mine = rows[rows["cpu"].to_numpy() == cpu]
        since = np.clip(mine["ts_ns"].to_numpy(), begin, end)
        spent = np.diff(since, append=end).astype(np.float64)
        khz = mine["khz"].to_numpy()
        top = int(((facts.get("clocks") or {}).get(str(cpu)) or {}).get("max_khz") or khz.max())
        seen = khz[spent > 0]
        if not len(seen):
            continue
        slow = spent[khz < SLOW * top].sum() / spent.sum()
        mean = float(np.average(khz, weights=spent))
        out.append((cpu, mean, int(seen.min()), int(seen.max()), top, slow,
                    used.get(cpu, 0.0) if used else np.nan))  # fmt: skip
    return pd.DataFrame(out, columns=list(columns))


def _used(trace: Trace) -> dict[int, float]:
    """Part of the target's running time on each CPU; empty without thread states."""
    if not trace.has_sched:
        return {}
    ran = trace.sched[trace.sched["state"] == "running"]
    spent = (ran["end_ns"] - ran["begin_ns"]).to_numpy()
    cpus, which = np.unique(ran["cpu"].to_numpy(), return_inverse=True)
    sums = np.bincount(which, spent, len(cpus))
    part = sums / (sums.sum() or 1.0)
    return dict(zip(cpus.tolist(), part.tolist(), strict=True))


def frequency(trace: Trace) -> Result:
    """The clocks of the CPUs while the target computed."""
    told = clocks(trace)
    for name in ("mean", "min", "max", "top"):
        told[f"{name}_mhz"] = told.pop(f"{name}_khz") / 1000
    columns = (
        Column("cpu", "CPU", "id", "Number of the CPU."),
        Column("mean_mhz", "mean MHz", "count", "Weighted by time."),
        Column("min_mhz", "lowest", "count", "Lowest at a reading."),
        Column("max_mhz", "highest", "count", "Highest at a reading."),
        Column("top_mhz", "possible", "count", "The CPU's highest clock, as its driver tells it."),
        Column("slow", "slow", "ratio", f"Part of the time below {100 * SLOW:.0f} % of that."),
        Column("used", "of target", "ratio", "Part of the target's running time on this CPU."),
    )
    frame = told[[c.name for c in columns]]
    scope = "from the first call to the last"
    return Result("frequency", "Clocks of the CPUs", scope, columns, frame)


def findings(trace: Trace) -> list[Finding]:
    """Clocks that were low where the target ran, and heat."""
    out = []
    told = clocks(trace)
    known = told["used"].isna() | (told["used"] >= USED_MIN)
    slow = told[known & (told["slow"] >= SLOW_MIN)].sort_values("slow", ascending=False)
    for row in slow.head(2).to_dict("records"):
        low, high, top = (row[name] / 1e6 for name in ("min_khz", "max_khz", "top_khz"))
        text = (
            f"CPU {row['cpu']} ran at {low:.1f} to {high:.1f} of {top:.1f} GHz, below "
            f"{100 * SLOW:.0f} % of it in {100 * row['slow']:.0f} % of the run"
        )
        evidence = {
            "lowest": Number(int(row["min_khz"]) * 1000, "per_s", "Lowest clock that was read."),
            "top": Number(int(row["top_khz"]) * 1000, "per_s", "Highest that the CPU can do."),
            "slow": Number(float(row["slow"]), "ratio", "Part of the run with a low clock."),
        }
        tries = "its governor (cpupower frequency-set -g performance) and its cooling"
        out.append(Finding("slow_clock", None, text, tries, "the whole run", evidence))
    counts = (trace.meta.extra.get("surroundings") or {}).get("throttles") or {}
    begin, end = counts.get("begin") or {}, counts.get("end") or {}
    hot = {kind: end[kind] - begin[kind] for kind in end if end[kind] > begin.get(kind, end[kind])}
    if hot:
        parts = " and ".join(f"{n:,} times (of the {kind})" for kind, n in hot.items())
        evidence = {
            kind: Number(n, "count", f"Times that heat of the {kind} lowered a clock.")
            for kind, n in hot.items()
        }
        text = f"heat lowered the clock {parts}"
        out.append(Finding("heat", None, text, "better cooling", "the whole run", evidence))
    return out
