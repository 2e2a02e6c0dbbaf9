"""Layer 6: whether decoding has run into the memory's bandwidth, and what would help.

Must not import rich or anything above.
"""

from __future__ import annotations

from profinfer.analysis.roofline import roofline
from profinfer.analysis.roofs import of_trace
from profinfer.model.trace import Trace
from profinfer.units import format_byte_rate

WALL = 0.6  # of what the machine can read: nearer to the wall than to anything else
MORE = 1.15  # bandwidth of more threads over that of those that ran, which would be worth it


def bandwidth_wall(trace: Trace) -> tuple[float, str] | None:
    """Share of the memory roof that decoding reaches and a sentence, None if it is not the wall.

    The roof is the calibrated read bandwidth of as many threads as ran; without a calibration of
    the trace's machine, or without operators, there is nothing to say.
    """
    found = of_trace(trace)
    decode = trace.select(phase="decode")
    if found.calibration is None or decode.empty or not len(trace.ops):
        return None
    total = roofline(trace, decode, "op", found).total or {}
    share, moved = total.get("of_memory"), total.get("bytes_per_s")
    if share is None or moved is None or share < WALL:
        return None
    calibration = found.calibration
    ran = int(trace.graphs["threads_seen"].to_numpy()[decode.graphs].max())
    here = calibration.peaks(ran)[0]
    most = max(calibration.threads)
    gain = calibration.peaks(most)[0] / here
    text = (
        f"decoding is at the memory's bandwidth: operators move {format_byte_rate(moved)} of the "
        f"{format_byte_rate(here)} that {ran} thread{'' if ran == 1 else 's'} can read "
        f"({100 * share:.0f} %)"
    )
    if most > ran and gain >= MORE:
        return share, f"{text}; {most} threads read {gain:.1f} times as much: try -t {most}"
    return share, (
        f"{text}; more threads will not help, fewer bytes will: a smaller quantisation, or several "
        "sequences in a batch"
    )
