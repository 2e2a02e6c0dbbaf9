"""Layer 7: charts of operators: where a token's time goes, products by size, the roofline.

Makes charts of what analyses found; draws nothing. Must not import the command line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from profinfer.analysis.result import Result
from profinfer.render.html.charts import ACCENT, MUTED, TONES, Axis, Bars, Plot, Series
from profinfer.units import format_byte_rate, format_bytes, format_ns, format_percent, format_things

OTHERS = "others"
GIGA = 1e9


def tones(roles: Sequence[str]) -> dict[str, int]:
    """A colour for each role, the same in every chart; the last one is shared."""
    return {role: min(i, TONES - 1) for i, role in enumerate(roles)}


# The colour of a row of the ledger does not depend on which other rows there are. Each has its own;
# of compute, graphs and calls a ledger has one.
_LEDGER = {
    "compute": 0, "graphs": 0, "calls": 0, "wait": 1, "torn": 11, "empty": 9, "gaps": 3,
    "backends": 6, "copies": 8, "waits": 10, "walk": 7, "build": 5, "unseen": 12, "sampling": 2,
    "between": 4,
}  # fmt: skip


def ledger(result: Result) -> Bars:
    """The wall time as one bar: of a token, or of everything where tokens are not known."""
    frame = result.frame[result.frame["time_ns"] > 0]
    known = bool(frame["per_token_ns"].notna().all())
    values = frame["per_token_ns" if known else "time_ns"].astype(float).tolist()
    each = " per token" if known else ""
    labels = [str(t) for t in frame["label"]]
    tips = [
        f"{name}: {format_ns(value)}{each}, {format_percent(share)}"
        for name, value, share in zip(labels, values, frame["share"].tolist(), strict=True)
    ]
    phase = result.scope.split(":")[0]
    return Bars(
        f"ledger-{phase.replace(' ', '-')}",
        "A token's wall time" if known else "Wall time",
        "Mean over the tokens, from call to call; every nanosecond is in one part."
        if known
        else "From call to call; every nanosecond is in one part.",
        ["a token" if known else phase],
        labels,
        [values],
        Axis("per token" if known else "time", "ns"),
        [_LEDGER.get(part, TONES - 1) for part in frame["part"].tolist()],
        [tips],
    )


def layers(result: Result, colours: dict[str, int]) -> Bars | None:
    """Time by role, stacked for each layer."""
    frame = result.frame[result.frame["layer"] != "none"]
    order = list(dict.fromkeys(frame["layer"].tolist()))
    if len(order) < 2:
        return None
    table = frame.pivot_table(index="layer", columns="role", values="per_token_ns", aggfunc="sum")
    table = table.reindex(order).fillna(0.0)
    names = sorted(table.columns, key=lambda role: -table[role].sum())
    shown = [role for role in names if colours.get(role, TONES) < TONES - 1]
    rest = [role for role in names if role not in shown]
    data = table[shown].copy()
    if rest:
        data[OTHERS] = table[rest].sum(axis=1)
    parts = [str(c) for c in data.columns]
    values = data.to_numpy().tolist()
    tips = [
        [
            f"layer {layer}, {part}: {format_ns(value)} per token"
            for part, value in zip(parts, row, strict=True)
        ]
        for layer, row in zip(order, values, strict=True)
    ]
    return Bars(
        "layers",
        "Time by layer and role",
        "Per token; what belongs to no layer, such as the output head, is left out.",
        order,
        parts,
        values,
        Axis("per token", "ns"),
        [colours.get(part, TONES - 1) for part in parts],
        tips,
        upright=True,
        order="layer",
    )


def matmuls(result: Result, colours: dict[str, int]) -> Plot | None:
    """Time of one execution over its multiplications, on logarithmic axes."""
    frame = result.frame[(result.frame["macs"] > 0) & (result.frame["median_ns"] > 0)]
    if len(frame) < 2:
        return None
    series = []
    for (role, kind), rows in frame.groupby(["role", "kind"], sort=False):
        told: Any = rows.itertuples()
        tips = [
            f"{role}, {row.problem} {row.types} ({kind})\n{row.macs:,.0f} multiplications, "
            f"{format_bytes(row.moved)}: {format_ns(row.median_ns)}, "
            f"{row.flop_per_s / GIGA:,.1f} GFLOP/s, {format_things(row.calls, 'execution')}"
            for row in told
        ]
        dynamic = kind == "dynamic"
        series.append(Series(
            f"{role} ({kind})" if dynamic else str(role),
            rows["macs"].astype(float).tolist(), rows["median_ns"].astype(float).tolist(),
            "points", colours.get(str(role), TONES - 1), tips=tips,
            mark="diamond" if dynamic else "circle", size=5.0,
        ))  # fmt: skip
    rate = float((frame["macs"] / frame["median_ns"]).median())
    ends = [float(frame["macs"].min()), float(frame["macs"].max())]
    line = Series("proportional", ends, [v / rate for v in ends], "line", MUTED, dashed=True)
    return Plot(
        "matmul-size",
        "Matrix products: time over size",
        "One execution, median. Circles: products with weights (static); diamonds: attention over "
        "the KV cache (dynamic). The dashed line: time in proportion to size.",
        Axis("M x N x K x heads", log=True),
        Axis("time of one", "ns", log=True),
        [line, *series],
    )


def roofline(result: Result, peaks: tuple[float, float, float] | None, threads: int) -> Plot | None:
    """Rate over intensity, below the machine's roofs where they are known.

    Args:
        result: the roofline by shape.
        peaks: bytes a second, 32-bit and quantised operations a second of so many threads.
        threads: that ran.
    """
    frame = result.frame.dropna(subset=["flop_per_s", "intensity"])
    frame = frame[(frame["flop_per_s"] > 0) & (frame["intensity"] > 0)]
    if len(frame) < 2:
        return None
    frame = frame.head(60)
    x, y = (frame[c].astype(float).tolist() for c in ("intensity", "flop_per_s"))
    bound = frame["bound"].tolist() if "bound" in frame else [None] * len(frame)
    told = zip(
        *(frame[c].astype(str).tolist() for c in ("op", "problem", "types")),
        *(frame[c].astype(float).tolist() for c in ("bytes_per_s", "share")),
        bound,
        strict=True,
    )
    tips = [
        f"{op} {problem} {types}\n{rate / GIGA:,.1f} GFLOP/s at {intensity:.2f} FLOP/byte, "
        f"{format_byte_rate(moved)}, {format_percent(share)} of the time"
        + (f"\nbound by {why}" if why else "")
        for intensity, rate, (op, problem, types, moved, share, why) in zip(x, y, told, strict=True)
    ]
    is_product = frame["op"].isin(("MUL_MAT", "MUL_MAT_ID", "FLASH_ATTN_EXT")).tolist()
    series = []
    for name, tone, wanted in (
        ("matrix products, attention", 0, True),
        ("other operators", 1, False),
    ):
        rows = [i for i, mine in enumerate(is_product) if mine is wanted]
        if rows:
            series.append(Series(name, [x[i] for i in rows], [y[i] for i in rows], "points", tone,
                                 tips=[tips[i] for i in rows], size=5.0,
                                 mark="circle" if wanted else "diamond"))  # fmt: skip
    about = "Each operator by size and type."
    if peaks is not None:
        series = [*_roofs(peaks, x), *series]
        about += f" Lines: what {format_things(threads, 'thread')} of this machine reach at most."
    return Plot(
        "roofline-chart",
        "Roofline",
        about,
        Axis("operations per byte", "flop_per_byte", log=True),
        Axis("rate", "flop_per_s", log=True),
        series,
    )


def _roofs(peaks: tuple[float, float, float], x: list[float]) -> list[Series]:
    read, fp32, int8 = peaks
    low, high = min(x), max(*x, int8 / read) * 1.5
    out: list[Series] = []
    for name, peak in (("32-bit roof", fp32), ("roof of quantised products", int8)):
        ridge = peak / read
        places = [low, min(max(ridge, low), high), high]
        heights = [min(v * read, peak) for v in places]
        if not out or not math.isclose(peak, fp32):
            out.append(Series(name, places, heights, "line", ACCENT if not out else MUTED,
                              dashed=bool(out)))  # fmt: skip
    return out
