"""Layer 6: what a roofline view says in words: the roofs, a token's needs, what is not known.

Must not import rich or anything above.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from profinfer.analysis.result import Note
from profinfer.analysis.roofs import Found
from profinfer.analysis.work import Work
from profinfer.machine.roofs import Calibration
from profinfer.units import format_byte_rate, format_bytes, format_number, format_short_count


def about(
    frame: pd.DataFrame,
    work: Work,
    nodes: pd.DataFrame,
    found: Found,
    threads: npt.NDArray[np.int64],
) -> list[Note]:
    """The roofs or what to do for some, operators without known work, and bounds."""
    out = []
    if found.calibration is None:
        out.append(Note("info", found.source))
    elif len(threads):
        out += _roof_notes(found.calibration, threads)
    ops = nodes["op"].astype(str)
    unknown = frame[frame["unknown_ns"] > 0]
    if len(unknown):
        names = ", ".join(sorted(set(ops[unknown.index])))
        part = 100 * unknown["wall_ns"].sum() / frame["wall_ns"].sum()
        out.append(Note("info", f"work not known: {names}, {part:.1f} % of the time"))
    bounded = work.at_most[frame.index]
    for number in np.unique(bounded[bounded > 0]).tolist():
        names = ", ".join(sorted(set(ops[frame.index[bounded == number]])))
        out.append(Note("info", f"{names}: at most, {work.reasons[number]}"))
    return out


def per_token(whole: pd.Series, tokens: int, calibration: Calibration | None) -> Note:
    """What a token needs at least, and how many of them the roofs allow."""
    weights, kv = (format_bytes(whole[name] / tokens) for name in ("weight_bytes", "kv_bytes"))
    text = f"a token: {weights} of weights, {kv} of KV cache read, "
    text += f"{format_short_count(whole['flops'] / tokens)} operations"
    if calibration is not None and whole["t_roof"]:
        measured, most = (tokens * 1e9 / whole[name] for name in ("wall_ns", "t_roof"))
        text += f"; operators ran {format_number(measured)} tokens/s, "
        text += f"the roofs allow {format_number(most)}"
    return Note("info", text)


def _roof_notes(calibration: Calibration, threads: npt.NDArray[np.int64]) -> list[Note]:
    most = int(threads.max())
    at = calibration.at(most)
    read, fp32, int8 = calibration.peaks(most)
    s = "" if at == 1 else "s"
    text = f"roofs of {at} thread{s}: {format_byte_rate(read)}, {_giga(fp32)} GFLOP/s"
    text += f", {_giga(int8)} for quantised products" if int8 > fp32 else ""
    text += f"; ridge {fp32 / read:.1f} FLOP/B; {calibration.created_utc[:10]}"
    out = [Note("info", text)]
    if len(threads) > 1 or at != most:
        ran = ", ".join(map(str, threads.tolist()))
        out.append(Note("info", f"{ran} threads ran, the roofs are those of {at}"))
    doubt = {r.kind: r.doubt for r in calibration.roofs if r.threads == at and r.doubt}
    doubt = {k: v for k, v in doubt.items() if k != "triad"}
    if doubt:
        text = "; ".join(f"{kind} {why}" for kind, why in doubt.items())
        out.append(Note("info", f"roofs {text}; again: profinfer calibrate"))
    return out


def _giga(value: float) -> str:
    return format_number(value / 1e9)
