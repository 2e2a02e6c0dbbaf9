"""Layer 6: how fast operators compute and move data, and how far below the machine's roofs.

Owns the summing of work by group and its comparison with a calibration. Must not import rich or
anything above.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.analysis import notes, rooflinenotes, scheduling, shapes
from profinfer.analysis.operators import in_layer_order
from profinfer.analysis.result import Column, Result
from profinfer.analysis.roofs import Found
from profinfer.analysis.verdict import ROOF_VERDICTS, Facts, verdict
from profinfer.analysis.work import Work, executed
from profinfer.machine.roofs import Calibration
from profinfer.model.selection import Selection
from profinfer.model.trace import Trace

F64 = npt.NDArray[np.float64]

KEYS = {
    "op": ["op"],
    "role": ["role"],
    "layer": ["layer"],
    "node": ["name", "op", "problem", "types"],
    "shape": ["op", "problem", "types"],
}
TITLES = {
    "name": Column("name", "node", "text", "Name that the engine gives the tensor."),
    "op": Column("op", "operator", "text", "Operator type."),
    "role": Column("role", "role", "text", "Part that the operator plays in the transformer."),
    "layer": Column("layer", "layer", "text", "Layer; none for what belongs to no layer."),
    "problem": Column("problem", "shape", "text", "MxKxN of a matrix product, else the output."),
    "types": Column("types", "type", "text", "Type of the weights, else of itself."),
}
TIME = (
    Column("wall_ns", "time", "ns", "From the release of the operator before to its own, summed."),
    Column("share", "share", "ratio", "Part of the operators' time in this view."),
)
RATES = (
    Column("flop_per_s", "rate", "flop_per_s", "Operations / time, of those with known work."),
    Column("bytes_per_s", "moved", "bytes_per_s", "Least bytes read and written / time."),
    Column("intensity", "intens.", "flop_per_byte", "Operations / least bytes."),
)
ROOF = (
    Column("roof", "roof", "ratio", "Least time that the roofs allow / time."),
    Column("wait_share", "wait", "ratio", "Waiting as a part of computing and waiting."),
    Column("bound", "bound by", "text", "What bounds it; '?': most of its work is an upper bound."),
)
DETAILS = (
    Column("calls", "calls", "count", "How often it ran.", detail=True),
    Column("flops", "operations", "count", "Operations.", detail=True),
    Column("weight_bytes", "weights", "bytes", "Bytes of weights read.", detail=True),
    Column("kv_bytes", "KV", "bytes", "Bytes of the KV cache read.", detail=True),
    Column("activation_bytes", "others", "bytes", "Bytes of all else read.", detail=True),
    Column("written_bytes", "written", "bytes", "Bytes written.", detail=True),
    Column(
        "on_cpu", "on CPU", "ratio", "Part of computing that threads were on a CPU.", detail=True
    ),
    Column("unknown_ns", "unknown", "ns", "Time of operators without known work.", detail=True),
)
EVIDENCE = (
    Column("of_memory", "memory", "ratio", "Least time that memory needs / time.", detail=True),
    Column("of_compute", "compute", "ratio", "Least time of the arithmetic / time.", detail=True),
    Column("evidence", "evidence", "text", "Why the verdict is what it is.", detail=True),
)
_SUMS = (
    "wall_ns", "calls", "compute_ns", "wait_ns", "known_ns", "known_calls", "moved_ns", "flops",
    "moved", "weight_bytes", "kv_bytes", "activation_bytes", "written_bytes", "t_memory",
    "t_compute", "t_roof", "t_by_memory", "t_at_most", "unknown_ns", "seen_ns", "on_cpu_ns",
)  # fmt: skip


def roofline(
    trace: Trace, selection: Selection, by: str, found: Found, top: int | None = None
) -> Result:
    """Rates, intensity and, with a calibration, the place under its roofs.

    Args:
        trace: what was recorded.
        selection: the part of it.
        by: one of ``KEYS``.
        found: the calibration of the trace's machine.
        top: rows, slowest first; None for all.
    """
    work = executed(trace, selection)
    per_node, threads = _per_node(trace, selection, work, found.calibration)
    keys = KEYS[by]
    nodes = shapes.with_problem(trace.nodes) if "problem" in keys else trace.nodes
    frame = pd.concat([nodes[keys], per_node], axis=1)[per_node["calls"] > 0]
    out = frame.groupby(keys, observed=True, sort=True)[list(_SUMS)].sum().reset_index()
    out = out.sort_values("wall_ns", ascending=False, kind="stable").reset_index(drop=True)
    rows = len(out)
    whole = _rated(frame[list(_SUMS)].sum().to_frame().T, found.calibration)
    out = _rated(out, found.calibration)
    wall = float(whole["wall_ns"].iloc[0])
    out["share"] = out["wall_ns"] / wall if wall else np.nan
    whole["share"] = 1.0 if wall else np.nan
    if by == "layer":
        out = in_layer_order(out)
    out = out.head(top) if top else out
    columns = [*(TITLES[key] for key in keys), *TIME, *RATES]
    # Where there are several texts something must give way: the place under the roofs may not.
    hidden = {"node": ("problem", "types", "share"), "shape": ("share",)}.get(by, ())
    columns = [replace(c, detail=True) if c.name in hidden else c for c in columns]
    columns += [*ROOF, *DETAILS, *EVIDENCE] if found.calibration else [ROOF[1], *DETAILS]
    extra = rooflinenotes.about(frame, work, nodes, found, threads)
    # Of a token that other backends compute too, the CPU's weights are not all.
    if selection.n_tokens and not selection.narrowed and not notes.elsewhere(trace, selection):
        extra.insert(
            0, rooflinenotes.per_token(whole.iloc[0], selection.n_tokens, found.calibration)
        )
    extra += notes.cut(len(out), rows)
    total = {str(k): _plain(v) for k, v in whole.iloc[0].items() if k not in ("bound", "evidence")}
    texts = dict.fromkeys(keys, str)
    return Result(
        f"roofline_by_{by}",
        f"Roofline by {by}",
        selection.description,
        tuple(columns),
        out[[c.name for c in columns]].astype(texts).reset_index(drop=True),
        (*notes.of(trace, selection), *notes.elsewhere(trace, selection), *extra),
        None if len(out) < rows else total,
    )


def _per_node(
    trace: Trace, selection: Selection, work: Work, calibration: Calibration | None
) -> tuple[pd.DataFrame, npt.NDArray[np.int64]]:
    """What can be summed up, per node, and the numbers of threads of the selected graphs."""
    sums = trace.sums(selection)
    wall = sums.wall.astype(np.float64)
    moved = work.moved
    known = np.isfinite(work.flops) & np.isfinite(moved)
    threads = np.unique(trace.graphs["threads_seen"].to_numpy()[selection.graphs]).astype(np.int64)
    table: dict[str, Any] = {
        "wall_ns": sums.wall,
        "calls": sums.calls,
        "compute_ns": sums.compute,
        "wait_ns": sums.wait,
        "known_ns": np.where(known, wall, 0.0),
        "known_calls": np.where(known, sums.calls, 0),
        "moved_ns": np.where(np.isfinite(moved), wall, 0.0),
        "unknown_ns": np.where(known, 0, sums.wall),
        # Operations of what is known as a whole, so that rates and intensity fit together.
        "flops": np.where(known, work.flops, 0.0),
        "moved": np.nan_to_num(moved),
        "weight_bytes": np.nan_to_num(work.weights),
        "kv_bytes": np.nan_to_num(work.kv),
        "activation_bytes": np.nan_to_num(work.activations),
        "written_bytes": np.nan_to_num(work.written),
    }
    nothing = np.zeros(len(wall))
    t_memory, t_compute = nothing, nothing
    if calibration is not None and len(threads):
        # Of a selection with several numbers of threads the roof of the most: never too low.
        read, fp32, int8 = calibration.peaks(int(threads.max()))
        t_memory = np.where(known, moved, 0.0) * 1e9 / read
        t_compute = np.where(known, work.flops, 0.0) * 1e9 / np.where(work.int8, int8, fp32)
    roof = np.maximum(t_memory, t_compute)
    table |= {
        "t_memory": t_memory,
        "t_compute": t_compute,
        "t_roof": roof,
        "t_by_memory": np.where(t_memory >= t_compute, roof, 0.0),
        "t_at_most": np.where(work.at_most > 0, roof, 0.0),
    }
    return pd.DataFrame(table | _on_cpu(trace, selection)), threads


def _on_cpu(trace: Trace, selection: Selection) -> dict[str, Any]:
    """Computing of which the scheduler's events tell the state, and how much of it had a CPU."""
    if not trace.has_sched:
        return {"seen_ns": 0, "on_cpu_ns": 0}
    sums = scheduling.per_node(trace, selection)
    unknown = sums["op_ns"] - sums["running_ns"] - sums["runnable_ns"] - sums["blocked_ns"]
    seen = (sums["compute_ns"] - unknown.clip(lower=0)).clip(lower=0)
    return {"seen_ns": seen.to_numpy(), "on_cpu_ns": sums["compute_running_ns"].to_numpy()}


def _rated(out: pd.DataFrame, calibration: Calibration | None) -> pd.DataFrame:
    """Rates, intensity, waiting, and with a calibration roof and verdict of each row."""
    known, moved_ns = out["known_ns"].where(out["known_ns"] > 0), out["moved_ns"]
    both = out["compute_ns"] + out["wait_ns"]
    out["flop_per_s"] = out["flops"] * 1e9 / known
    out["bytes_per_s"] = out["moved"] * 1e9 / moved_ns.where(moved_ns > 0)
    out["intensity"] = out["flop_per_s"] / out["bytes_per_s"].where(out["bytes_per_s"] > 0)
    out["wait_share"] = (out["wait_ns"] / both).where(both > 0)
    out["on_cpu"] = (out["on_cpu_ns"] / out["seen_ns"].where(out["seen_ns"] > 0)).clip(upper=1.0)
    if calibration is None:
        return out
    out["roof"] = out["t_roof"] / known
    out["of_memory"], out["of_compute"] = out["t_memory"] / known, out["t_compute"] / known
    memory = (out["t_by_memory"] / out["t_roof"].where(out["t_roof"] > 0)).fillna(1.0)
    mean = known / out["known_calls"].where(out["known_calls"] > 0)
    told = [
        ("", "") if np.isnan(roof) else verdict(Facts(of_memory, of_compute, roof, *rest))
        for of_memory, of_compute, roof, *rest in zip(
            *(out[name].tolist() for name in ("of_memory", "of_compute", "roof")),
            memory.tolist(),
            out["wait_share"].tolist(),
            mean.tolist(),
            out["on_cpu"].tolist(),
            strict=True,
        )
    ]
    # The roof may look near because the work is a bound, not what was done.
    doubtful = (out["t_at_most"] > 0.5 * out["t_roof"]).tolist()
    out["bound"] = [
        f"{bound}?" if doubt and bound in ROOF_VERDICTS else bound or None
        for (bound, _), doubt in zip(told, doubtful, strict=True)
    ]
    out["evidence"] = [evidence or None for _, evidence in told]
    return out


def _plain(value: Any) -> Any:
    return None if value is None or pd.isna(value) else value
