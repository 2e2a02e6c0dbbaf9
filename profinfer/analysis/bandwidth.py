"""Layer 6: whether decoding has run into the memory's bandwidth, and what would help.

Must not import rich or anything above.
"""

from __future__ import annotations

from profinfer.analysis.finding import Finding, Number
from profinfer.analysis.roofline import roofline
from profinfer.analysis.roofs import of_trace
from profinfer.analysis.scopes import Scope
from profinfer.model.trace import Trace
from profinfer.units import format_byte_rate, format_things

WALL = 0.6  # of what the machine can read: nearer to the wall than to anything else
MORE = 1.15  # bandwidth of more threads over that of those that ran, which would be worth it


def bandwidth_wall(trace: Trace) -> Finding | None:
    """Decoding reaches the memory's roof; None if it does not, or if that cannot be told.

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
    scope = Scope(trace, decode)
    calibration = found.calibration
    ran = scope.threads
    here = calibration.peaks(ran)[0]
    most = max(calibration.threads)
    gain = calibration.peaks(most)[0] / here
    text = (
        f"decoding is at the memory's bandwidth: operators move {format_byte_rate(moved)} of the "
        f"{format_byte_rate(here)} that {format_things(ran, 'thread')} can read "
        f"({100 * share:.0f} %)"
    )
    evidence = {
        "moved": Number(moved, "bytes_per_s", "Least bytes of the operators / their time."),
        "roof": Number(here, "bytes_per_s", "Calibrated read bandwidth of as many threads."),
        "of_memory": Number(share, "ratio", "Least time that memory needs / time."),
        "threads": Number(ran, "count", "Threads that ran."),
        "gain": Number(gain, "ratio", f"Read bandwidth of {most} threads over that of {ran}."),
    }
    if most > ran and gain >= MORE:
        text += f"; {most} threads read {gain:.1f} times as much"
        how = "operators' wall time x share of memory x (1 - 1 / gain in bandwidth)"
        prize = scope.prize(scope.wall_ns * min(share, 1.0) * (1 - 1 / gain), how)
        return Finding("bandwidth", None, text, f"-t {most}", scope.name, evidence, prize)
    text += "; more threads will not help, fewer bytes will"
    tries = "a smaller quantisation, or several sequences in a batch"
    return Finding("bandwidth", None, text, tries, scope.name, evidence)
